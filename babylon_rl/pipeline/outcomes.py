"""`market_outcomes`: the truth about a closed window, for judges only."""

from datetime import datetime

import sqlalchemy as sa

from babylon_rl.ingest.outcomes import examine_outcomes, sync_window_outcomes
from babylon_rl.ingest.window_summary import count_outcome_changes, refresh
from babylon_rl.pipeline.window_result import WindowResult
from babylon_rl.store.windows import Store
from babylon_rl.types import WindowOutcomes
from babylon_rl.windows import HourWindow


def snapshot_outcomes(window: HourWindow, game: sa.Engine, store: Store, *, now: datetime, sync: bool) -> WindowResult:
    """Keep a closed window's outcomes; `sync` first computes them from the world's facts (our own database only)."""
    is_open = not window.closed_at(now)
    if sync and not is_open:
        with game.begin() as conn:
            sync_window_outcomes(conn, window, now=now)
    # Counted before the outcomes are read, so that a change after the reading raises the count.
    refresh(game, store.engine, now=now, windows=[window])
    changes_seen = count_outcome_changes(store.engine, window)
    if is_open:
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
