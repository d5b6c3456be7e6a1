"""All SQL that reads the game's tables, and the one rule of a row's window, in SQL and in Python.

What belongs here: column names in one mapping per spelling, and statements built from it. The
statements name their results in snake_case whatever the spelling, so nothing past this module knows
which one a database has. Parsing what comes back is `source/reader.py`.

A row's window is:
    1. its `window_id`, where that is a real hour: `2025-01-15T10:00`, or a successor's `2025-01-15-10`;
    2. else the UTC hour of `start_time`.
Never `scenario_id` (it may name a benchmark), never the hour of the end.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """How one kind of database writes the game's columns: our name → the name in SQL, quoted where it must be."""

    name: str
    trajectories: Mapping[str, str]
    llm_call_logs: Mapping[str, str]


_TRAJECTORY_COLUMNS: Final = (
    "id",
    "trajectory_id",
    "agent_id",
    "start_time",
    "end_time",
    "window_id",
    "scenario_id",
    "steps_json",
    "metadata_json",
    "final_balance",
    "final_pnl",
    "is_training_data",
    "is_evaluation",
)
_CALL_COLUMNS: Final = (
    "trajectory_id",
    "step_id",
    "call_id",
    "timestamp",
    "model",
    "purpose",
    "action_type",
    "system_prompt",
    "user_prompt",
    "response",
    "reasoning",
    "temperature",
    "max_tokens",
    "metadata",
)

SNAKE_CASE: Final = Spelling(
    name="snake_case",
    trajectories={c: c for c in _TRAJECTORY_COLUMNS},
    llm_call_logs={c: f'"{c}"' for c in _CALL_COLUMNS},
)


def window_expression(spelling: Spelling) -> str:
    """SQL text of a row's window id: the same rule as `window_of`."""
    w, start = spelling.trajectories["window_id"], spelling.trajectories["start_time"]
    return (
        f"CASE WHEN {w} ~ '{VALID_WINDOW_ID}' THEN left({w}, 10) || 'T' || substr({w}, 12, 2) || ':00' "
        f'ELSE to_char({start}, \'YYYY-MM-DD"T"HH24":00"\') END'
    )


def select_window(spelling: Spelling) -> str:
    """All rows of one window, in one order. Parameters: `window_id`, `other_id`, `start_at`, `end_at`.

    Both halves can use an index, which the bare `CASE` could not.
    """
    c = spelling.trajectories
    names = ", ".join(f"{_readable(ours, sql)} AS {ours}" for ours, sql in c.items())
    return (
        f"SELECT {names} FROM trajectories "  # noqa: S608  # constants of this module
        f"WHERE {c['window_id']} IN (%(window_id)s, %(other_id)s) "
        f"OR ({c['start_time']} >= %(start_at)s AND {c['start_time']} < %(end_at)s "
        f"AND ({c['window_id']} IS NULL OR {c['window_id']} !~ '{VALID_WINDOW_ID}')) "
        f'ORDER BY {c["start_time"]}, {c["id"]} COLLATE "C"'
    )


def select_calls(spelling: Spelling) -> str:
    """The logged calls of some trajectories, in time order. Parameter: `trajectory_ids`, an array."""
    c = spelling.llm_call_logs
    names = ", ".join(f"{_readable(ours, sql)} AS {ours}" for ours, sql in c.items())
    return (
        f"SELECT {names} FROM llm_call_logs "  # noqa: S608  # constants of this module
        f"WHERE {c['trajectory_id']} = ANY(%(trajectory_ids)s) "
        f'ORDER BY {c["trajectory_id"]}, {c["timestamp"]}, {c["call_id"]} COLLATE "C"'
    )


def _readable(ours: str, sql: str) -> str:
    """Null for an instant outside Python's calendar (`infinity`, BC, after 9999): one such value would fail the query."""
    if ours not in ("start_time", "end_time", "timestamp"):
        return sql
    return f"CASE WHEN {sql} >= '0001-01-01' AND {sql} < '10000-01-01' THEN {sql} END"


def window_parameters(window: HourWindow) -> dict[str, object]:
    """What `select_window` asks for."""
    return {
        "window_id": str(window),
        "other_id": window.start_at.strftime("%Y-%m-%d-%H"),
        "start_at": window.start_at.replace(tzinfo=None),
        "end_at": window.end_at.replace(tzinfo=None),
    }
