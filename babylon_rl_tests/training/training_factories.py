"""Small judged batches, as the pipeline would pass them to a trainer: real markets, real prompts, scripted answers."""

import asyncio
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.policy.shipped import shipped_base
from babylon_rl.simulator.market import make_market
from babylon_rl.simulator.observation import SYSTEM_PROMPT, observe
from babylon_rl.simulator.portfolio import Portfolio, parse_order
from babylon_rl.simulator.strategies import habits
from babylon_rl.training.art_trainer import ArtTrainer
from babylon_rl.training.config import CpuTrainingConfig
from babylon_rl.training.trainer import RewardedGroup, TrainingBatch
from babylon_rl.types import GroupMember, TrajectoryGroup, Turn
from babylon_rl.windows import HourWindow


@dataclass
class MemoryJobs:
    """A `JobJournal` that lives as long as the test."""

    begun_at: float | None = None
    id: str | None = None

    def is_begun(self) -> bool:
        return self.begun_at is not None

    def seconds_since_begun(self) -> float | None:
        return None if self.begun_at is None else time.monotonic() - self.begun_at

    def job_id(self) -> str | None:
        return self.id

    def begin(self) -> None:
        assert self.begun_at is None, "a job is sent once"
        self.begun_at = time.monotonic()

    def take_back(self) -> None:
        self.begun_at = None

    def store_id(self, job_id: str) -> None:
        self.id = job_id


FIRST = HourWindow.parse("2025-01-15T10:00")
LINEAGE = "test-line"


def a_group(
    hours: int = 0,
    *,
    agents: int = 5,
    decisions: int = 2,
    version: str | None = "scripted/habits",
    temperature: float | None = 1.0,
    rewards: dict[int, float] | None = None,
) -> RewardedGroup:
    """One window played by scripted agents; rewards rise with the agent's number unless they are given."""
    window = FIRST.next(hours)
    market = make_market(window, 7, decisions=decisions)
    members = []
    for agent in range(agents):
        r, portfolio, turns = random.Random(f"{hours}/{agent}"), Portfolio(), []
        for tick in range(decisions):
            observation = observe(market, portfolio, tick)
            answer = habits(observation, r)
            order, _ = parse_order(answer, market.tickers)
            if order:
                portfolio.execute(market, tick, order)
            turns.append(
                Turn(
                    system=SYSTEM_PROMPT,
                    user=observation.text,
                    response=answer,
                    policy_version=version,
                    temperature=temperature,
                )
            )
        members.append(
            GroupMember(trajectory_id=f"{window}/agent-{agent}", agent_id=f"agent-{agent}", turns=tuple(turns))
        )
    group = TrajectoryGroup(group_id=str(window), window_id=str(window), members=tuple(members))
    by_agent = rewards or {i: i / (agents - 1) for i in range(agents)}
    return RewardedGroup(
        group=group,
        rewards={m.trajectory_id: by_agent[i] for i, m in enumerate(members)},
        judgment_key=f"judgment-{hours}",
    )


def a_batch(*groups: RewardedGroup, step: int = 1, lineage: str = LINEAGE, seed: int = 1) -> TrainingBatch:
    made = groups or (a_group(0), a_group(1))
    return TrainingBatch(
        lineage=lineage, step=step, window_id=max(g.group.window_id for g in made), groups=tuple(made), seed=seed
    )


def with_turns(rewarded: RewardedGroup, **changes: object) -> RewardedGroup:
    """The same group with every turn changed."""
    members = tuple(
        replace(m, turns=tuple(msgspec.structs.replace(t, **changes) for t in m.turns)) for m in rewarded.group.members
    )
    return replace(rewarded, group=replace(rewarded.group, members=members))


def cpu_trainer(root: Path, *, progress: Progress = ignore_progress) -> ArtTrainer:
    """The CPU trainer on the shipped base, with gradient steps of one row so that a tiny batch has several."""
    from babylon_rl.training.cpu_backend import CpuEngine

    config = CpuTrainingConfig(rows_per_step=1, threads=1)
    return ArtTrainer(CpuEngine(root, shipped_base(), config=config, progress=progress))


def batch_of(step: int) -> TrainingBatch:
    """Step 1 learns from scripted agents' turns; step 2 from turns of the base at 0.8 and of step 1."""
    if step == 1:
        return a_batch(a_group(0), a_group(1))
    spoken = [a_group(2, version=f"{LINEAGE}@0", temperature=0.8), a_group(3, version=f"{LINEAGE}@1")]
    return a_batch(*spoken, step=step)


def _main(root: str, *steps: str) -> None:
    """`python training_factories.py ROOT 1 2!`: train those steps; `!` dies by SIGKILL after one gradient step."""
    for name in steps:

        def die(steps: int = 1, *, total: int | None = None, note: str | None = None) -> None:
            assert total is not None
            assert steps < total, "killed too late to show anything"
            os.kill(os.getpid(), signal.SIGKILL)

        trainer = cpu_trainer(Path(root), progress=die if name.endswith("!") else ignore_progress)
        asyncio.run(trainer.train(batch_of(int(name.rstrip("!")))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
