"""Since when each step of a lineage answers agents, until when it did, and which move put it there: read from its moves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from babylon_rl.deployment.stages import MoveKind, Stage
from babylon_rl.store.deployments import Move

_ANSWERING: Final = (Stage.CANARY, Stage.HALF)


class ServiceStatus(StrEnum):
    """How far a checkpoint has come in service, in the words of the game's `trained_models.status`.

    Never the game's `ready`: both generations of it give the newest model that is `ready` or `deployed` to all agents at once,
    and deploy a `ready` one by themselves, which would pass by the stages.
    """

    TRAINING = "training"
    """Recorded; it was never on trial."""
    TESTING = "testing"
    """The candidate of a rollout, at whatever stage."""
    DEPLOYED = "deployed"
    """The incumbent: one at a time."""
    ARCHIVED = "archived"
    """It was on trial or deployed, and is no more: replaced, rolled back, or its rollout ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The service of one step.

    Attributes:
        deployed_at: When it began to answer agents, the last time; None: it never did.
        archived_at: When it was taken out of service or off trial; None: it was not.
    """

    status: ServiceStatus = ServiceStatus.TRAINING
    deployed_at: datetime | None = None
    archived_at: datetime | None = None


def read_service(moves: Sequence[Move]) -> dict[int, Service]:
    """The service of each step that a move was about; `moves` are all of a lineage, in order."""
    found: dict[int, Service] = {}
    before: frozenset[int] = frozenset()
    on_trial: int | None = None
    for move in moves:
        d = move.after
        answering = _answering(move)
        if d.candidate is not None and d.candidate not in (on_trial, *before):
            found[d.candidate] = Service()
        for step in answering - before:
            found[step] = Service(deployed_at=move.at)
        for step in before - answering:
            found[step] = replace(found[step], archived_at=move.at)
        if move.kind in (MoveKind.ROLLED_BACK, MoveKind.ENDED) and move.subject not in answering:
            found[move.subject] = replace(found.get(move.subject, Service()), archived_at=move.at)
        before, on_trial = answering, d.candidate
    incumbent = moves[-1].after.incumbent if moves else None
    return {
        step: replace(service, status=_status_of(step, service, incumbent, on_trial))
        for step, service in sorted(found.items())
    }


def _answering(move: Move) -> frozenset[int]:
    d = move.after
    candidate = {d.candidate} if d.candidate is not None and d.stage in _ANSWERING else set()
    return frozenset({d.incumbent} | candidate)


def _status_of(step: int, service: Service, incumbent: int | None, candidate: int | None) -> ServiceStatus:
    if step == incumbent:
        return ServiceStatus.DEPLOYED
    if step == candidate:
        return ServiceStatus.TESTING
    return ServiceStatus.TRAINING if service.archived_at is None else ServiceStatus.ARCHIVED


def find_placing_move(moves: Sequence[Move], number: int, step: int) -> Move | None:
    """The move that gave a step the place that it had under deployment `number`.

    Returns:
        None: it had none there: the base, as long as no checkpoint has taken its place, or a step that the caller named.
    """
    placing = None
    for move in reversed([m for m in moves if m.after.number <= number]):
        role = _role_of(move, step)
        if role is None or (placing is not None and role != _role_of(placing, step)):
            break
        placing = move
    else:
        return None if step == 0 else placing
    return placing


def _role_of(move: Move, step: int) -> str | None:
    d = move.after
    if step == d.incumbent:
        return "incumbent"
    return d.stage.value if step == d.candidate else None
