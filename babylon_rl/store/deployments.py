"""Moves of a deployment: append-only, one transaction each, and one view of what is deployed."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from babylon_rl.common.canonical import from_json, to_json
from babylon_rl.database import tables as t
from babylon_rl.deployment.stages import Deployment, MoveKind, Stage
from babylon_rl.store.looks import Look, replace_look
from babylon_rl.types import Json

_STATE = ("number", "stage", "incumbent", "candidate", "rollout", "threshold", "test_threshold", "paused")


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One move, and what is deployed after it.

    Attributes:
        after: Its number is the one before plus 1.
        subject: The step that it is about.
        reason: A sentence.
        made_by: `platform` or `operator`.
        window_id: The hour whose look decided it.
        facts: Small numbers that the decision rests on.
        at: When it was made; None: not yet.
    """

    kind: MoveKind
    after: Deployment
    subject: int
    reason: str
    made_by: str
    window_id: str | None = None
    facts: Json | None = None
    at: datetime | None = None


def read_deployment(engine: sa.Engine, lineage: str) -> Deployment:
    """What is deployed now; before the first move: the base answers everybody."""
    columns = ", ".join(_STATE)
    query = sa.text(f"SELECT {columns} FROM babylon_rl.deployed WHERE lineage = :lineage")  # noqa: S608  # constants
    with engine.connect() as conn:
        row = conn.execute(query, {"lineage": lineage}).mappings().first()
    if row is None:
        return Deployment(lineage=lineage)
    return Deployment(lineage=lineage, **{**row, "stage": Stage(row["stage"])})


def write_move(engine: sa.Engine, move: Move, *, look: Look | None = None) -> bool:
    """Append a move to the state that it was decided from, and in the same transaction the look that decided it.

    Returns:
        Whether it was written. False: another move came first, or its hour has made one; nothing was written, so read
        what is deployed and decide anew.
    """
    d = move.after
    row = {
        "lineage": d.lineage,
        "move": move.kind.value,
        "subject": move.subject,
        "reason": move.reason,
        "made_by": move.made_by,
        "window_id": move.window_id,
        "facts": to_json(move.facts or {}).decode(),
        **{name: getattr(d, name) for name in _STATE},
    }
    try:
        with engine.begin() as conn:
            newest = conn.scalar(
                sa.select(sa.func.max(t.deployment_events.c.number)).where(t.deployment_events.c.lineage == d.lineage)
            )
            if (newest or 0) != d.number - 1:
                return False
            conn.execute(sa.insert(t.deployment_events), [row])
            if look is not None:
                replace_look(conn, look)
    except sa.exc.IntegrityError:
        return False
    return True


def read_moves(engine: sa.Engine, lineage: str) -> list[Move]:
    """Every move of a lineage, in order."""
    with engine.connect() as conn:
        return read_moves_in(conn, lineage)


def read_moves_in(conn: sa.Connection, lineage: str) -> list[Move]:
    """`read_moves` within a transaction."""
    c = t.deployment_events.c
    rows = conn.execute(sa.select(t.deployment_events).where(c.lineage == lineage).order_by(c.number)).mappings()
    return [
        Move(
            kind=MoveKind(r["move"]),
            after=Deployment(lineage=lineage, **{**{n: r[n] for n in _STATE}, "stage": Stage(r["stage"])}),
            subject=r["subject"],
            reason=r["reason"],
            made_by=r["made_by"],
            window_id=r["window_id"],
            facts=from_json(r["facts"], Json),
            at=r["at"],
        )
        for r in rows
    ]


def servable_steps(moves: Collection[Move], deployment: Deployment) -> frozenset[int]:
    """The steps that may be answered with when a caller names one: the base, the incumbent, the candidate on trial, and former
    incumbents that were not rolled back. A checkpoint that is only recorded, or was rolled back, is none.
    """
    steps = {0, deployment.incumbent}
    for move in moves:
        if move.kind is MoveKind.PROMOTED:
            steps.add(move.subject)
        elif move.kind is MoveKind.ROLLED_BACK:
            steps.discard(move.subject)
    if deployment.candidate is not None and deployment.stage not in (Stage.NONE, Stage.CANDIDATE):
        steps.add(deployment.candidate)
    return frozenset(steps | {0, deployment.incumbent})
