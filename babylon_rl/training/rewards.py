"""Score → reward: what the trainer receives in place of a judge's scores.

GRPO normalises rewards by their group's spread, so one lucky trade with a huge P&L flattens what all others of
its group learn. Ranks do not: with the hindsight judge, whose scores are linear in P&L, eight iterations closed
13 % of the gap to the oracle on raw scores and 48 % on ranks (same base, seed and windows; docs/log.md). RULER's
scores are relative by construction, so a rank loses nothing that they promise.
"""

import math
from collections.abc import Mapping, Sequence

from babylon_rl.judging.ties import tie_classes, tolerance_of
from babylon_rl.types import Judgment

SAME_REWARD = 1e-9  # float noise between equal rewards, which must not be scaled up to a difference


def rewards_of(judgment: Judgment) -> dict[str, float]:
    """Trajectory id → reward of each member that a judgment ranks; what its judge cannot tell apart is a tie."""
    scores = {s.trajectory_id: s.value for s in judgment.scores}
    return rank_rewards(scores, within=tolerance_of(judgment.judge_model))


def rank_rewards(scores: Mapping[str, float], *, within: float) -> dict[str, float]:
    """Each member's rank among its group, evenly spread over [0, 1]; ties share their mean rank.

    Args:
        scores: Trajectory id → score; N members, N ≥ 1.
        within: Scores tie by the rule of `judging/ties.py`.

    Returns:
        Trajectory id → reward; a group of one, or all ties, gets 0.5 and so no advantage.
    """
    n = len(scores)
    if n < 2:
        return dict.fromkeys(scores, 0.5)
    rewards: dict[str, float] = {}
    worse = n
    for tied in tie_classes(scores, within=within):
        worse -= len(tied)
        rewards |= dict.fromkeys(tied, (worse + 0.5 * (len(tied) - 1)) / (n - 1))
    return {i: rewards[i] for i in scores}


def grpo_advantages(rewards: Sequence[float]) -> list[float]:
    """How far each reward lies from its group's mean, in the group's standard deviations.

    The arithmetic of ART's `tokenize_trajectory_groups` with `scale_rewards` (0.5.18): population deviation plus 1e-6.
    Packing then brings the mean of |advantage| over a whole batch to 1, which cannot be computed from one group.

    Args:
        rewards: Of those compared with each other: all members of a group.

    Returns:
        One advantage each, in the same order; all 0 where the rewards are equal.
    """
    if len(rewards) < 2 or max(rewards) - min(rewards) <= SAME_REWARD:
        return [0.0] * len(rewards)
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
    return [(r - mean) / (deviation + 1e-6) for r in rewards]
