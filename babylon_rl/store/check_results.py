"""The results of asset checks, kept as data: a window with a failed required check does not train.

A result is about one group or one judgment. Of another group or judgment it says nothing: the view
`trainable_windows` counts only results about what is current.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from babylon_rl.common.canonical import to_json
from babylon_rl.database import tables as t
from babylon_rl.database.upsert import upsert
from babylon_rl.store.window_lock import lock_window
from babylon_rl.types import CheckResult
from babylon_rl.windows import HourWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSubject:
    """What checks of a window are about at a moment.

    Attributes:
        group: Version of its group, or of its rows where it has none; None: it was never read.
        judgment: Key of its current judgment.
    """

    group: str | None
    judgment: str | None


def read_check_subject(engine: sa.Engine, window: HourWindow) -> CheckSubject:
    """What a check that reads the window from now on is about."""
    with engine.connect() as conn:
        return _read_subject(conn, str(window))


def write_check_result(
    engine: sa.Engine, window: HourWindow, check_name: str, result: CheckResult, *, about: str | None
) -> bool:
    """Keep a check's result on a window, in place of its earlier one.

    Args:
        engine: Schema `babylon_rl`.
        window: The hour.
        check_name: The check.
        result: What it found.
        about: The part of `read_check_subject`, taken before the check read anything, that it is about; None: nothing.

    Returns:
        False when nothing was kept: there is nothing to be about, or something else is current by now.
    """
    if about is None:
        return False
    row = {
        "window_id": str(window),
        "check_name": check_name,
        "passed": result.passed,
        "facts": to_json(result.facts).decode(),
        "about": about,
    }
    with lock_window(engine, window) as conn:
        current = _read_subject(conn, str(window))
        if about not in (current.group, current.judgment):
            return False
        upsert(conn, t.check_results, [row])
    return True


def _read_subject(conn: sa.Connection, window_id: str) -> CheckSubject:
    w, g, j = t.windows.c, t.contextualized_groups.c, t.window_judgments.c
    group = sa.select(g.data_version).where(g.window_id == window_id).scalar_subquery()
    rows = sa.select(w.data_version).where(w.window_id == window_id).scalar_subquery()
    judgment = sa.select(j.judgment_key).where(j.window_id == window_id).scalar_subquery()
    found = conn.execute(sa.select(sa.func.coalesce(group, rows).label("group"), judgment.label("judgment"))).one()
    return CheckSubject(group=found.group, judgment=found.judgment)
