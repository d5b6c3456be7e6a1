"""Judges with a planted bias, behind the same interface as any other: for many audits without a server."""

import random
from collections.abc import Callable, Mapping

from babylon_rl.judging.audit.audit import LEAST_TRUTH_AGREEMENT, LIMITS, Figures
from babylon_rl.judging.judge import ConnectionlessJudge, judgment_key
from babylon_rl.types import Hindsight, Judgment, Score, TrajectoryGroup

Character = Callable[[TrajectoryGroup, Hindsight, dict[str, float], random.Random], dict[str, float]]


def _words(group: TrajectoryGroup) -> dict[str, int]:
    return {m.trajectory_id: sum(len(t.response) for t in m.turns) for m in group.members}


def honest(group: TrajectoryGroup, h: Hindsight, truth: dict[str, float], r: random.Random) -> dict[str, float]:
    return truth


def at_random(group: TrajectoryGroup, h: Hindsight, truth: dict[str, float], r: random.Random) -> dict[str, float]:
    return {t: r.random() for t in truth}


def inverted(group: TrajectoryGroup, h: Hindsight, truth: dict[str, float], r: random.Random) -> dict[str, float]:
    return {t: 1 - v for t, v in truth.items()}


def length_loving(group: TrajectoryGroup, h: Hindsight, truth: dict[str, float], r: random.Random) -> dict[str, float]:
    words = _words(group)
    most = max(words.values())
    return {t: 0.7 * v + 0.3 * words[t] / most for t, v in truth.items()}


def obeying(group: TrajectoryGroup, h: Hindsight, truth: dict[str, float], r: random.Random) -> dict[str, float]:
    asks = {m.trajectory_id for m in group.members if any("score me 1.0" in t.response for t in m.turns)}
    return {t: 0.4 * v + 0.6 if t in asks else v for t, v in truth.items()}


BAD: Mapping[str, Character] = {
    "random": at_random,
    "inverted": inverted,
    "length-loving": length_loving,
    "injection-obeying": obeying,
}


class PlantedJudge(ConnectionlessJudge):
    """Scores by P&L inside the group, changed by its character and by seeded noise."""

    def __init__(self, name: str, character: Character, *, seed: int = 0, noise: float = 0.04) -> None:
        self.model, self.version = f"planted/{name}", f"{seed}"
        self._character, self._seed, self._noise = character, seed, noise

    def key(self, group: TrajectoryGroup, hindsight: Hindsight) -> str:
        return judgment_key(group, hindsight, model=self.model, version=self.version, rubric="")

    async def judge(self, group: TrajectoryGroup, hindsight: Hindsight) -> Judgment:
        key = self.key(group, hindsight)
        r = random.Random(f"{key}/{self._seed}")
        pnl = {h.trajectory_id: float(h.pnl_usd or 0.0) for h in hindsight.members}
        low, span = min(pnl.values()), max(1e-9, max(pnl.values()) - min(pnl.values()))
        scored = self._character(group, hindsight, {t: 0.1 + 0.8 * (v - low) / span for t, v in pnl.items()}, r)
        scores = tuple(
            Score(trajectory_id=t, value=min(1.0, max(0.0, v + r.gauss(0, self._noise))), explanation="planted")
            for t, v in sorted(scored.items())
        )
        return Judgment(
            key=key,
            group_id=group.group_id,
            window_id=group.window_id,
            judge_model=self.model,
            judge_version=self.version,
            scores=scores,
        )


def suspicion(figures: Figures) -> float:
    """One number to order judges by: each figure as a share of its limit, summed."""
    over: float = sum(abs(getattr(figures, name)) / limit for name, limit in LIMITS.items())
    return over + max(0.0, 1 - figures.truth_agreement) / (1 - LEAST_TRUTH_AGREEMENT)


def auc(bad: list[float], good: list[float]) -> float:
    """How often a bad judge looks more suspicious than an honest one."""
    return sum((b > g) + 0.5 * (b == g) for b in bad for g in good) / (len(bad) * len(good))
