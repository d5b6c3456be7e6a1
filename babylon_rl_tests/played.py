"""Windows that were really played and judged, without Dagster: rows, outcomes, groups, scores and verdicts."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from babylon_rl.judging.hindsight_judge import HindsightJudge
from babylon_rl.pipeline import checks
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.pipeline.outcomes import snapshot_outcomes
from babylon_rl.pipeline.score import score_windows
from babylon_rl.pipeline.workspace import REQUIRED_CHECKS, Workspace
from babylon_rl.simulator.spawn import AgentLineup, spawn
from babylon_rl.store.check_results import write_check_result
from babylon_rl.store.row_outcomes import row_outcomes_of
from babylon_rl.windows import HourWindow

FIRST = HourWindow.parse("2025-01-15T00:00")
NOW = datetime(2025, 2, 1, tzinfo=UTC)


def hours(count: int, first: HourWindow = FIRST) -> list[HourWindow]:
    return [first.next(i) for i in range(count)]


def play(workspace: Workspace, windows: Sequence[HourWindow], *, agents: int = 6, policy: str = "habits") -> None:
    spawn(workspace.game, list(windows), AgentLineup(learners=agents, policy=policy), seed=1)


def prepare(workspace: Workspace, window: HourWindow, *, min_agents: int = 5) -> None:
    """Everything before the judge."""
    ingest_window(window, workspace.game, workspace.store)
    snapshot_outcomes(window, workspace.game, workspace.store, now=NOW, sync=True)
    group_window(window, workspace.store, min_agents=min_agents)


def judge(workspace: Workspace, windows: Sequence[HourWindow], *, concurrency: int = 8) -> None:
    """Scores, then the verdict of every required check."""
    asyncio.run(score_windows(windows, workspace.store, HindsightJudge(), concurrency=concurrency))
    for w in windows:
        verify(workspace, w)


def verify(workspace: Workspace, window: HourWindow) -> None:
    store = workspace.store
    group, judgment = store.group(window), store.judgment(window)
    with workspace.game.connect() as conn:
        verdicts = {
            "groups_have_enough_agents": checks.enough_agents(group, store.trajectories(window)),
            "groups_hold_only_what_was_logged": checks.only_what_was_logged(
                conn, window, group, store.hindsight(window)
            ),
            "every_row_is_accounted_for": checks.every_row_accounted(
                conn, window, store.rows_read(window), row_outcomes_of(store.engine, window)
            ),
            "groups_have_trainable_tokens": checks.trainable_tokens(group),
            "scores_are_in_unit_interval": checks.scores_in_unit_interval(judgment),
            "every_member_has_one_score": checks.one_score_per_member(group, judgment),
            "scores_are_not_all_equal": checks.scores_spread(judgment),
            "judge_is_fit": checks.judge_fit(judgment, None),
            "judging_stays_within_budget": checks.within_budget(
                group, judgment, denied=0, cost_usd=0.0, budget_usd=workspace.settings.judge.budget_usd
            ),
        }
    assert set(REQUIRED_CHECKS) <= verdicts.keys()
    for name in REQUIRED_CHECKS:
        write_check_result(store.engine, window, name, verdicts[name])


def play_and_judge(workspace: Workspace, windows: Sequence[HourWindow], *, agents: int = 6) -> None:
    play(workspace, windows, agents=agents)
    for w in windows:
        prepare(workspace, w)
    judge(workspace, windows)
