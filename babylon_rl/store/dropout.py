"""Which windows dropout left out of a lineage; which to drop is computed in `grouping/dropout.py`."""

import logging
from collections.abc import Iterable

import sqlalchemy as sa

from babylon_rl.database import tables as t
from babylon_rl.database.locks import Lock, lock_transaction
from babylon_rl.grouping.dropout import bottom_k, dropout_count
from babylon_rl.store.row_outcomes import mark_dropped
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)


def drop_out(
    engine: sa.Engine, lineage: str, windows: Iterable[HourWindow], *, target: int | None, cap: float, seed: int
) -> frozenset[HourWindow]:
    """Decide, before they are judged, which of `windows` dropout leaves out; a window that was dropped stays dropped.

    Of all windows that have a group, `dropout_count` are dropped, those with the smallest hash. Windows
    that were judged or trained on stay in.

    Returns:
        Those of `windows` that are left out, now or since an earlier call.
    """
    by_id = {str(w): w for w in windows}
    with engine.begin() as conn:
        lock_transaction(conn, Lock.DROPOUT, lineage)
        d, c = t.dropped_windows.c, t.consumed_windows.c
        out = set(conn.scalars(sa.select(d.window_id).where(d.lineage == lineage)))
        if target is not None:
            grouped = set(conn.scalars(sa.select(t.contextualized_groups.c.window_id)))
            k = dropout_count(len(grouped), target=target, cap=cap)
            judged = set(conn.scalars(sa.select(t.window_judgments.c.window_id)))
            consumed = set(conn.scalars(sa.select(c.window_id).where(c.lineage == lineage)))
            due = (bottom_k(grouped, k, seed=seed) & by_id.keys()) - judged - consumed - out
            new = sorted(bottom_k(due, k - len(out), seed=seed))
            if new:
                conn.execute(sa.insert(t.dropped_windows), [{"lineage": lineage, "window_id": w} for w in new])
                mark_dropped(conn, new)
                logger.info("dropped out lineage=%s windows=%d of=%d", lineage, len(new), len(grouped))
            out |= set(new)
    return frozenset(w for name, w in by_id.items() if name in out)


def is_dropped(engine: sa.Engine, lineage: str, window: HourWindow) -> bool:
    """Whether dropout left a window out of a lineage."""
    c = t.dropped_windows.c
    query = sa.select(sa.exists().where(c.lineage == lineage, c.window_id == str(window)))
    with engine.connect() as conn:
        return bool(conn.scalar(query))
