"""The results of asset checks, kept as data: a window with a failed required check does not train."""

import sqlalchemy as sa

from babylon_rl.common.canonical import to_json
from babylon_rl.database import tables as t
from babylon_rl.database.upsert import upsert
from babylon_rl.types import CheckResult
from babylon_rl.windows import HourWindow


def write_check_result(engine: sa.Engine, window: HourWindow, check_name: str, result: CheckResult) -> None:
    """Keep a check's result on a window, in place of its earlier one."""
    row = {
        "window_id": str(window),
        "check_name": check_name,
        "passed": result.passed,
        "facts": to_json(result.facts).decode(),
    }
    with engine.begin() as conn:
        upsert(conn, t.check_results, [row])
