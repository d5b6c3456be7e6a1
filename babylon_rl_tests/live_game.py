"""A live game as the platform finds it: agents that were answered through the gateway, and what each earned.

Calls stand in `served_calls` as the gateway writes them, by the deployment that is in force; trajectories as
`raw_trajectories` keeps them.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from babylon_rl.common.statistics import Interval
from babylon_rl.deployment.stages import Arm, Deployment, is_test_agent
from babylon_rl.pipeline.deploy import LookResult, look_at_hour
from babylon_rl.pipeline.evaluate import suite_of
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.deployments import read_deployment, read_moves
from babylon_rl.store.evaluations import PolicyResult, write_evaluation
from babylon_rl.store.ledger import PlannedBatch
from babylon_rl.store.looks import Look, read_looks
from babylon_rl.store.served_calls import write_calls
from babylon_rl.types import Json, Trajectory, Turn, policy_name
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import a_trajectory, a_turn

FIRST = HourWindow.parse("2025-02-01T00:00")
_serial = itertools.count(1)
AGENTS = tuple(f"agent-{i:02d}" for i in range(10))


@dataclass
class LiveGame:
    """Hours that agents play, answered by what is deployed when they are played.

    Attributes:
        next_hour: That nobody has played yet.
        gain_usd: What the candidate earns more an agent and hour.
    """

    workspace: Workspace
    agents: Sequence[str] = AGENTS
    gain_usd: float = 0.0
    next_hour: HourWindow = FIRST
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def add_checkpoint(self, step: int, *, lift_usd: float | None = 50.0, trainer: str = "serverless") -> None:
        """Record a checkpoint, and what its evaluation says; None: it has none."""
        ledger, engine = self.workspace.ledger, self.workspace.store.engine
        batch = PlannedBatch(
            lineage=ledger.lineage,
            step=step,
            window_id=str(FIRST.next(-10)),
            windows=(str(FIRST.next(-10 - step)),),
            judgment_keys=(f"judgment-{step}",),
            group_versions=("v",),
            learning_rate=None,
        )
        ledger.record(batch, trainer=trainer, base_model="b", path="p", manifest={}, metrics={})
        if lift_usd is not None:
            base, result = (
                PolicyResult(name=policy_name(ledger.lineage, s), pnl_usd=(0.0, 0.0), invalid_rate=0.0)
                for s in (0, step)
            )
            lift = Interval(mean=lift_usd, lo=lift_usd - 10, hi=lift_usd + 10, n=2)
            suite = suite_of(self.workspace).name
            write_evaluation(engine, ledger.lineage, step, suite, result, base=base, lift=lift)

    @property
    def deployed(self) -> Deployment:
        return read_deployment(self.workspace.store.engine, self.workspace.settings.lineage)

    @property
    def moves(self) -> list[tuple[str, int, str | None]]:
        """Kind, subject and hour of each move."""
        moves = read_moves(self.workspace.store.engine, self.workspace.settings.lineage)
        return [(m.kind.value, m.subject, m.window_id) for m in moves]

    @property
    def looks(self) -> list[Look]:
        """Every look at the first rollout."""
        lineage = self.workspace.settings.lineage
        return read_looks(self.workspace.store.engine, lineage, f"{lineage}@1#1")

    def play_next(self, *, prepare: bool = True, bypass: Sequence[str] = ()) -> HourWindow:
        """All agents play the next hour; `bypass` names those that ask no gateway."""
        window, self.next_hour = self.next_hour, self.next_hour.next()
        self.serve(self.deployed, window, [a for a in self.agents if a not in bypass])
        if prepare:
            self.prepare(window)
        return window

    def prepare(self, window: HourWindow, *, but: Mapping[str, Json] | None = None) -> None:
        """Keep the hour's trajectories, as `raw_trajectories` does; `but` changes those of some agents."""
        changes = but or {}
        played = [replace(self.make_trajectory(self.deployed, window, a), **changes.get(a, {})) for a in self.agents]
        self.workspace.store.write_ingest(window, played, [], rows=len(played))

    def look(self, window: HourWindow) -> LookResult:
        return look_at_hour(self.workspace, window)

    def play_until_decided(self) -> LookResult:
        """Play and look until nothing is on trial any more."""
        result = self.play_and_look()
        while result.after.candidate is not None:
            result = self.play_and_look()
        return result

    def play_and_look(self, hours: int = 1) -> LookResult:
        """Play hours and look at each, as the sensor does."""
        for _ in range(hours - 1):
            self.look(self.play_next())
        return self.look(self.play_next())

    def make_trajectory(self, deployment: Deployment, window: HourWindow, agent: str) -> Trajectory:
        arm = self.arm_of(deployment, agent)
        luck = self.chance.gauss(0, 5)
        name = policy_name(deployment.lineage, deployment.step_of(arm))
        return a_trajectory(
            agent,
            window,
            pnl_usd=luck + (self.gain_usd if arm is Arm.CANDIDATE else 0.0),
            turns=(name_policy(name),),
        )

    def serve(self, deployment: Deployment, window: HourWindow, agents: Sequence[str], **changes: Any) -> None:
        """Write three calls of each agent, as the gateway does."""
        rows = [self.make_call(deployment, window, agent, **changes) for agent in agents for _ in range(3)]
        write_calls(self.workspace.store.engine, rows)

    def make_call(self, deployment: Deployment, window: HourWindow, agent: str | None, **changes: Any) -> Json:
        arm = self.arm_of(deployment, agent)
        known: Json = {
            "call_id": f"call-{next(_serial):026d}",
            "agent_id": agent,
            "window_id": str(window),
            "lineage": deployment.lineage,
            "step": deployment.step_of(arm),
            "digest": "",
            "arm": arm.value,
            "deployment": deployment.number,
            "rollout": deployment.rollout,
            "fell_back_from": None,
            "upstream": "engine",
            "status": 200,
            "error": None,
            "asked_at": self.workspace.now(),
            "first_token_ms": 10.0,
            "latency_ms": 50.0,
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "temperature": 0.5,
            "finish_reason": "stop",
            "streamed": False,
            "trajectory_id": None,
            "step_number": None,
        }
        return known | changes

    def arm_of(self, deployment: Deployment, agent: str | None) -> Arm:
        patterns = self.workspace.settings.deployment.test_agent_patterns
        return deployment.arm_of(agent, is_test=agent is not None and is_test_agent(agent, patterns))


def name_policy(name: str | None) -> Turn:
    """A turn whose row names the policy that answered, or none."""
    turn = a_turn()
    return Turn(
        system=turn.system, user=turn.user, response=turn.response, policy_version=name, temperature=turn.temperature
    )
