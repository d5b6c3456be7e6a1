"""What asset checks said of each window, kept as data that training obeys."""

from dataclasses import dataclass

import sqlalchemy as sa

from babylon_rl.common.canonical import from_json, to_json
from babylon_rl.database import tables as t
from babylon_rl.database.upsert import upsert
from babylon_rl.types import CheckResult, Json
from babylon_rl.windows import HourWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCheckResult:
    """An asset check's verdict on one window, as training reads it."""

    window_id: str
    check_name: str
    passed: bool
    facts: Json


def write_check_result(engine: sa.Engine, window: HourWindow, check_name: str, verdict: CheckResult) -> None:
    """Keep an asset check's verdict as data that training obeys."""
    row = {
        "window_id": str(window),
        "check_name": check_name,
        "passed": verdict.passed,
        "facts": to_json(verdict.facts).decode(),
    }
    with engine.begin() as conn:
        upsert(conn, t.check_results, [row])


def check_results_of(engine: sa.Engine, window: HourWindow) -> list[StoredCheckResult]:
    """All verdicts on a window, by check name."""
    c = t.check_results.c
    query = sa.select(c.window_id, c.check_name, c.passed, c.facts).where(c.window_id == str(window))
    with engine.connect() as conn:
        rows = conn.execute(query.order_by(c.check_name)).mappings().all()
    return [StoredCheckResult(**{**r, "facts": from_json(r["facts"], dict)}) for r in rows]
