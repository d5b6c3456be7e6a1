"""What the Dagster tests share: a first window, a judge that counts, and windows of scripted play."""

import multiprocessing
from typing import Any

from babylon_rl.judging.hindsight_judge import HindsightJudge
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.simulator.spawn import AgentLineup, spawn
from babylon_rl.types import Hindsight, Judgment, TrajectoryGroup
from babylon_rl.windows import HourWindow

FIRST = HourWindow.parse("2025-01-15T00:00")


class CountingJudge(HindsightJudge):
    """The real hindsight judge, which records the windows that it judges."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def judge(self, group: TrajectoryGroup, hindsight: Hindsight) -> Judgment:
        self.asked.append(group.window_id)
        return await super().judge(group, hindsight)


def spawn_windows(
    workspace: Workspace, count: int, *, agents: int = 6, policy: str = "habits", first: HourWindow = FIRST
) -> None:
    windows = [first.next(i) for i in range(count)]
    spawn(workspace.game, windows, AgentLineup(learners=agents, policy=policy, stand_in=True), seed=1)


def open_forkserver() -> Any:
    """Forks copies of a process that has imported what the runs of tests need: a run costs a second and not five.

    There is one such server for a process, and it imports what the first to start it names.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"babylon_rl_tests.dagster.{m}" for m in ("soak_run", "killed_deployment")])
    return context
