"""All SQL that reads the game's tables, and the one rule of a row's window, in SQL and in Python.

What belongs here: statements built from the names in `ingest/columns.py`. They name their results in snake_case
whatever the database calls its columns, so no other module needs to know. Parsing what comes back is
`ingest/reader.py`.

A row's window is:
    1. its `window_id`, where that is a real hour: `2025-01-15T10:00`, or a successor's `2025-01-15-10`;
    2. else the UTC hour of `start_time`.
Never `scenario_id` (it may name a benchmark), never the hour of the end. Inside that hour it belongs to the scenario that
its `scenario_id` names; one that is an hour, in whatever spelling, a count of an agent's ticks (`autonomous-tick-7`), or
blank names none: it tells nothing that agents could share.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from babylon_rl.ingest.columns import COLUMN_TYPES, ColumnNames
from babylon_rl.windows import HourWindow

_LEAP_YEAR: Final = "([0-9][0-9](0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
_DATE: Final = (
    "("
    "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
    "|[0-9]{4}-(0[13-9]|1[0-2])-(29|30)"
    "|[0-9]{4}-(0[13578]|1[02])-31"
    f"|{_LEAP_YEAR}-02-29"
    ")"
)
# Read by PostgreSQL and by Python alike. No year below 1000: `strftime` writes such a year without its zeros.
VALID_WINDOW_ID: Final = f"^(?!0){_DATE}(T([01][0-9]|2[0-3]):00|-([01][0-9]|2[0-3]))$"
_VALID = re.compile(VALID_WINDOW_ID.removesuffix("$") + r"\Z")
# The writers put the hour there: of the start, of the end, with seconds or a zone, as `2025-01-13-14`, as a day.
_HOUR_LIKE: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T -][0-9]{2}(:[0-9]{2}){0,2}(\.[0-9]+)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)


_TICK_COUNT: Final = re.compile(r"(.*[-_ ])?tick[-_ ]?[0-9]+", re.IGNORECASE)


def window_of(window_id: str | None, start_at: datetime) -> HourWindow:
    """The window that a row belongs to: see the module's rule.

    Args:
        window_id: The row's own, whatever it holds.
        start_at: Aware; the row's `start_time`.
    """
    if window_id is not None and _VALID.match(window_id):
        hour = int(window_id[11:13])
        return HourWindow(datetime(int(window_id[:4]), int(window_id[5:7]), int(window_id[8:10]), hour, tzinfo=UTC))
    return HourWindow.containing(start_at)


def scenario_of(scenario_id: str | None) -> str:
    """The scenario that a row's `scenario_id` names, or empty text for none: see the module's rule."""
    name = (scenario_id or "").strip()
    return "" if _HOUR_LIKE.fullmatch(name) or _TICK_COUNT.fullmatch(name) else name


def _select_list(table: str, columns: Mapping[str, str]) -> str:
    """A select list that gives our names and types whatever the database has."""
    return ", ".join(
        f'{_cast(columns[ours], kind.rstrip("!"))} AS "{ours}"' for ours, kind in COLUMN_TYPES[table].items()
    )


def _cast(column: str, kind: str) -> str:
    """Null for an instant that Python cannot hold (`infinity`, BC, after 9999): one such value would fail the query."""
    if kind != "timestamp":
        return f"{column}::{kind}"
    at = f"{column}::timestamp"
    return f"CASE WHEN {at} >= '0001-01-01' AND {at} < '10000-01-01' THEN {at} END"


def window_expression(names: ColumnNames) -> str:
    """SQL text of a row's window id: the same rule as `window_of`. Longer than 16 letters after the year 9999."""
    w = names.trajectories["window_id"]
    return (
        f"CASE WHEN {w} ~ '{VALID_WINDOW_ID}' THEN {_normalise(w)} "
        f"ELSE {_hour_of(names.trajectories['start_time'])} END"
    )


def _normalise(window_id: str) -> str:
    return f"left({window_id}, 10) || 'T' || substr({window_id}, 12, 2) || ':00'"


def _hour_of(instant: str) -> str:
    return f'to_char({instant}, \'YYYY-MM-DD"T"HH24":00"\')'


def is_of_window(names: ColumnNames) -> str:
    """SQL condition for the rows of one window. Parameters: `window_id`, `other_id`, `start_at`, `end_at`.

    Both halves can use an index, which the bare `CASE` could not.
    """
    w, start = names.trajectories["window_id"], names.trajectories["start_time"]
    return (
        f"({w} IN (%(window_id)s, %(other_id)s) OR ({start} >= %(start_at)s AND {start} < %(end_at)s "
        f"AND ({w} IS NULL OR {w} !~ '{VALID_WINDOW_ID}')))"
    )


def select_window(names: ColumnNames) -> str:
    """All rows of one window, agent after agent, each in time order. Parameters: those of `is_of_window`."""
    c = names.trajectories
    return (
        f"SELECT {_select_list('trajectories', c)} FROM trajectories "  # noqa: S608  # constants of this module
        f"WHERE {is_of_window(names)} "
        f'ORDER BY {c["agent_id"]} COLLATE "C", {c["start_time"]}, {c["id"]} COLLATE "C"'
    )


def select_rows(names: ColumnNames) -> str:
    """Rows by their ids, in the order of `select_window`. Parameter: `ids`, an array."""
    c = names.trajectories
    return (
        f"SELECT {_select_list('trajectories', c)} FROM trajectories "  # noqa: S608  # constants of this module
        f"WHERE {c['id']} = ANY(%(ids)s) "
        f'ORDER BY {c["agent_id"]} COLLATE "C", {c["start_time"]}, {c["id"]} COLLATE "C"'
    )


def select_window_ids(names: ColumnNames) -> str:
    """Source ids of one window; no steps are read. Parameters: those of `is_of_window`."""
    c = names.trajectories
    return f'SELECT {c["id"]}::text AS id FROM trajectories WHERE {is_of_window(names)} ORDER BY {c["id"]} COLLATE "C"'  # noqa: S608


def select_row_by_id(names: ColumnNames) -> str:
    """Whose a row is and when it was, by its id or its trajectory id, the former first. Parameter: `name`.

    An instant that Python cannot hold is given as the nearest one that it can.
    """
    c = names.trajectories
    ids = ", ".join(f'{c[n]}::text AS "{n}"' for n in ("id", "trajectory_id", "agent_id", "window_id"))
    # greatest and least ignore nulls, so without the CASE an unknown end would become 9999-12-31.
    times = ", ".join(
        f"CASE WHEN {c[n]} IS NOT NULL THEN greatest(least({c[n]}::timestamp, '9999-12-31'), '0001-01-01') END AS \"{n}\""
        for n in ("start_time", "end_time")
    )
    return (
        f"SELECT {ids}, {times} FROM trajectories "  # noqa: S608  # constants of this module
        f"WHERE {c['id']} = %(name)s OR {c['trajectory_id']} = %(name)s ORDER BY {c['id']} = %(name)s DESC LIMIT 1"
    )


def select_calls(names: ColumnNames) -> str:
    """The logged calls of some trajectories, in time order. Parameter: `trajectory_ids`, an array."""
    c = names.llm_call_logs
    return (
        f"SELECT {_select_list('llm_call_logs', c)} FROM llm_call_logs "  # noqa: S608  # constants of this module
        f"WHERE {c['trajectory_id']} = ANY(%(trajectory_ids)s) "
        f'ORDER BY {c["trajectory_id"]}, {c["timestamp"]}, {c["call_id"]} COLLATE "C"'
    )


def select_outcomes(names: ColumnNames) -> str:
    """All rows of `market_outcomes` of one window, oldest first. Parameters: `window_id`, `other_id`."""
    c = names.market_outcomes
    return (
        f"SELECT {_select_list('market_outcomes', c)} FROM market_outcomes "  # noqa: S608  # constants of this module
        f"WHERE {c['window_id']} IN (%(window_id)s, %(other_id)s) "
        f'ORDER BY {c["created_at"]} NULLS FIRST, {c["id"]} COLLATE "C"'
    )


def _counts(names: ColumnNames, row: str) -> str:
    """The counts over a window's rows, whose alias is `row`. Of the steps only the size is read."""
    c = {ours: sql if sql.startswith("NULL") else f"{row}.{sql}" for ours, sql in names.trajectories.items()}
    trains = (
        f"coalesce({c['is_training_data']}, true) AND NOT coalesce({c['is_evaluation']}, false) "
        f"AND lower(left(coalesce({c['scenario_id']}, ''), 9)) <> 'benchmark'"
    )
    parts = ", ".join(f"coalesce({c[n]}::text, 'null')" for n in _FINGERPRINT)
    sizes = f"octet_length({c['steps_json']}::text), octet_length({c['metadata_json']}::text)"
    return (
        f"count({c['id']}) FILTER (WHERE {trains})::int AS rows, "
        f"count(DISTINCT {c['agent_id']}) FILTER (WHERE {trains})::int AS agents, "
        # A sum of absurd numbers overflows, and NaN is greater than any: neither may cost the window its counts.
        f"avg({c['final_pnl']}::float8) FILTER (WHERE {trains} AND abs({c['final_pnl']}::float8) < 1e15) AS avg_pnl_usd, "
        f"count({c['id']}) || ':' || coalesce(sum(hashtextextended(concat_ws('|', {parts}, {sizes}), 0)) "
        f"FILTER (WHERE {c['id']} IS NOT NULL), 0)::text "
        "AS fingerprint"
    )


_FINGERPRINT: Final = (
    "id",
    "agent_id",
    "window_id",
    "start_time",
    "scenario_id",
    "final_balance",
    "final_pnl",
    "is_training_data",
    "is_evaluation",
)


def count_windows(names: ColumnNames) -> str:
    """Counts of the windows given, each once, empty ones too. Parameters: `window_lists`."""
    c, o = names.trajectories, names.market_outcomes
    w, start = c["window_id"], f"r.{c['start_time']}"
    w = w if w.startswith("NULL") else f"r.{w}"
    outcomes = f"'{NO_OUTCOMES}'"
    if o:
        ours = _closed_outcomes(o, f"{o['window_id']} IN (w.id, w.other)", "w.id", "w.ends")
        outcomes = f"(SELECT {_OUTCOME_FINGERPRINT} FROM ({ours}) o)"  # noqa: S608
    return (
        f"SELECT w.id AS window_id, {_counts(names, 'r')}, {outcomes} AS outcome_fingerprint "  # noqa: S608
        "FROM unnest(%(ids)s::text[], %(others)s::text[], %(starts)s::timestamp[], %(ends)s::timestamp[]) "
        "AS w(id, other, starts, ends) LEFT JOIN LATERAL ("
        f"SELECT * FROM trajectories r WHERE {w} IN (w.id, w.other) OR ({start} >= w.starts AND {start} < w.ends "
        f"AND ({w} IS NULL OR {w} !~ '{VALID_WINDOW_ID}'))) r ON true "
        "GROUP BY w.id, w.other, w.ends"
    )


def count_recent(names: ColumnNames) -> str:
    """Counts of every window from one on to a last one, in one pass.

    Parameters: `newest`, the last window's id; `window_id` and `start_at` of the first, null for all windows.
    """
    c = names.trajectories
    mine = window_expression(names)
    return (
        f"SELECT {mine} AS window_id, {_counts(names, 'trajectories')} FROM trajectories "  # noqa: S608
        f"WHERE %(window_id)s::text IS NULL OR {c['window_id']} >= left(%(window_id)s::text, 10) "
        f"OR {c['start_time']} >= %(start_at)s::timestamp "
        f"GROUP BY 1 HAVING {_is_between(mine)}"
    )


def fingerprint_outcomes(names: ColumnNames) -> str:
    """The fingerprint of each window that has outcomes. Parameters: those of `count_recent`."""
    c = names.market_outcomes
    w = c["window_id"]
    mine = _normalise(w)
    # The day, because a shorter text is less in every collation, and so the index can be used.
    own = f"{w} >= left(coalesce(%(window_id)s::text, '1'), 10) AND {w} ~ '{VALID_WINDOW_ID}' AND {_is_between(mine)}"
    # CASE, because PostgreSQL may compute this before it looks whether the id is an hour.
    ends = f"CASE WHEN {w} ~ '{VALID_WINDOW_ID}' THEN ({mine})::timestamp + interval '1 hour' END"
    rows = _closed_outcomes(c, own, mine, ends)
    return f"SELECT win, {_OUTCOME_FINGERPRINT} FROM ({rows}) o GROUP BY 1"  # noqa: S608


def _is_between(window_id: str) -> str:
    """Compared as bytes: the form sorts as the time does, and `infinity` and the year 10000 have another length."""
    return (
        f'length({window_id}) = 16 AND ({window_id}) COLLATE "C" <= %(newest)s::text '
        f'AND (%(window_id)s::text IS NULL OR ({window_id}) COLLATE "C" >= %(window_id)s::text)'
    )


NO_OUTCOMES: Final = "0:0"
_OUTCOME_FINGERPRINT: Final = "count(*) || ':' || coalesce(sum(hashtextextended(facts, 0)), 0)::text"
# What `ingest/outcomes.py` reads of a row. Its id and time only decide which row of a market is the last.
_OUTCOME_FACTS: Final = (
    "stock_ticker",
    "start_price",
    "end_price",
    "change_percent",
    "news_events",
    "prediction_market_id",
    "question",
    "outcome",
    "final_probability",
)


def _closed_outcomes(c: Mapping[str, str], condition: str, window_id: str, ends: str) -> str:
    """The rows that `examine_outcomes` counts: `win` and `facts`, one text of all that matters of a row.

    `condition` chooses the rows; `window_id` and `ends` are SQL of their window and its end.
    """
    at = f"{c['created_at']}::timestamp"
    facts = ", ".join(f"{c[n]}::text" for n in _OUTCOME_FACTS)
    is_last = (
        f"row_number() OVER (PARTITION BY {window_id}, ltrim({c['stock_ticker']}, '$'), {c['prediction_market_id']} "
        f'ORDER BY {at} DESC NULLS LAST, {c["id"]} COLLATE "C" DESC) = 1'
    )
    return (
        f"SELECT {window_id} AS win, ROW({facts}, {is_last})::text AS facts FROM market_outcomes "  # noqa: S608
        f"WHERE {condition} AND coalesce({at} >= {ends}, true)"
    )


def _is_future(names: ColumnNames) -> str:
    """SQL condition for the rows of hours after one. Parameters: `newest`, its id, and `end_at`."""
    w, start = names.trajectories["window_id"], names.trajectories["start_time"]
    return (
        f"({w} >= left(%(newest)s::text, 10) AND {w} ~ '{VALID_WINDOW_ID}' "
        f'AND ({_normalise(w)}) COLLATE "C" > %(newest)s::text '
        f"OR {start} >= %(end_at)s::timestamp AND ({w} IS NULL OR {w} !~ '{VALID_WINDOW_ID}'))"
    )


def _future_window(names: ColumnNames) -> str:
    """The window id of such a row. An instant after 9999 is given as in `select_row_by_id`."""
    w, start = names.trajectories["window_id"], names.trajectories["start_time"]
    last = _hour_of(f"least({start}::timestamp, '9999-12-31')")
    return f"CASE WHEN {w} ~ '{VALID_WINDOW_ID}' THEN {_normalise(w)} ELSE {last} END"


def fingerprint_future_rows(names: ColumnNames) -> str:
    """One text that stands for all rows of hours after one, and their windows. Parameters: those of `_is_future`."""
    key = f"{names.trajectories['id']}::text || '|' || {_future_window(names)}"
    return (
        f"SELECT count(*) || ':' || coalesce(sum(hashtextextended({key}, 0)), 0)::text FROM trajectories "  # noqa: S608
        f"WHERE {_is_future(names)}"
    )


def select_future_rows(names: ColumnNames, *, of_ids: bool = False) -> str:
    """Whose the rows of hours after one are. Parameters: those of `_is_future`, and `ids` where only those are asked for."""
    c = names.trajectories
    columns = ", ".join(f'{c[n]}::text AS "{n}"' for n in ("id", "trajectory_id", "agent_id"))
    chosen = f"{c['id']} = ANY(%(ids)s) AND " if of_ids else ""
    return (
        f"SELECT {columns}, {_future_window(names)} AS window_id FROM trajectories "  # noqa: S608
        f"WHERE {chosen}{_is_future(names)}"
    )


def window_lists(windows: Sequence[HourWindow]) -> dict[str, object]:
    """The parameters of `count_windows`."""
    each = [window_parameters(w) for w in windows]
    names = {"ids": "window_id", "others": "other_id", "starts": "start_at", "ends": "end_at"}
    return {plural: [p[one] for p in each] for plural, one in names.items()}


def window_parameters(window: HourWindow) -> dict[str, object]:
    """The parameters of `select_window` and `select_outcomes`."""
    return {
        "window_id": str(window),
        "other_id": window.start_at.strftime("%Y-%m-%d-%H"),
        "start_at": window.start_at.replace(tzinfo=None),
        "end_at": window.end_at.replace(tzinfo=None),
    }
