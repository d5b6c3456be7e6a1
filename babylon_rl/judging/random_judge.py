"""The control: a judge that throws dice. A loop that "learns" from it would be fooling itself.

Chosen by name only (`JUDGE_MODEL=dice`), for one purpose: everything else of the loop stays as it is, and the held-out
lift must then include zero.
"""

import random

from babylon_rl.judging.judge import judgment_key, validated
from babylon_rl.types import Hindsight, Judgment, Score, TrajectoryGroup


class DiceJudge:
    """Scores drawn from the group's key: the same throw for the same group, and nothing to do with its play."""

    def __init__(self) -> None:
        self.model = "dice"
        self.version = "dice-1"

    def key(self, group: TrajectoryGroup, hindsight: Hindsight) -> str:
        return judgment_key(group, hindsight, model=self.model, version=self.version, rubric="dice")

    async def judge(self, group: TrajectoryGroup, hindsight: Hindsight) -> Judgment:
        key = self.key(group, hindsight)
        dice = random.Random(key)  # noqa: S311  a control, not a secret
        ids = sorted(m.trajectory_id for m in group.members)
        scores = [Score(trajectory_id=i, value=dice.random(), explanation="Thrown, not judged.") for i in ids]
        return Judgment(
            key=key,
            group_id=group.group_id,
            window_id=group.window_id,
            judge_model=self.model,
            judge_version=self.version,
            scores=validated(group, scores),
        )

    async def close(self) -> None:
        """Nothing is open."""
