"""The control: a judge that draws scores at random. A loop that "learns" from it would be fooling itself.

Chosen by name only (`JUDGE_MODEL=dice`), for one purpose: with the rest of the loop unchanged, the interval of the
held-out lift must include zero.
"""

import random

from babylon_rl.judging.judge import ConnectionlessJudge, judgment_key, validate_scores
from babylon_rl.types import Hindsight, Judgment, Score, TrajectoryGroup


class RandomJudge(ConnectionlessJudge):
    """Scores drawn from the group's key: the same draw for the same group, and nothing to do with its play."""

    def __init__(self) -> None:
        # Stored with every judgment and part of its key: the names stay.
        self.model = "dice"
        self.version = "dice-1"

    def key(self, group: TrajectoryGroup, hindsight: Hindsight) -> str:
        return judgment_key(group, hindsight, model=self.model, version=self.version, rubric="dice")

    async def judge(self, group: TrajectoryGroup, hindsight: Hindsight) -> Judgment:
        key = self.key(group, hindsight)
        rng = random.Random(key)  # noqa: S311  a control, not a secret
        ids = sorted(m.trajectory_id for m in group.members)
        scores = [Score(trajectory_id=i, value=rng.random(), explanation="Thrown, not judged.") for i in ids]
        return Judgment(
            key=key,
            group_id=group.group_id,
            window_id=group.window_id,
            judge_model=self.model,
            judge_version=self.version,
            scores=validate_scores(group, scores),
            details={} if hindsight.outcomes.known else {"outcomes": "none"},
        )
