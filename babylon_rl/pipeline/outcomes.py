"""`market_outcomes`: the truth about a closed window, for judges only."""

from datetime import datetime

import sqlalchemy as sa

from babylon_rl.ingest.outcomes import examine_outcomes, sync_window_outcomes
from babylon_rl.pipeline.window_result import WindowResult
from babylon_rl.store.windows import Store
from babylon_rl.types import WindowOutcomes
from babylon_rl.windows import HourWindow


def snapshot_outcomes(window: HourWindow, game: sa.Engine, store: Store, *, now: datetime, sync: bool) -> WindowResult:
    """Keep a closed window's outcomes; `sync` first computes them from the world's facts (our own database only)."""
    if not window.closed_at(now):
        version, changed = store.write_outcomes(WindowOutcomes(window_id=str(window)))
        return WindowResult(data_version=version, changed=changed, count=0, facts={"open": True})
    with game.begin() as conn:
        if sync:
            sync_window_outcomes(conn, window, now=now)
        outcomes, faults = examine_outcomes(conn, window)
    version, changed = store.write_outcomes(outcomes)
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
