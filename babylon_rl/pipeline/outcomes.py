"""`market_outcomes`: the truth about a closed window, for judges only."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from babylon_rl.ingest.computed_outcomes import read_computed_outcomes, sync_computed_outcomes
from babylon_rl.ingest.game_facts import GameFacts, compute_outcomes, find_game_facts
from babylon_rl.ingest.outcomes import (
    SyncReport,
    SyncStatus,
    compute_from_simulator,
    examine_outcomes,
    sync_window_outcomes,
)
from babylon_rl.ingest.window_summary import count_outcome_changes, count_with_outcomes, refresh
from babylon_rl.pipeline.each_window import is_of_one_window
from babylon_rl.pipeline.window_result import WindowResult
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.recorded import count_recorded
from babylon_rl.store.windows import Store
from babylon_rl.types import WindowOutcomes
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

_PATIENCE: Final = "an LLM judge judges such hours by P&L alone after BABYLON_OUTCOMES_PATIENCE hours"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomesSync:
    """What `sync_hours` did.

    Attributes:
        report: How many windows had which status.
        advice: What was looked for and what to do next, where nothing was achieved; else None.
    """

    report: SyncReport
    advice: str | None


def sync_hours(workspace: Workspace, *, hours: int) -> OutcomesSync:
    """Compute the outcomes of the `hours` last closed windows; the window of now is counted as open."""
    now, game, store = workspace.now(), workspace.game, workspace.store
    current = HourWindow.containing(now)
    windows = list(current.next(-hours).until(current))
    facts = find_game_facts(game)
    statuses = {w: _sync(w, game, store, facts, now=now, owns_game=workspace.owns_game) for w in windows}
    closed = [w for w, status in statuses.items() if status != "open"]
    refresh(game, store.engine, now=now, windows=closed)
    counts = Counter(statuses.values())
    without_facts = [w for w, status in statuses.items() if status == "no_facts"]
    report = SyncReport(
        written=counts["written"],
        unchanged=counts["unchanged"],
        open=counts["open"],
        no_facts=counts["no_facts"],
        known=count_with_outcomes(store.engine, without_facts),
    )
    logger.info("synced outcomes hours=%d written=%d unchanged=%d", hours, report.written, report.unchanged)
    achieved = report.written + report.unchanged + report.known
    return OutcomesSync(report=report, advice=None if achieved else _advise(workspace, facts, hours))


def _advise(workspace: Workspace, facts: GameFacts, hours: int) -> str:
    """Say what was looked for in hours of which nothing is known, and what to do."""
    counts = count_recorded(workspace.store.engine, workspace.settings.lineage, workspace.settings.training.min_agents)
    oldest = counts.oldest_without_outcomes
    elsewhere = ""
    if oldest is not None:
        now = HourWindow.containing(workspace.now())
        back = sum(1 for _ in HourWindow.parse(oldest).until(now)) - 1
        if back > hours:
            elsewhere = f"; the oldest recorded window without outcomes is {oldest}: --hours {back} looks at it too"
    if workspace.owns_game:
        return (
            f"no market has a price or a resolution in the last {hours} closed hours (looked at what the "
            f"simulator played){elsewhere or '; play some first: babylon-rl spawn-test-agents'}"
        )
    return f"{explain_missing_facts(facts, f'the last {hours} closed hours')}{elsewhere}"


def explain_uncomputable(workspace: Workspace, windows: Sequence[HourWindow]) -> str | None:
    """Why `sync-outcomes` could compute nothing for any of these windows of another's game; None: it can, or has to tell."""
    if workspace.owns_game:
        return None
    facts, now = find_game_facts(workspace.game), workspace.now()
    closed = [w for w in windows if w.closed_at(now)]
    if not closed:
        return "their hours are not over; run `babylon-rl check-windows` again when they are"
    for window in closed:
        if compute_outcomes(workspace.game, facts, window).known:
            return None
        with workspace.store.engine.connect() as conn:
            if compute_from_simulator(conn, window).known:
                return None
    return explain_missing_facts(facts, " and ".join(map(str, closed[:2])) + (" …" if len(closed) > 2 else ""))


def explain_missing_facts(facts: GameFacts, when: str) -> str:
    """Why no outcome of another's game can be computed for some hours, and what to do."""
    if facts.tables.has_sources:
        looked_at = ", ".join(table.sql for table in facts.tables.tables.values())
        return (
            f"the game holds no price and no resolution of {when}, and no row of market_outcomes written after them "
            f"(looked at {looked_at}); let the game run, or wait until it has written them; {_PATIENCE}"
        )
    return (
        f"nothing says what the markets did in {when}: {facts.tables.explain_absence()}, and market_outcomes has no row "
        "written after them; let the role of DATABASE_URL read the game's price tables, or run the game's own tracker "
        f"after each hour; {_PATIENCE}"
    )


def _sync(
    window: HourWindow, game: sa.Engine, store: Store, facts: GameFacts, *, now: datetime, owns_game: bool
) -> SyncStatus:
    """Compute a window's outcomes where they may be written: the simulator's into a game of ours, all others in our schema."""
    found: list[SyncStatus] = []
    if owns_game:
        with game.begin() as conn:
            found.append(sync_window_outcomes(conn, window, now=now))
    if facts.tables.has_sources or not owns_game:
        found.append(sync_computed_outcomes(game, store.engine, facts, window, now=now, with_simulator=not owns_game))
    order: tuple[SyncStatus, ...] = ("open", "written", "unchanged")
    return next((s for s in order if s in found), "no_facts")


def sync_windows(
    windows: Sequence[HourWindow],
    game: sa.Engine,
    store: Store,
    *,
    now: datetime,
    sync: bool,
    facts: GameFacts | None = None,
) -> dict[HourWindow, int]:
    """Compute the outcomes of many closed windows, and count the changes of all of them at once.

    Args:
        windows: Hours; of those still open nothing is computed.
        game: The game's tables.
        store: Where outcomes are kept.
        now: Aware.
        sync: Whether the game's `market_outcomes` are ours to write.
        facts: Of `game`; None: look them up.

    Returns:
        How often the outcomes of each window were seen to change. A window that raised is left out: its snapshot computes
        it again, and says why it cannot.
    """
    synced = []
    facts = facts or find_game_facts(game)
    for window in windows:
        try:
            _sync(window, game, store, facts, now=now, owns_game=sync)
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
    facts: GameFacts | None = None,
) -> WindowResult:
    """Keep a closed window's outcomes.

    Args:
        window: The hour.
        game: The game's tables.
        store: Where the outcomes are kept.
        now: Aware; an open hour has no outcomes.
        sync: Whether the game's `market_outcomes` are ours to write.
        changes_seen: Of `sync_windows`, for a window of many, which is computed then; None: compute and count now.
        facts: Of `game`, looked up once for many windows; None: look them up.
    """
    facts = facts or find_game_facts(game)
    if changes_seen is None:
        _sync(window, game, store, facts, now=now, owns_game=sync)
        # Counted before the outcomes are read, so that a change after the reading raises the count.
        refresh(game, store.engine, now=now, windows=[window])
        changes_seen = count_outcome_changes(store.engine, [window])[window]
    if not window.closed_at(now):
        version, changed = store.write_outcomes(WindowOutcomes(window_id=str(window)), changes_seen=changes_seen)
        return WindowResult(data_version=version, changed=changed, count=0, facts={"open": True})
    computed = read_computed_outcomes(store.engine, window)
    with game.connect() as conn:
        outcomes, faults = examine_outcomes(conn, window, computed=computed, names=facts.names)
    version, changed = store.write_outcomes(outcomes, changes_seen=changes_seen)
    shown = {} if computed is None else {"computed": len(computed.stocks) + len(computed.predictions)}
    return WindowResult(
        data_version=version,
        changed=changed,
        count=len(outcomes.stocks) + len(outcomes.predictions),
        facts={
            "stocks": len(outcomes.stocks),
            "predictions": len(outcomes.predictions),
            "overall_trend": outcomes.overall_trend,
            "volatility_pct": outcomes.volatility_pct,
            **shown,
            **faults.facts(),
        },
    )
