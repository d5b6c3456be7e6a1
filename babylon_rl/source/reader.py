"""Rows of one window, out of the game's tables: each either usable, or set aside with its reason.

What belongs here: running the statements of `source/sql.py` and deciding about whole rows. What JSON
means is `source/steps.py`; joining rows of one agent is `source/stitching.py`. A bad row is data: it
never raises, and never costs its siblings.

Rows are streamed out by binary COPY, agent after agent, so a window of any size is never in memory at once.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from babylon_rl.source.sql import (
    Spelling,
    find_spelling,
    select_calls,
    select_rows,
    select_window,
    select_window_ids,
    window_of,
    window_parameters,
)
from babylon_rl.source.steps import BadRowError, make_call, number, parse_json, parse_metadata, parse_steps
from babylon_rl.types import Disposition, LlmCall, SourceRow, Step
from babylon_rl.windows import HourWindow

if TYPE_CHECKING:  # a code location loads this module, and psycopg takes its time
    import psycopg

logger = logging.getLogger(__name__)

_End = tuple[str, str]  # disposition, reason
# Rows read again at a time, because their calls stand only in the log.
_CHUNK: Final = 50

__all__ = ["AgentRows", "logged_messages", "read_window", "stream_window", "window_ids", "window_of"]


class _Row(NamedTuple):
    """One row as `select_window` gives it; the JSON is not decoded yet."""

    id: str
    trajectory_id: str
    agent_id: str
    start_time: datetime | None
    end_time: datetime | None
    window_id: str | None
    scenario_id: str | None
    steps_json: bytes
    metadata_json: bytes | None
    final_balance: float | None
    final_pnl: float | None
    is_training_data: bool | None
    is_evaluation: bool | None


# How the columns arrive. JSON is taken as bytes: what is not kept of it is never made into text.
_WIRE_TYPES: Final = (
    "text", "text", "text", "timestamp", "timestamp", "text", "text", "bytea", "bytea", "float8", "float8", "bool", "bool",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRows:
    """All rows of one agent in one window: the usable ones in time order, and where the others ended."""

    agent_id: str
    rows: tuple[SourceRow, ...]
    aside: tuple[Disposition, ...]


def stream_window(conn: sa.Connection, window: HourWindow) -> Iterator[AgentRows]:
    """Read every row of `window`, one agent at a time.

    Agents come by id, but those come last that have a row without any call: such a row takes its calls from
    `llm_call_logs`. Use a connection at REPEATABLE READ where rows may be rewritten meanwhile.

    Yields:
        Each agent once. `aside` is `excluded` (`benchmark`, `evaluation`, `not_training_data`) or `quarantined`
        (`no_steps`, `no_llm_calls`, `bad_json`, `lone_surrogate`, `bad_shape`, `bad_time`). Together they are all rows of the
        window, each once.
    """
    spelling = find_spelling(conn)
    silent: list[str] = []
    for agent_id, rows in groupby(_copy(conn, spelling, window), key=attrgetter("agent_id")):
        own = list(map(_judged, rows))
        if any(steps is not None and not _spoken(steps) for _, steps, _ in own):
            silent += [row.id for row, _, _ in own]
        else:
            yield _sorted_out(window, agent_id, own)
    # A chunk may cut through an agent, so agents are put together again across chunks.
    chunks = (silent[i : i + _CHUNK] for i in range(0, len(silent), _CHUNK))
    again = (row for ids in chunks for row in _with_logs(conn, spelling, ids))
    for agent_id, judged in groupby(again, key=lambda r: r[0].agent_id):
        yield _sorted_out(window, agent_id, list(judged))


def read_window(conn: sa.Connection, window: HourWindow) -> tuple[list[SourceRow], list[Disposition]]:
    """Read every row of `window` at once, by start time and id: `stream_window` for windows that fit in memory.

    Returns:
        The usable rows, and where the others ended.
    """
    rows: list[SourceRow] = []
    aside: list[Disposition] = []
    for agent in stream_window(conn, window):
        rows += agent.rows
        aside += agent.aside
    reasons = dict(Counter(d.reason for d in aside))
    logger.info("read window=%s rows=%d usable=%d aside=%s", window, len(rows) + len(aside), len(rows), reasons)
    return sorted(rows, key=lambda r: (r.start_at, r.source_id)), aside


def window_ids(conn: sa.Connection, window: HourWindow) -> list[str]:
    """Source ids of every row that belongs to `window` now; nothing heavy is read."""
    statement = select_window_ids(find_spelling(conn))
    return list(conn.exec_driver_sql(statement, window_parameters(window)).scalars())


def logged_messages(conn: sa.Connection, window: HourWindow) -> set[tuple[str, str, str, str]]:
    """Every (agent, system prompt, user prompt, response) that the game logged in `window`, read anew."""
    return {
        (row.agent_id, call.system_prompt, call.user_prompt, call.response)
        for agent in stream_window(conn, window)
        for row in agent.rows
        for step in row.steps
        for call in step.llm_calls
    }


_Judged = tuple[_Row, tuple[Step, ...] | None, _End | None]  # either its steps, or where it ended


def _copy(conn: sa.Connection, spelling: Spelling, window: HourWindow) -> Iterator[_Row]:
    conn.execute(sa.text("SELECT 1"))  # SQLAlchemy begins its transaction, so that it also ends it
    raw: Any = conn.connection.driver_connection
    cursor: psycopg.Cursor[Any]
    with (
        raw.cursor() as cursor,
        cursor.copy(f"COPY ({select_window(spelling)}) TO STDOUT (FORMAT BINARY)", window_parameters(window)) as copy,
    ):
        copy.set_types(_WIRE_TYPES)
        yield from map(_Row._make, copy.rows())


def _judged(row: _Row) -> _Judged:
    if (why := _excluded(row)) is not None:
        return row, None, ("excluded", why)
    if row.start_time is None:  # beyond the calendar: see `sql._readable`
        return row, None, ("quarantined", "bad_time")
    steps, end = _attempt(row, partial(parse_steps, row.steps_json))
    return row, None if end else steps, end


def _excluded(row: _Row) -> str | None:
    """Why a sound row is none of ours, if so. A database without the two flags means its rows to train."""
    if (row.scenario_id or "").lower().startswith("benchmark"):
        return "benchmark"  # such rows carry is_training_data = true
    if row.is_evaluation:
        return "evaluation"
    return "not_training_data" if row.is_training_data is False else None


def _attempt(row: _Row, parse: Callable[[], tuple[Step, ...]]) -> tuple[tuple[Step, ...], _End | None]:
    try:
        return parse(), None
    except BadRowError as e:
        return (), ("quarantined", e.reason)
    except Exception as e:  # noqa: BLE001  # whatever one row holds, its siblings are read
        logger.warning("quarantined id=%s error=%s", row.id, type(e).__name__)
        return (), ("quarantined", "bad_shape")


def _spoken(steps: Sequence[Step]) -> bool:
    return any(s.llm_calls for s in steps)


def _sorted_out(window: HourWindow, agent_id: str, own: Iterable[_Judged]) -> AgentRows:
    rows: list[SourceRow] = []
    aside: list[Disposition] = []
    for row, steps, end in own:
        if end is None and steps is not None and row.start_time is not None:
            rows.append(_source_row(row, window, row.start_time, steps))
        else:
            aside.append(_disposition(row, window, end or ("quarantined", "bad_shape")))
    return AgentRows(agent_id=agent_id, rows=tuple(rows), aside=tuple(aside))


def _with_logs(conn: sa.Connection, spelling: Spelling, ids: Sequence[str]) -> Iterator[_Judged]:
    """Read rows again by their ids, and give those without any call what the log has of them."""
    found = conn.exec_driver_sql(select_rows(spelling), {"ids": list(ids)}).all()
    judged = [_judged(_Row(*r)._replace(steps_json=r.steps_json.encode())) for r in found]
    logged = _logged_calls(conn, spelling, [r.trajectory_id for r, steps, _ in judged if steps and not _spoken(steps)])
    for row, steps, end in judged:
        if steps is not None and not _spoken(steps):
            calls = logged.get(row.trajectory_id, ())
            steps, end = _attempt(row, partial(_with_calls, row, steps, calls))
            if end is None and not _spoken(steps):
                end = ("quarantined", "no_llm_calls")
        yield row, None if end else steps, end


def _logged_calls(
    conn: sa.Connection, spelling: Spelling, trajectory_ids: list[str]
) -> Mapping[str, list[Mapping[str, Any]]]:
    by_trajectory: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    if trajectory_ids and spelling.llm_call_logs:
        for call in conn.exec_driver_sql(select_calls(spelling), {"trajectory_ids": trajectory_ids}).mappings():
            by_trajectory[call["trajectory_id"]].append(dict(call))
    return by_trajectory


def _with_calls(row: _Row, steps: tuple[Step, ...], logs: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """Give each logged call to its step: by the step's own `stepId`, else to the last step begun before it."""
    names = {s.get("stepId"): i for i, s in enumerate(parse_json(row.steps_json))}
    calls: list[list[LlmCall]] = [[] for _ in steps]
    for log in logs:
        call = make_call(
            {
                "systemPrompt": log["system_prompt"],
                "userPrompt": log["user_prompt"],
                "response": log["response"],
                "purpose": log["purpose"],
                "model": log["model"],
                "modelVersion": parse_metadata(log["metadata"]).get("modelVersion"),
                "temperature": log["temperature"],
                "maxTokens": log["max_tokens"],
                "actionType": log["action_type"],
                "reasoning": log["reasoning"],
            }
        )
        if call is None:
            continue
        at = None if log["timestamp"] is None else _utc(log["timestamp"])
        begun = [i for i, s in enumerate(steps) if at is not None and s.at is not None and s.at <= at]
        calls[names.get(log["step_id"], begun[-1] if begun else 0)].append(call)
    return tuple(replace(s, llm_calls=tuple(c)) for s, c in zip(steps, calls, strict=True))


def _source_row(row: _Row, window: HourWindow, start_time: datetime, steps: tuple[Step, ...]) -> SourceRow:
    return SourceRow(
        source_id=row.id,
        trajectory_id=row.trajectory_id,
        agent_id=row.agent_id,
        window_id=str(window),
        start_at=_utc(start_time),
        end_at=None if row.end_time is None else _utc(row.end_time),
        final_pnl=number(row.final_pnl),
        final_balance=number(row.final_balance),
        steps=steps,
        metadata=parse_metadata(row.metadata_json),
    )


def _disposition(row: _Row, window: HourWindow, end: _End) -> Disposition:
    return Disposition(
        source_id=row.id,
        trajectory_id=row.trajectory_id,
        agent_id=row.agent_id,
        window_id=str(window),
        disposition=end[0],
        reason=end[1],
    )


def _utc(at: datetime) -> datetime:
    """The game's columns are UTC without saying so."""
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
