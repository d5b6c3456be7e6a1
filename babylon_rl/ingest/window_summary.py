"""`babylon_rl.window_summary`: the counts of each window, kept up to date as rows come, late ones too.

What belongs here: counting the rows and agents of windows, and knowing which to count again. What the counts mean for
training is `pipeline/readiness.py`.

Which windows to count again is known in one of two ways, depending on the database:

By triggers. Where the game's tables are ours, triggers write each window that a statement touched into a queue, in the
statement's own transaction. `refresh` takes entries out and counts their windows again, in one transaction. There is
no cursor that a late commit could be missed by: an entry is taken out only by the transaction that has counted it, and
one that is not committed yet is not there to be taken. Cost: that of the windows that changed.

By polling. A game database that is not ours gets no trigger. `refresh` counts the windows of the last `LATE_HOURS` before
the newest one again and compares fingerprints; older windows are closed, and only `full=True` or materializing
`raw_trajectories` looks at them. A rewrite that changes no length, number or flag of a row is not noticed either.
Cost: that of the rows of those hours, where the game has an index on its window ids and start times.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import UTC
from typing import Any, Final

import sqlalchemy as sa

from babylon_rl.database import tables as t
from babylon_rl.database.locks import Lock, lock_transaction
from babylon_rl.database.upsert import upsert
from babylon_rl.ingest.columns import ColumnNames, find_column_names
from babylon_rl.ingest.queries import count_recent, count_windows, select_outcome_windows, window_lists
from babylon_rl.types import Json
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

LATE_HOURS: Final = 48
_FACTS: Final = ("rows", "agents", "avg_pnl_usd", "outcomes", "fingerprint")
_CHUNK: Final = 2_000


def refresh(
    game: sa.Engine, ours: sa.Engine, *, windows: Sequence[HourWindow] | None = None, full: bool = False
) -> int:
    """Bring the summary up to date.

    Args:
        game: The game's tables; only read.
        ours: Schema `babylon_rl`; the same engine where they share a database.
        windows: Only these windows, whatever is queued.
        full: Poll every window there is, however old (no difference where changes are queued).

    Returns:
        How many windows were counted again.
    """
    with ours.begin() as own:
        # The lock comes first: a waiting refresh must not hold an old snapshot of what it will count.
        lock_transaction(own, Lock.WINDOW_SUMMARY, "all")
        if game is ours:
            return _refresh(own, own, windows, full=full, has_triggers=_has_triggers(own))
        with game.connect() as conn:
            return _refresh(conn, own, windows, full=full, has_triggers=False)


def _refresh(
    game: sa.Connection, own: sa.Connection, windows: Sequence[HourWindow] | None, *, full: bool, has_triggers: bool
) -> int:
    names = find_column_names(game)
    if windows is not None:
        ids = [str(w) for w in windows]
        touched = _dequeue(own, ids) if has_triggers else None
        return _upsert_summary(own, _count(game, names, ids), touched)
    if has_triggers:
        touched = _dequeue(own, None)
        return _upsert_summary(own, _count(game, names, sorted(touched)), touched)
    newest = None if full else own.scalar(sa.select(sa.func.max(t.window_summary.c.window_id)))
    first = None if newest is None else HourWindow.parse(newest).next(-LATE_HOURS)
    counted = _poll(game, names, first)
    # A window that lost its last row is not in the result of that query.
    s = t.window_summary.c
    known = own.scalars(sa.select(s.window_id).where(s.window_id >= ("" if first is None else str(first)), s.rows > 0))
    gone = sorted(set(known) - {r["window_id"] for r in counted})
    return _upsert_summary(own, [*counted, *_count(game, names, gone)], None)


def count_changes(ours: sa.Engine, windows: Sequence[HourWindow]) -> int:
    """How often rows of `windows` were seen to change, all together: rises with every late or rewritten row.

    Called before the rows are read, it never counts a change that they lack.
    """
    c = t.window_summary.c
    query = sa.select(sa.func.coalesce(sa.func.sum(c.changes), 0)).where(c.window_id.in_([str(w) for w in windows]))
    with ours.connect() as conn:
        return int(conn.scalar(query) or 0)


def _has_triggers(conn: sa.Connection) -> bool:
    return bool(
        conn.scalar(
            sa.text(
                "SELECT count(*) = 4 FROM pg_trigger WHERE tgrelid = to_regclass('trajectories') "
                "AND tgname LIKE 'babylon\\_rl\\_%' AND tgenabled <> 'D'"
            )
        )
    )


def _dequeue(own: sa.Connection, ids: Sequence[str] | None) -> dict[str, bool]:
    """Take windows out of the queues. Returns each with whether its rows changed, or only its outcomes."""
    touched: dict[str, bool] = {}
    for queue in (t.outcome_changes, t.row_changes):
        statement = sa.delete(queue).returning(queue.c.window_id)
        if ids is not None:
            statement = statement.where(queue.c.window_id.in_(ids))
        touched |= dict.fromkeys(own.scalars(statement), queue is t.row_changes)
    return {w: rows for w, rows in touched.items() if w[:4] >= "1000"}  # triggers queue what is in no hour as year 1


def _count(game: sa.Connection, names: ColumnNames, ids: Sequence[str]) -> list[Json]:
    counted: list[Json] = []
    for i in range(0, len(ids), _CHUNK):
        chunk = window_lists([HourWindow.parse(w) for w in ids[i : i + _CHUNK]])
        counted += [dict(r) for r in game.exec_driver_sql(count_windows(names), chunk).mappings()]
    return counted


def _poll(game: sa.Connection, names: ColumnNames, first: HourWindow | None) -> list[Json]:
    since: Json = {"window_id": None if first is None else str(first), "start_at": None}
    if first is not None:
        since["start_at"] = first.start_at.replace(tzinfo=None)
    with_outcomes: set[str] = set()
    if names.market_outcomes:
        for window_id, last in game.exec_driver_sql(select_outcome_windows(names), since):
            window = HourWindow.parse(window_id)
            if last is None or window.closed_at(last.replace(tzinfo=UTC)):
                with_outcomes.add(window_id)
    rows = game.exec_driver_sql(count_recent(names), since).mappings()
    return [{**r, "outcomes": r["window_id"] in with_outcomes} for r in rows]


def _upsert_summary(own: sa.Connection, counted: Sequence[Json], touched: dict[str, bool] | None) -> int:
    """Write what was counted. `changes` rises where rows were seen to change or, polled, look different."""
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
        rows.append({**new, "changes": (0 if old is None else old["changes"]) + changed})
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
