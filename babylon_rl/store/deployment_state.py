"""What a gateway follows: the deployment of a lineage, the steps that may be named, and its recorded checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from babylon_rl.database import tables as t
from babylon_rl.deployment.stages import Deployment
from babylon_rl.store.deployments import read_moves_in, servable_steps
from babylon_rl.store.ledger_identity import RecordedCheckpoint, read_recorded_in

CHANNEL: Final = "babylon_rl_deployment"
"""The channel that a trigger of `deployment_events` notifies when a move is committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentState:
    """One consistent reading.

    Attributes:
        servable: Steps that a caller may name.
        policies: Step → how it was recorded.
    """

    deployment: Deployment
    servable: frozenset[int]
    policies: Mapping[int, RecordedCheckpoint]


def read_state(conn: sa.Connection, lineage: str) -> DeploymentState:
    """Read all of it; in one transaction at REPEATABLE READ a move cannot come between."""
    moves = read_moves_in(conn, lineage)
    deployment = moves[-1].after if moves else Deployment(lineage=lineage)
    return DeploymentState(
        deployment=deployment,
        servable=servable_steps(moves, deployment),
        policies={r.step: r for r in read_recorded_in(conn) if r.lineage == lineage},
    )


def read_state_mark(conn: sa.Connection, lineage: str) -> tuple[object, ...]:
    """A value that differs after each move, and after each checkpoint that was recorded, again or new."""
    moves, checkpoints = t.deployment_events.c, t.checkpoints.c
    query = sa.select(
        sa.select(sa.func.max(moves.number)).where(moves.lineage == lineage).scalar_subquery(),
        sa.select(sa.func.count()).where(checkpoints.lineage == lineage).scalar_subquery(),
        sa.select(sa.func.max(checkpoints.trained_at)).where(checkpoints.lineage == lineage).scalar_subquery(),
    )
    return tuple(conn.execute(query).one())
