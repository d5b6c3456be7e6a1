"""The results of asset checks, kept as data: a window with a failed required check does not train.

A result is about one group or one judgment. Of another group or judgment it says nothing: the view
`trainable_windows` counts only results about what is current.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from babylon_rl.common.canonical import to_json
from babylon_rl.database import tables as t
from babylon_rl.database.upsert import upsert
from babylon_rl.store.window_lock import lock_windows
from babylon_rl.types import CheckResult, Json
from babylon_rl.windows import HourWindow

_CHUNK: Final = 200  # windows locked and written at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSubject:
    """What checks of a window are about at a moment.

    Attributes:
        group: Version of its group, or of its rows where it has none; None: it was never read.
        judgment: Key of its current judgment.
    """

    group: str | None
    judgment: str | None


def read_check_subjects(engine: sa.Engine, windows: Sequence[HourWindow]) -> dict[HourWindow, CheckSubject]:
    """What a check that reads these windows from now on is about."""
    with engine.connect() as conn:
        return _read_subjects(conn, windows)


def write_check_results(
    engine: sa.Engine,
    check_name: str,
    results: Mapping[HourWindow, CheckResult],
    *,
    about: Mapping[HourWindow, str | None],
) -> set[HourWindow]:
    """Keep a check's results on windows, each in place of its earlier one.

    Args:
        engine: Schema `babylon_rl`.
        check_name: The check.
        results: What it found.
        about: The part of `read_check_subjects`, taken before the check read anything, that each is about; None: nothing.

    Returns:
        The windows whose result was kept. Of the others there is nothing to be about, or something else is current by now.
    """
    kept: set[HourWindow] = set()
    windows = sorted(w for w in results if about[w] is not None)
    for i in range(0, len(windows), _CHUNK):
        chunk = windows[i : i + _CHUNK]
        with lock_windows(engine, chunk) as conn:
            current = _read_subjects(conn, chunk)
            fitting = [w for w in chunk if about[w] in (current[w].group, current[w].judgment)]
            upsert(conn, t.check_results, [_make_row(w, check_name, results[w], about[w]) for w in fitting])
        kept.update(fitting)
    return kept


def _make_row(window: HourWindow, check_name: str, result: CheckResult, about: str | None) -> Json:
    return {
        "window_id": str(window),
        "check_name": check_name,
        "passed": result.passed,
        "facts": to_json(result.facts).decode(),
        "about": about,
    }


def _read_subjects(conn: sa.Connection, windows: Sequence[HourWindow]) -> dict[HourWindow, CheckSubject]:
    w, g, j = t.windows.c, t.contextualized_groups.c, t.window_judgments.c
    ids = [str(window) for window in windows]
    hours = sorted({str(window.hour) for window in windows})
    rows = dict(conn.execute(sa.select(w.window_id, w.data_version).where(w.window_id.in_(hours))).tuples().all())
    groups = dict(conn.execute(sa.select(g.window_id, g.data_version).where(g.window_id.in_(ids))).tuples().all())
    judged = dict(conn.execute(sa.select(j.window_id, j.judgment_key).where(j.window_id.in_(ids))).tuples().all())
    return {
        window: CheckSubject(group=groups.get(i, rows.get(str(window.hour))), judgment=judged.get(i))
        for window, i in zip(windows, ids, strict=True)
    }
