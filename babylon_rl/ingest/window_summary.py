"""`babylon_rl.window_summary`: the counts of each window, kept up to date as rows come, late ones too.

What belongs here: counting the rows, agents and outcomes of windows, and knowing which to count again. What the counts
mean for training is `pipeline/readiness.py`; what becomes of rows of hours that have not come, `pipeline/discover.py`.

Which windows to count again is known in one of two ways, depending on the database:

By triggers. Where the game's tables are ours, triggers write each window that a statement touched into a queue, in the
statement's own transaction. `refresh` takes entries out and counts their windows again, in one transaction. There is
no cursor that a late commit could be missed by: an entry is taken out only by the transaction that has counted it, and
one that is not committed yet is not there to be taken. Cost: that of the windows that changed.

By polling. A game database that is not ours gets no trigger. `refresh` counts the windows of the last `LATE_HOURS` before
the newest one again and compares fingerprints; older windows are closed, and only `full=True` or materializing
`raw_trajectories` looks at them. A rewrite that changes no length, number or flag of a row is not noticed either.
Cost: that of the rows of those hours, where the game has an index on its window ids and start times.

No hour later than `newest_window` is counted, because one row of the year 9999 would be the newest window for ever. By
triggers its entry stays in the queue until its hour has come; by polling its hour is not asked for until then.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from babylon_rl.database import tables as t
from babylon_rl.database.locks import Lock, lock_transaction
from babylon_rl.database.upsert import upsert
from babylon_rl.ingest.clock import find_outcome_clock
from babylon_rl.ingest.columns import ColumnNames, find_column_names
from babylon_rl.ingest.queries import NO_OUTCOMES, count_recent, count_windows, fingerprint_outcomes, window_lists
from babylon_rl.types import Json
from babylon_rl.windows import HOUR, HourWindow

logger = logging.getLogger(__name__)

LATE_HOURS: Final = 48
_FACTS: Final = ("rows", "agents", "avg_pnl_usd", "outcomes", "fingerprint", "outcome_fingerprint")
_CHUNK: Final = 2_000
_ID_LENGTH: Final = 16


def newest_window(now: datetime) -> HourWindow:
    """The newest hour whose rows are counted: a game's clock may be up to an hour ahead of ours."""
    return HourWindow.containing(now + HOUR)


def refresh(
    game: sa.Engine,
    ours: sa.Engine,
    *,
    now: datetime,
    windows: Sequence[HourWindow] | None = None,
    full: bool = False,
) -> int:
    """Bring the summary up to date.

    Args:
        game: The game's tables; only read.
        ours: Schema `babylon_rl`; the same engine where they share a database.
        now: Aware; hours after `newest_window(now)` are not counted.
        windows: Only these windows, whatever is queued.
        full: Poll every window there is, however old (no difference where changes are queued).

    Returns:
        How many windows were counted again.
    """
    with ours.begin() as own:
        # The lock comes first: a waiting refresh must not hold an old snapshot of what it will count.
        lock_transaction(own, Lock.WINDOW_SUMMARY, "all")
        if game is ours:
            return _refresh(own, own, newest_window(now), windows, full=full, has_triggers=_has_triggers(own))
        with game.connect() as conn:
            return _refresh(conn, own, newest_window(now), windows, full=full, has_triggers=False)


def _refresh(
    game: sa.Connection,
    own: sa.Connection,
    newest: HourWindow,
    windows: Sequence[HourWindow] | None,
    *,
    full: bool,
    has_triggers: bool,
) -> int:
    names, _ = find_outcome_clock(game, find_column_names(game))
    if windows is not None:
        ids = [str(w) for w in windows if w <= newest]
        touched = _dequeue(own, newest, ids) if has_triggers else None
        return _upsert_summary(own, _count(game, names, ids), touched)
    _empty_future_windows(own, newest, has_triggers=has_triggers)
    if has_triggers:
        touched = _dequeue(own, newest, None)
        return _upsert_summary(own, _count(game, names, sorted(touched)), touched)
    s = t.window_summary.c
    counted_last = None if full else own.scalar(sa.select(sa.func.max(s.window_id)).where(s.window_id <= str(newest)))
    first = None if counted_last is None else HourWindow.parse(counted_last).next(-LATE_HOURS)
    counted = _poll(game, names, first, newest)
    # A window that lost its last row is not in the result of that query.
    known = own.scalars(
        sa.select(s.window_id).where(
            s.window_id >= ("" if first is None else str(first)),
            s.window_id <= str(newest),
            sa.func.length(s.window_id) == _ID_LENGTH,
            s.rows > 0,
        )
    )
    gone = sorted(set(known) - {r["window_id"] for r in counted})
    return _upsert_summary(own, [*counted, *_count(game, names, gone)], None)


def count_changes(ours: sa.Engine, windows: Sequence[HourWindow]) -> dict[HourWindow, int]:
    """How often rows of each window were seen to change: rises with every late or rewritten row.

    Called before the rows are read, it never counts a change that they lack.
    """
    return _read_counts(ours, t.window_summary.c.changes, windows)


def count_outcome_changes(ours: sa.Engine, windows: Sequence[HourWindow]) -> dict[HourWindow, int]:
    """How often the outcomes of each window were seen to change: rises with every late or corrected one.

    Called before they are read, it never counts a change that the reading lacks.
    """
    return _read_counts(ours, t.window_summary.c.outcome_changes, windows)


def _read_counts(ours: sa.Engine, column: "sa.Column[int]", windows: Sequence[HourWindow]) -> dict[HourWindow, int]:
    c = t.window_summary.c
    query = sa.select(c.window_id, column).where(c.window_id.in_([str(w) for w in windows]))
    with ours.connect() as conn:
        counts = dict(conn.execute(query).tuples().all())
    return {w: counts.get(str(w), 0) for w in windows}


def may_have_future_rows(game: sa.Engine, ours: sa.Engine, newest: HourWindow) -> bool:
    """Whether hours after `newest` may have rows: what the queue says, and always yes where there is none."""
    if game is not ours:
        return True
    with ours.connect() as conn:
        if not _has_triggers(conn):
            return True
        return bool(conn.scalar(sa.select(sa.exists().where(~_has_come(t.row_changes, newest)))))


def _has_triggers(conn: sa.Connection) -> bool:
    return bool(
        conn.scalar(
            sa.text(
                "SELECT count(*) = 4 FROM pg_trigger WHERE tgrelid = to_regclass('trajectories') "
                "AND tgname LIKE 'babylon\\_rl\\_%' AND tgenabled <> 'D'"
            )
        )
    )


def _has_come(queue: sa.Table, newest: HourWindow) -> sa.ColumnElement[bool]:
    """Condition for entries up to `newest`. After the year 9999 an id is longer, and begins with a 1 again."""
    w = queue.c.window_id
    return sa.and_(w.collate("C") <= str(newest), sa.func.length(w) == _ID_LENGTH)


def _empty_future_windows(own: sa.Connection, newest: HourWindow, *, has_triggers: bool) -> None:
    """Take the rows out of windows that were counted although their hour has not come; they keep their `changes`.

    A clock that went back causes this too: such a window is counted again when its hour comes once more.
    """
    s = t.window_summary.c
    future = own.execute(sa.select(t.window_summary).where(s.window_id > str(newest), s.rows > 0)).mappings().all()
    _upsert_summary(own, [{**r, "rows": 0, "agents": 0, "avg_pnl_usd": None, "fingerprint": ""} for r in future], {})
    if future and has_triggers:
        own.execute(sa.insert(t.row_changes), [{"window_id": r["window_id"]} for r in future])


def _dequeue(own: sa.Connection, newest: HourWindow, ids: Sequence[str] | None) -> dict[str, bool]:
    """Take windows out of the queues. Returns each with whether its rows changed, or only its outcomes."""
    touched: dict[str, bool] = {}
    for queue in (t.outcome_changes, t.row_changes):
        statement = sa.delete(queue).where(_has_come(queue, newest)).returning(queue.c.window_id)
        if ids is not None:
            statement = statement.where(queue.c.window_id.in_(ids))
        touched |= dict.fromkeys(own.scalars(statement), queue is t.row_changes)
    return {w: rows for w, rows in touched.items() if w[:4] >= "1000"}  # triggers queue what is in no hour as year 1


def _count(game: sa.Connection, names: ColumnNames, ids: Sequence[str]) -> list[Json]:
    counted: list[Json] = []
    for i in range(0, len(ids), _CHUNK):
        chunk = window_lists([HourWindow.parse(w) for w in ids[i : i + _CHUNK]])
        counted += [_add_outcomes(r) for r in game.exec_driver_sql(count_windows(names), chunk).mappings()]
    return counted


def _poll(game: sa.Connection, names: ColumnNames, first: HourWindow | None, newest: HourWindow) -> list[Json]:
    since: Json = {"window_id": None if first is None else str(first), "start_at": None, "newest": str(newest)}
    if first is not None:
        since["start_at"] = first.start_at.replace(tzinfo=None)
    outcomes: dict[str, str] = {}  # window id → fingerprint
    if names.market_outcomes:
        outcomes = dict(game.exec_driver_sql(fingerprint_outcomes(names), since).tuples().all())
    rows = game.exec_driver_sql(count_recent(names), since).mappings()
    return [_add_outcomes({**r, "outcome_fingerprint": outcomes.get(r["window_id"], NO_OUTCOMES)}) for r in rows]


def _add_outcomes(counted: Mapping[Any, Any]) -> Json:
    return {**counted, "outcomes": counted["outcome_fingerprint"] != NO_OUTCOMES}


def _upsert_summary(own: sa.Connection, counted: Sequence[Json], touched: dict[str, bool] | None) -> int:
    """Write what was counted. `changes` rises where rows were seen to change or, polled, look different.

    `outcome_changes` rises where the outcomes look different: a statement that writes the same ones again is no change.
    """
    if not counted:
        return 0
    s = t.window_summary.c
    ids = [r["window_id"] for r in counted]
    before: dict[str, Any] = {}
    for row in own.execute(sa.select(t.window_summary).where(s.window_id.in_(ids))).mappings():
        before[row["window_id"]] = row
    rows = []
    for new in counted:
        old = before.get(new["window_id"])
        if touched is None:
            changed = old is None or old["fingerprint"] != new["fingerprint"]
        else:
            changed = touched.get(new["window_id"], False)
        if old is not None and not changed and all(old[f] == new[f] for f in _FACTS):
            continue
        changes, outcome_changes = (0, 0) if old is None else (old["changes"], old["outcome_changes"])
        rows.append(
            {
                **new,
                "changes": changes + changed,
                "outcome_changes": outcome_changes + _are_outcomes_changed(old, new),
            }
        )
    if not rows:
        return len(counted)
    upsert(own, t.window_summary, rows)
    moved: Counter[tuple[int, bool]] = Counter()
    for r in rows:
        moved[r["agents"], r["outcomes"]] += 1
        if (old := before.get(r["window_id"])) is not None:
            moved[old["agents"], old["outcomes"]] -= 1
    deltas = [{"agents": a, "outcomes": o, "windows": n} for (a, o), n in sorted(moved.items()) if n]
    upsert(own, t.window_counts, deltas, add=["windows"])
    logger.info("counted windows=%d changed=%d", len(counted), len(rows))
    return len(counted)


def _are_outcomes_changed(old: Mapping[str, Any] | None, new: Json) -> bool:
    if old is None:
        return bool(new["outcomes"])
    if old["outcomes"] != new["outcomes"]:
        return True
    before = old["outcome_fingerprint"]  # null: counted before there was one
    return before is not None and before != new["outcome_fingerprint"]
