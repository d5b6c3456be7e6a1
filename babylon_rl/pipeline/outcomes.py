"""`market_outcomes`: the truth about a closed window, for judges only."""

import logging
from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from babylon_rl.ingest.outcomes import examine_outcomes, sync_window_outcomes
from babylon_rl.ingest.window_summary import count_outcome_changes, refresh
from babylon_rl.pipeline.each_window import is_of_one_window
from babylon_rl.pipeline.window_result import WindowResult
from babylon_rl.store.windows import Store
from babylon_rl.types import WindowOutcomes
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)


def sync_windows(
    windows: Sequence[HourWindow], game: sa.Engine, store: Store, *, now: datetime, sync: bool
) -> dict[HourWindow, int]:
    """Compute the outcomes of many closed windows, and count the changes of all of them at once.

    Returns:
        How often the outcomes of each window were seen to change. A window that raised is left out: its snapshot computes
        it again, and says why it cannot.
    """
    synced = []
    for window in windows:
        try:
            if sync and window.closed_at(now):
                with game.begin() as conn:
                    sync_window_outcomes(conn, window, now=now)
        except Exception as e:
            if not is_of_one_window(e):
                raise
            # Raised again where it is that window's own failure.
            logger.info("could not compute outcomes window=%s error=%s", window, type(e).__name__)
        else:
            synced.append(window)
    refresh(game, store.engine, now=now, windows=synced)
    return count_outcome_changes(store.engine, synced)


def snapshot_outcomes(
    window: HourWindow,
    game: sa.Engine,
    store: Store,
    *,
    now: datetime,
    sync: bool,
    changes_seen: int | None = None,
) -> WindowResult:
    """Keep a closed window's outcomes.

    Args:
        window: The hour.
        game: The game's tables.
        store: Where the outcomes are kept.
        now: Aware; an open hour has no outcomes.
        sync: First compute them from the world's facts (our own database only).
        changes_seen: Of `sync_windows`, for a window of many, which is computed then; None: compute and count now.
    """
    if changes_seen is None:
        if sync and window.closed_at(now):
            with game.begin() as conn:
                sync_window_outcomes(conn, window, now=now)
        # Counted before the outcomes are read, so that a change after the reading raises the count.
        refresh(game, store.engine, now=now, windows=[window])
        changes_seen = count_outcome_changes(store.engine, [window])[window]
    if not window.closed_at(now):
        version, changed = store.write_outcomes(WindowOutcomes(window_id=str(window)), changes_seen=changes_seen)
        return WindowResult(data_version=version, changed=changed, count=0, facts={"open": True})
    with game.connect() as conn:
        outcomes, faults = examine_outcomes(conn, window)
    version, changed = store.write_outcomes(outcomes, changes_seen=changes_seen)
    return WindowResult(
        data_version=version,
        changed=changed,
        count=len(outcomes.stocks) + len(outcomes.predictions),
        facts={
            "stocks": len(outcomes.stocks),
            "predictions": len(outcomes.predictions),
            "overall_trend": outcomes.overall_trend,
            "volatility_pct": outcomes.volatility_pct,
            **faults.facts(),
        },
    )
