"""The stages of a rollout, and which arm of it an agent belongs to.

An agent's place is a number in [0, 1) made of the rollout's id and the agent's: the same in every process. The candidate
answers agents whose place lies below a threshold. A stage's threshold is chosen among the agents that are there, so that a
tenth of ten agents is one agent and not, by chance, none; it only ever rises, so an agent changes arm once in a rollout.
"""

import fnmatch
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from babylon_rl.types import policy_name


class Stage(StrEnum):
    """How far a rollout has come."""

    NONE = "none"
    """No rollout: the incumbent answers everybody."""
    CANDIDATE = "candidate"
    """Chosen, and waiting for its evaluation; it answers nobody."""
    SHADOW = "shadow"
    """It is asked beside the incumbent; its answers are recorded and reach nobody."""
    CANARY = "canary"
    """It answers half of the test agents and a tenth of the others."""
    HALF = "half"
    """It answers half of all agents."""


class MoveKind(StrEnum):
    """What one row of `deployment_events` did."""

    CANDIDATE = "candidate"
    SHADOW = "shadow"
    CANARY = "canary"
    HALF = "half"
    WIDENED = "widened"
    """The stage is the same; the threshold rose, because the candidate's arm had no agent left."""
    PROMOTED = "promoted"
    """The candidate is the incumbent now."""
    ROLLED_BACK = "rolled_back"
    """The candidate, or the incumbent itself, was taken out of service as worse; it is never served again by itself."""
    ENDED = "ended"
    """The rollout ended without a decision: the incumbent stays. The candidate was not shown to be better."""
    PAUSED = "paused"
    RESUMED = "resumed"


class Arm(StrEnum):
    """Why a policy answered a call."""

    INCUMBENT = "incumbent"
    CANDIDATE = "candidate"
    SHADOW = "shadow"
    """Asked beside the incumbent; nobody saw the answer."""
    PINNED = "pinned"
    """The caller named the step."""
    UNNAMED = "unnamed"
    """The caller named no agent: the incumbent."""


SHARES: Final = {Stage.NONE: 0.0, Stage.CANDIDATE: 0.0, Stage.SHADOW: 0.0, Stage.CANARY: 0.1, Stage.HALF: 0.5}
TEST_SHARES: Final = SHARES | {Stage.CANARY: 0.5}
"""Test agents go first: half of them meet a canary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What is deployed of one lineage: the newest row of `deployment_events`, or the base before the first.

    Attributes:
        number: Of that row, from 1; 0 before the first.
        incumbent: Step that answers everybody who is not in the candidate's arm; 0: the base.
        candidate: Step on trial, or None.
        rollout: Id of the trial; with an agent's id it makes the agent's place.
        threshold: Agents whose place is below it are the candidate's.
        test_threshold: The same for test agents.
        paused: No move is made by itself; the stage stays as it is.
    """

    lineage: str
    number: int = 0
    stage: Stage = Stage.NONE
    incumbent: int = 0
    candidate: int | None = None
    rollout: str | None = None
    threshold: float = 0.0
    test_threshold: float = 0.0
    paused: bool = False

    @property
    def share(self) -> float:
        """The stage's nominal share of agents, test agents aside."""
        return SHARES[self.stage]

    @property
    def incumbent_name(self) -> str:
        return policy_name(self.lineage, self.incumbent)

    @property
    def candidate_name(self) -> str | None:
        return None if self.candidate is None else policy_name(self.lineage, self.candidate)

    def arm_of(self, agent_id: str | None, *, is_test: bool = False) -> Arm:
        """Which arm answers an agent; without an id the incumbent does."""
        if agent_id is None:
            return Arm.UNNAMED
        if self.rollout is None or self.candidate is None:
            return Arm.INCUMBENT
        threshold = self.test_threshold if is_test else self.threshold
        return Arm.CANDIDATE if place_of(self.rollout, agent_id) < threshold else Arm.INCUMBENT

    def step_of(self, arm: Arm) -> int:
        """The step that an arm is answered by; pinned calls name their own."""
        return self.candidate if arm in (Arm.CANDIDATE, Arm.SHADOW) and self.candidate is not None else self.incumbent


def place_of(rollout: str, agent_id: str) -> float:
    """An agent's place in a rollout: in [0, 1), the same whatever process asks."""
    drawn = hashlib.sha256(f"{rollout}\x00{agent_id}".encode(errors="surrogatepass")).digest()
    return (int.from_bytes(drawn[:8], "big") >> 11) / (1 << 53)


def choose_threshold(rollout: str, agents: Iterable[str], share: float, *, at_least: float = 0.0) -> float:
    """The threshold that gives the candidate `share` of the agents that are there, one of them at the fewest.

    Args:
        rollout: Id of the rollout.
        agents: Ids of the agents that are there; none: `share` itself, for those to come.
        share: In [0, 1].
        at_least: The threshold so far; it never falls.

    Returns:
        Half-way between the last place inside and the first outside, so that newcomers split about alike.
    """
    places = sorted({place_of(rollout, a) for a in agents})
    if share <= 0 or share >= 1 or not places:
        return max(at_least, min(max(share, 0.0), 1.0))
    inside = min(max(1, math.floor(share * len(places) + 0.5)), len(places))
    if len(places) > 1:
        inside = min(inside, len(places) - 1)  # both arms have somebody
    upper = places[inside] if inside < len(places) else 1.0
    return max(at_least, (places[inside - 1] + upper) / 2)


def is_test_agent(agent_id: str, patterns: Sequence[str]) -> bool:
    """Whether an agent's id matches one of the shell patterns of BABYLON_TEST_AGENTS."""
    return any(fnmatch.fnmatchcase(agent_id, p) for p in patterns)
