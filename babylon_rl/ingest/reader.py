"""Reads the rows of one window from the game's tables: each is usable, or set aside with a reason.

What belongs here: running the statements of `ingest/queries.py` and deciding about whole rows. Parsing their
JSON is `ingest/steps.py`; joining rows of one agent is `ingest/stitching.py`. A bad row is data: it
never raises, and never costs its siblings.

Rows are streamed out by binary COPY, agent after agent, so a window of any size is never in memory at once.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa

from babylon_rl.ingest.columns import ColumnNames, find_column_names
from babylon_rl.ingest.many_characters import acts_for_many
from babylon_rl.ingest.queries import (
    scenario_of,
    select_calls,
    select_rows,
    select_window,
    select_window_ids,
    window_parameters,
)
from babylon_rl.ingest.rows import LlmCall, SourceRow, Step
from babylon_rl.ingest.steps import (
    BadRowError,
    JsonText,
    make_call,
    parse_json,
    parse_metadata,
    parse_number,
    parse_steps,
)
from babylon_rl.types import Json, RowOutcome, RowReason, RowStatus
from babylon_rl.windows import HourWindow

if TYPE_CHECKING:  # a code location loads this module, and psycopg takes its time
    import psycopg
    from psycopg.adapt import Loader

logger = logging.getLogger(__name__)

_Outcome = tuple[RowStatus, RowReason]
_CHUNK: Final = 50  # rows read again at a time, because their calls are only in the log


class _Row(NamedTuple):
    """One row as `select_window` gives it; the JSON is not decoded yet, nor even copied."""

    id: str
    trajectory_id: str
    agent_id: str
    start_time: datetime | None
    end_time: datetime | None
    window_id: str | None
    scenario_id: str | None
    steps_json: JsonText
    metadata_json: str | None
    final_balance: float | None
    final_pnl: float | None
    is_training_data: bool | None
    is_evaluation: bool | None
    archetype: str | None


# How the columns arrive. JSON stays bytes, a view of the message: what is not kept of it is never decoded.
_WIRE_TYPES: Final = tuple(
    "text text text timestamp timestamp text text bytea text float8 float8 bool bool text".split()  # noqa: SIM905  # one line to compare with `_Row`
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRows:
    """All rows of one agent in one window: the usable ones in time order, and the outcomes of the others."""

    agent_id: str
    rows: tuple[SourceRow, ...]
    set_aside: tuple[RowOutcome, ...]


def stream_window(conn: sa.Connection, window: HourWindow) -> Generator[AgentRows]:
    """Read every row of `window`, one agent at a time.

    Agents come by id; those with a row without any call come last, because such a row takes its calls from
    `llm_call_logs`. Use a connection at REPEATABLE READ where rows may be rewritten meanwhile. A caller that may stop
    before the end closes the generator (`contextlib.closing`): that cancels the COPY, which a rollback would wait for.

    Yields:
        Each agent once. `set_aside` are `excluded` or `quarantined`, each with its reason. Together they are all rows of the
        window, each once.
    """
    names = find_column_names(conn)
    without_calls: list[str] = []
    window_id = str(window)
    # Closed here, because the traceback of an exception would keep it open until after the rollback.
    with closing(_copy(conn, names, window)) as copied:
        for agent_id, rows in groupby(copied, key=attrgetter("agent_id")):
            # A list at once: a row's message is freed before the next one comes.
            own = [_to_source_row(window_id, row) for row in rows]
            if any(isinstance(x, SourceRow) and not _has_calls(x.steps) for x in own):
                without_calls += [x.source_id for x in own]
            else:
                yield _split_usable(agent_id, own)
    # A chunk may cut through an agent, so agents are put together again across chunks.
    chunks = (without_calls[i : i + _CHUNK] for i in range(0, len(without_calls), _CHUNK))
    again = (x for ids in chunks for x in _read_again_with_logs(conn, names, window_id, ids))
    for agent_id, own_again in groupby(again, key=attrgetter("agent_id")):
        yield _split_usable(agent_id, own_again)


def window_ids(conn: sa.Connection, window: HourWindow) -> list[str]:
    """Source ids of every row that belongs to `window` now; nothing heavy is read."""
    statement = select_window_ids(find_column_names(conn))
    return list(conn.exec_driver_sql(statement, window_parameters(window)).scalars())


def logged_messages(conn: sa.Connection, window: HourWindow) -> set[tuple[str, str, str, str]]:
    """Every (agent, system prompt, user prompt, response) that the game logged in `window`, read anew."""
    with closing(stream_window(conn, window)) as agents:
        return {
            (row.agent_id, call.system_prompt, call.user_prompt, call.response)
            for agent in agents
            for row in agent.rows
            for step in row.steps
            for call in step.llm_calls
        }


def _copy(conn: sa.Connection, names: ColumnNames, window: HourWindow) -> Generator[_Row]:
    """Stream the rows out. Left before the end, by `close` or an exception, psycopg cancels the query."""
    raw: Any = conn.connection.driver_connection  # in the transaction that `find_column_names` began
    cursor: psycopg.Cursor[Any]
    with raw.cursor() as cursor:
        cursor.adapters.register_loader("bytea", _zero_copy_loader())
        select = f"COPY ({select_window(names)}) TO STDOUT (FORMAT BINARY)"
        with cursor.copy(select, window_parameters(window)) as copy:
            copy.set_types(_WIRE_TYPES)
            yield from map(_Row._make, copy.rows())


@cache
def _zero_copy_loader() -> "type[Loader]":
    """A loader that copies nothing: the value is a view of the row's message."""
    from psycopg.adapt import Buffer, Loader
    from psycopg.pq import Format

    class ZeroCopyLoader(Loader):
        format = Format.BINARY

        def load(self, data: Buffer) -> Buffer:
            return data

    return ZeroCopyLoader


def _to_source_row(window_id: str, row: _Row) -> SourceRow | RowOutcome:
    """The row with its steps, or its outcome. A row without calls is decided later, by `_read_again_with_logs`."""
    metadata = parse_metadata(row.metadata_json)
    if (why := _find_exclusion(row, metadata)) is not None:
        return _set_aside(row, window_id, (RowStatus.EXCLUDED, why))
    if row.start_time is None:  # Python cannot hold it: see `queries._cast`
        return _set_aside(row, window_id, (RowStatus.QUARANTINED, RowReason.BAD_TIME))
    steps, outcome = _try_to_parse(row, partial(parse_steps, row.steps_json))
    if outcome is not None:
        return _set_aside(row, window_id, outcome)
    if acts_for_many(row.agent_id, row.final_pnl, steps, metadata):
        return _set_aside(row, window_id, (RowStatus.EXCLUDED, RowReason.MANY_CHARACTERS))
    return _build_source_row(row, window_id, row.start_time, steps, metadata)


def _find_exclusion(row: _Row, metadata: Json) -> RowReason | None:
    """Why a sound row does not train, or None. Where a database lacks the two flags, its rows do train.

    A writer's word stands in the columns or in the metadata, and `true`, `false` are the defaults of both: whichever of
    the two withholds the row was meant.
    """
    if (row.scenario_id or "").lower().startswith("benchmark"):
        return RowReason.BENCHMARK  # such rows carry is_training_data = true
    if row.is_evaluation or metadata.get("isEvaluation") is True:
        return RowReason.EVALUATION
    if row.is_training_data is False or metadata.get("isTrainingData") is False:
        return RowReason.NOT_TRAINING_DATA
    return None


def _try_to_parse(row: _Row, parse: Callable[[], tuple[Step, ...]]) -> tuple[tuple[Step, ...], _Outcome | None]:
    try:
        return parse(), None
    except BadRowError as e:
        return (), (RowStatus.QUARANTINED, e.reason)
    except Exception as e:  # noqa: BLE001  # whatever one row holds, its siblings are read
        logger.warning("quarantined id=%s error=%s", row.id, type(e).__name__)
        return (), (RowStatus.QUARANTINED, RowReason.BAD_SHAPE)


def _has_calls(steps: Sequence[Step]) -> bool:
    return any(s.llm_calls for s in steps)


def _split_usable(agent_id: str, own: Iterable[SourceRow | RowOutcome]) -> AgentRows:
    rows: list[SourceRow] = []
    set_aside: list[RowOutcome] = []
    for x in own:
        if isinstance(x, SourceRow):
            rows.append(x)
        else:
            set_aside.append(x)
    return AgentRows(agent_id=agent_id, rows=tuple(rows), set_aside=tuple(set_aside))


def _read_again_with_logs(
    conn: sa.Connection, names: ColumnNames, window_id: str, ids: Sequence[str]
) -> Iterator[SourceRow | RowOutcome]:
    """Read rows again by their ids, and give those without any call the calls that were logged for them."""
    rows = [_Row(*r) for r in conn.exec_driver_sql(select_rows(names), {"ids": list(ids)})]
    parsed = [(row, _to_source_row(window_id, row)) for row in rows]
    without_calls = [row.trajectory_id for row, x in parsed if isinstance(x, SourceRow) and not _has_calls(x.steps)]
    logged = _read_logged_calls(conn, names, without_calls)
    for row, x in parsed:
        if isinstance(x, RowOutcome) or _has_calls(x.steps):
            yield x
            continue
        steps, outcome = _try_to_parse(row, partial(_assign_calls, row, x.steps, logged.get(row.trajectory_id, ())))
        if outcome is None and not _has_calls(steps):
            outcome = (RowStatus.QUARANTINED, RowReason.NO_LLM_CALLS)
        yield replace(x, steps=steps) if outcome is None else _set_aside(row, window_id, outcome)


def _read_logged_calls(
    conn: sa.Connection, names: ColumnNames, trajectory_ids: list[str]
) -> Mapping[str, list[Mapping[str, Any]]]:
    by_trajectory: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    if trajectory_ids and names.llm_call_logs:
        for call in conn.exec_driver_sql(select_calls(names), {"trajectory_ids": trajectory_ids}).mappings():
            by_trajectory[call["trajectory_id"]].append(dict(call))
    return by_trajectory


def _assign_calls(row: _Row, steps: tuple[Step, ...], logs: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """Give each logged call to its step: by the step's own `stepId`, else by its number, which our recorders put after the
    trajectory's id, else to the last step begun before the call.
    """
    raw = list(enumerate(parse_json(row.steps_json)))
    by_id = {f"{row.trajectory_id}-{s.get('stepNumber', s.get('step_number', i))}": i for i, s in raw}
    by_id |= {s.get("stepId", s.get("step_id")): i for i, s in raw}
    calls: list[list[LlmCall]] = [[] for _ in steps]
    for log in logs:
        metadata = parse_metadata(log["metadata"])
        call = make_call(
            {
                "systemPrompt": log["system_prompt"],
                "userPrompt": log["user_prompt"],
                "response": log["response"],
                "purpose": log["purpose"],
                "modelVersion": metadata.get("modelVersion"),
                "finishReason": metadata.get("finishReason"),
                "temperature": log["temperature"],
                "maxTokens": log["max_tokens"],
                "completionTokens": log["completion_tokens"],
            }
        )
        if call is None:
            continue
        at = None if log["timestamp"] is None else _utc(log["timestamp"])
        begun = [i for i, s in enumerate(steps) if at is not None and s.at is not None and s.at <= at]
        calls[by_id.get(log["step_id"], begun[-1] if begun else 0)].append(call)
    return tuple(msgspec.structs.replace(s, llm_calls=tuple(c)) for s, c in zip(steps, calls, strict=True))


def _build_source_row(
    row: _Row, window_id: str, start_time: datetime, steps: tuple[Step, ...], metadata: Json
) -> SourceRow:
    archetype = row.archetype or metadata.get("archetype")
    return SourceRow(
        source_id=row.id,
        trajectory_id=row.trajectory_id,
        agent_id=row.agent_id,
        window_id=_add_scenario(window_id, row.scenario_id),
        start_at=_utc(start_time),
        end_at=None if row.end_time is None else _utc(row.end_time),
        final_pnl=parse_number(row.final_pnl),
        final_balance=parse_number(row.final_balance),
        steps=steps,
        metadata=metadata,
        archetype=archetype if isinstance(archetype, str) and archetype else None,
    )


@lru_cache(maxsize=256)
def _add_scenario(hour_id: str, scenario_id: str | None) -> str:
    """The id of the window that a row of an hour belongs to; the rows of an hour share few."""
    scenario = scenario_of(scenario_id)
    return str(HourWindow.parse(hour_id).of_scenario(scenario)) if scenario else hour_id


def _set_aside(row: _Row, window_id: str, outcome: _Outcome) -> RowOutcome:
    return RowOutcome(
        source_id=row.id,
        trajectory_id=row.trajectory_id,
        agent_id=row.agent_id,
        window_id=window_id,
        status=outcome[0],
        reason=outcome[1],
    )


def _utc(at: datetime) -> datetime:
    """The game's columns are in UTC, without a zone."""
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
