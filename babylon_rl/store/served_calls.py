"""Who answered each call: written by the gateway in batches, read to judge a rollout and to trace an answer."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from babylon_rl.database import tables as t
from babylon_rl.database.bulk_copy import insert_new
from babylon_rl.deployment.stages import Arm
from babylon_rl.types import Json, policy_name


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCall:
    """One row of `served_calls`.

    Attributes:
        window_id: The hour that the call belongs to.
        step: That answered.
        deployment: Number of the move that it was answered under; 0: before the first.
        fell_back_from: Step that should have answered and could not.
        status: HTTP; 499: the caller left.
        messages: JSON as it was sent, where texts are kept; only `read_call` reads it.
        response: Likewise.
    """

    call_id: str
    agent_id: str | None
    window_id: str
    lineage: str
    step: int
    digest: str
    arm: Arm
    deployment: int
    rollout: str | None
    fell_back_from: int | None
    upstream: str
    status: int
    error: str | None
    asked_at: datetime
    first_token_ms: float | None
    latency_ms: float
    prompt_tokens: int | None
    completion_tokens: int | None
    temperature: float | None
    finish_reason: str | None
    streamed: bool
    trajectory_id: str | None
    step_number: int | None
    messages: str | None = None
    response: str | None = None

    @property
    def policy(self) -> str:
        return policy_name(self.lineage, self.step)


_TEXTS: Final = ("messages", "response")
_NAMES: Final = [f.name for f in fields(RecordedCall)]


def write_calls(engine: sa.Engine, rows: Sequence[Json]) -> int:
    """Write calls by COPY in one transaction; a call that is there already stays as it is.

    Args:
        engine: Of our own schema.
        rows: N dicts of all columns, in one order; texts without NUL.

    Returns:
        How many were not there yet.
    """
    with engine.begin() as conn:
        return insert_new(conn, t.served_calls, rows, key="call_id")


def read_calls(engine: sa.Engine, lineage: str, window_ids: Collection[str]) -> list[RecordedCall]:
    """The calls of some windows, shadow calls among them, by window, agent and time; without their texts."""
    c = t.served_calls.c
    query = (
        sa.select(*(c[n] for n in _NAMES if n not in _TEXTS))
        .where(c.lineage == lineage, c.window_id == sa.any_(sa.cast(list(window_ids), sa.ARRAY(sa.Text))))
        .order_by(c.window_id, c.agent_id, c.asked_at, c.call_id)
    )
    with engine.connect() as conn:
        return [_make_call(dict(r)) for r in conn.execute(query).mappings()]


def find_agents_of_others(engine: sa.Engine, lineage: str, window_id: str) -> set[str]:
    """The agents of a window whom gateways of other lineages answered."""
    c = t.served_calls.c
    query = sa.select(c.agent_id).distinct().where(c.window_id == window_id, c.lineage != lineage)
    with engine.connect() as conn:
        return set(conn.scalars(query.where(c.agent_id.is_not(None))))


def read_call(engine: sa.Engine, call_id: str) -> RecordedCall | None:
    """One call with its texts, by the id that its answer carried; None: it was never recorded, or is not yet."""
    c = t.served_calls.c
    with engine.connect() as conn:
        row = conn.execute(sa.select(*(c[n] for n in _NAMES)).where(c.call_id == call_id)).mappings().first()
    return None if row is None else _make_call(dict(row))


def _make_call(row: Json) -> RecordedCall:
    return RecordedCall(**{**row, "arm": Arm(row["arm"])})
