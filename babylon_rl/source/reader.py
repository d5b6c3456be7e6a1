"""Rows of one window, out of the game's tables: each either usable, or set aside with its reason.

What belongs here: running the statements of `source/sql.py` and deciding about whole rows. What JSON
means is `source/steps.py`; joining rows of one agent is `source/stitching.py`. A bad row is data: it
never raises, and never costs its siblings.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import sqlalchemy as sa

from babylon_rl.source.sql import SNAKE_CASE, select_calls, select_window, window_of, window_parameters
from babylon_rl.source.steps import BadRowError, make_call, number, parse_json, parse_metadata, parse_steps
from babylon_rl.types import Disposition, LlmCall, SourceRow, Step
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

_Row = Mapping[str, Any]
_End = tuple[str, str]  # disposition, reason

__all__ = ["logged_messages", "read_window", "window_of"]


def read_window(conn: sa.Connection, window: HourWindow) -> tuple[list[SourceRow], list[Disposition]]:
    """Read every row of `window`, by start time and id.

    Steps without any logged call take theirs from `llm_call_logs`, when no step of the row has one.

    Returns:
        The usable rows, and the others: `excluded` (`benchmark`, `evaluation`, `not_training_data`) or
        `quarantined` (`no_steps`, `no_llm_calls`, `bad_json`, `lone_surrogate`, `bad_shape`, `bad_time`). Together
        they are all rows of the window, each once.
    """
    found = _select(conn, select_window(SNAKE_CASE), window_parameters(window))
    ends: dict[str, _End] = {}
    steps_of: dict[str, tuple[Step, ...]] = {}
    for row in found:
        if (why := _excluded(row)) is not None:
            ends[row["id"]] = ("excluded", why)
            continue
        if row["start_time"] is None:
            ends[row["id"]] = ("quarantined", "bad_time")
            continue
        steps, end = _attempt(row, partial(parse_steps, row["steps_json"]))
        if end is not None:
            ends[row["id"]] = end
        else:
            steps_of[row["id"]] = steps

    silent = [r for r in found if r["id"] in steps_of and not _spoken(steps_of[r["id"]])]
    logged = _logged_calls(conn, silent)
    for row in silent:
        calls = logged[row["trajectory_id"]]
        steps, end = _attempt(row, partial(_with_calls, row, steps_of[row["id"]], calls))
        if end is None and not _spoken(steps):
            end = ("quarantined", "no_llm_calls")
        if end is not None:
            ends[row["id"]] = end
        else:
            steps_of[row["id"]] = steps

    rows: list[SourceRow] = []
    aside: list[Disposition] = []
    for row in found:
        if (end := ends.get(row["id"])) is None:
            rows.append(_source_row(row, window, steps_of[row["id"]]))
        else:
            aside.append(_disposition(row, window, end))
    reasons = dict(Counter(d.reason for d in aside))
    logger.info("read window=%s rows=%d usable=%d aside=%s", window, len(found), len(rows), reasons)
    return rows, aside


def logged_messages(conn: sa.Connection, window: HourWindow) -> set[tuple[str, str, str, str]]:
    """Every (agent, system prompt, user prompt, response) that the game logged in `window`, read anew."""
    rows, _ = read_window(conn, window)
    return {
        (row.agent_id, call.system_prompt, call.user_prompt, call.response)
        for row in rows
        for step in row.steps
        for call in step.llm_calls
    }


def _excluded(row: _Row) -> str | None:
    """Why a sound row is none of ours, if so."""
    if (row["scenario_id"] or "").lower().startswith("benchmark"):
        return "benchmark"  # such rows carry is_training_data = true
    if row["is_evaluation"]:
        return "evaluation"
    return None if row["is_training_data"] else "not_training_data"


def _attempt(row: _Row, parse: Callable[[], tuple[Step, ...]]) -> tuple[tuple[Step, ...], _End | None]:
    try:
        return parse(), None
    except BadRowError as e:
        return (), ("quarantined", e.reason)
    except Exception as e:  # noqa: BLE001  # whatever one row holds, its siblings are read
        logger.warning("quarantined id=%s error=%s", row["id"], type(e).__name__)
        return (), ("quarantined", "bad_shape")


def _spoken(steps: Sequence[Step]) -> bool:
    return any(s.llm_calls for s in steps)


def _select(conn: sa.Connection, statement: str, parameters: dict[str, Any]) -> list[_Row]:
    return [dict(r) for r in conn.exec_driver_sql(statement, parameters).mappings()]


def _logged_calls(conn: sa.Connection, rows: Sequence[_Row]) -> Mapping[str, list[_Row]]:
    by_trajectory: defaultdict[str, list[_Row]] = defaultdict(list)
    if rows:
        for call in _select(conn, select_calls(SNAKE_CASE), {"trajectory_ids": [r["trajectory_id"] for r in rows]}):
            by_trajectory[call["trajectory_id"]].append(call)
    return by_trajectory


def _with_calls(row: _Row, steps: tuple[Step, ...], logs: Sequence[_Row]) -> tuple[Step, ...]:
    """Give each logged call to its step: by the step's own `stepId`, else to the last step begun before it."""
    names = {s.get("stepId"): i for i, s in enumerate(parse_json(row["steps_json"]))}
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


def _source_row(row: _Row, window: HourWindow, steps: tuple[Step, ...]) -> SourceRow:
    return SourceRow(
        source_id=row["id"],
        trajectory_id=row["trajectory_id"],
        agent_id=row["agent_id"],
        window_id=str(window),
        start_at=_utc(row["start_time"]),
        end_at=None if row["end_time"] is None else _utc(row["end_time"]),
        final_pnl=number(row["final_pnl"]),
        final_balance=number(row["final_balance"]),
        steps=steps,
        metadata=parse_metadata(row["metadata_json"]),
    )


def _disposition(row: _Row, window: HourWindow, end: _End) -> Disposition:
    return Disposition(
        source_id=row["id"],
        trajectory_id=row["trajectory_id"],
        agent_id=row["agent_id"],
        window_id=str(window),
        disposition=end[0],
        reason=end[1],
    )


def _utc(at: datetime) -> datetime:
    """The game's columns are UTC without saying so."""
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
