"""Score → reward: what the trainer receives in place of a judge's scores.

GRPO normalises rewards by their group's spread, so one lucky trade with a huge P&L flattens what all others of
its group learn. Ranks do not: with the hindsight judge, whose scores are linear in P&L, eight iterations closed
13 % of the gap to the oracle on raw scores and 48 % on ranks (same base, seed and windows; docs/log.md). RULER's
scores are relative by construction, so a rank loses nothing that they promise.
"""

import math
from collections.abc import Mapping, Sequence

EQUAL_WITHIN = 1e-6
SAME_REWARD = 1e-9  # float noise between equal rewards, which must not be scaled up to a difference


def rank_rewards(scores: Mapping[str, float]) -> dict[str, float]:
    """Each member's rank among its group, evenly spread over [0, 1]; ties share their mean rank.

    Args:
        scores: Trajectory id → score; N members, N ≥ 1. Scores within `EQUAL_WITHIN` of each other are ties.

    Returns:
        Trajectory id → reward; a group of one, or all ties, gets 0.5 and so no advantage.
    """
    n = len(scores)
    if n < 2:
        return dict.fromkeys(scores, 0.5)
    return {
        i: (
            sum(other < value - EQUAL_WITHIN for other in scores.values())
            + 0.5 * (sum(abs(other - value) <= EQUAL_WITHIN for other in scores.values()) - 1)
        )
        / (n - 1)
        for i, value in scores.items()
    }


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
