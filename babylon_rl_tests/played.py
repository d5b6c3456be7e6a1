"""Windows played and judged by the real code, without Dagster: rows, outcomes, groups, scores and check results."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from babylon_rl.judging.hindsight_judge import HindsightJudge
from babylon_rl.pipeline.checks import CHECKS, run_check
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.pipeline.outcomes import snapshot_outcomes
from babylon_rl.pipeline.score import score_windows
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.simulator.spawn import AgentLineup, spawn
from babylon_rl.windows import HourWindow

FIRST = HourWindow.parse("2025-01-15T00:00")
NOW = datetime(2025, 2, 1, tzinfo=UTC)


def hours(count: int, first: HourWindow = FIRST) -> list[HourWindow]:
    return [first.next(i) for i in range(count)]


def play(
    workspace: Workspace,
    windows: Sequence[HourWindow],
    *,
    agents: int = 6,
    policy: str = "habits",
    stand_in: bool = False,
) -> None:
    lineup = AgentLineup(learners=agents, policy=policy, stand_in=stand_in)
    spawn(workspace.game, list(windows), lineup, seed=1)


def prepare(workspace: Workspace, window: HourWindow, *, min_agents: int = 5) -> None:
    """Run every stage before the judge."""
    ingest_window(window, workspace.game, workspace.store)
    snapshot_outcomes(window, workspace.game, workspace.store, now=NOW, sync=True)
    group_window(window, workspace.store, min_agents=min_agents)


def judge(workspace: Workspace, windows: Sequence[HourWindow], *, concurrency: int = 8) -> None:
    """Score the windows, then run every check."""
    asyncio.run(score_windows(workspace, HindsightJudge(), windows, concurrency=concurrency))
    for w in windows:
        verify(workspace, w)


def verify(workspace: Workspace, window: HourWindow) -> None:
    for check in CHECKS:
        run_check(check, [window], workspace)


def play_and_judge(workspace: Workspace, windows: Sequence[HourWindow], *, agents: int = 6) -> None:
    play(workspace, windows, agents=agents, stand_in=True)
    for w in windows:
        prepare(workspace, w)
    judge(workspace, windows)
