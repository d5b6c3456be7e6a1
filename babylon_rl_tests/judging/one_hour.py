"""One hour prepared, judged and looked at without Dagster, over rows and outcomes that a test wrote itself."""

import asyncio
from datetime import datetime

import sqlalchemy as sa

from babylon_rl.judging.judge import Judge
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.pipeline.outcomes import snapshot_outcomes
from babylon_rl.pipeline.score import score_windows
from babylon_rl.pipeline.window_result import WindowResult
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.eligibility import WindowState
from babylon_rl.types import Judgment
from babylon_rl.windows import HourWindow
from babylon_rl_tests.played import verify

WINDOW = HourWindow.parse("2025-01-15T10:00")


def write_outcome(workspace: Workspace, at: datetime) -> None:
    """The game's own row about one market of the hour, written at an instant."""
    with workspace.game.begin() as conn:
        conn.execute(
            sa.text("""INSERT INTO market_outcomes (id, window_id, stock_ticker, start_price, end_price, created_at)
                       VALUES ('1', :w, 'BTC', 100, 110, :at)"""),
            {"w": str(WINDOW), "at": at.replace(tzinfo=None)},
        )


def prepare(workspace: Workspace, *, min_agents: int = 5) -> None:
    """Every stage before the judge; nobody computes outcomes."""
    ingest_window(WINDOW, workspace.game, workspace.store)
    snapshot_outcomes(WINDOW, workspace.game, workspace.store, now=workspace.now(), sync=False)
    group_window(WINDOW, workspace.store, min_agents=min_agents)


def judge_window(workspace: Workspace, judge: Judge, *, unattended: bool = False) -> WindowResult:
    """Score the hour, then run every check."""
    scored = asyncio.run(score_windows(workspace, judge, [WINDOW], unattended=unattended))
    verify(workspace, WINDOW)
    return scored[WINDOW]


def state(workspace: Workspace) -> WindowState:
    [found] = workspace.ledger.eligibility.states([WINDOW])
    return found


def current(workspace: Workspace) -> Judgment:
    """The judgment that counts now."""
    judgment = workspace.store.judgment(WINDOW)
    assert judgment is not None
    return judgment
