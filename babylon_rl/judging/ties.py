"""When scores of one group are equal: one rule for the gate (`scores_are_not_all_equal`) and for the ranks that train.

From the best score down: a member ties with the best of its class when its score lies no more than `within` below it; the
first that lies further down is the best of the next class. So the classes are a partition that depends on the scores
alone, no class is wider than `within` (a chain of small steps ties nobody with everybody), and all members tie exactly
when the whole spread is within it. Two neighbours of different classes may be closer than `within`: they are told apart
because one of them is not equal to the best of the upper class.
"""

from collections.abc import Mapping
from typing import Final

LLM_WITHIN: Final = 0.01  # the third decimal of an LLM's score is noise
COMPUTED_WITHIN: Final = 1e-6  # a computed score is exact but for the arithmetic
_COMPUTED: Final = frozenset({"hindsight", "dice"})
_FLOAT_NOISE: Final = 1e-9  # 0.85 - 0.84 is a little more than 0.01


def tolerance_of(judge_model: str) -> float:
    """How far apart scores of this judge may lie and still be equal."""
    return COMPUTED_WITHIN if judge_model in _COMPUTED else LLM_WITHIN


def tie_classes(scores: Mapping[str, float], *, within: float) -> list[list[str]]:
    """Trajectory ids of equal score, class by class, the best first; ids inside a class in order of score, then id."""
    classes: list[list[str]] = []
    best = 0.0
    for trajectory_id, value in sorted(scores.items(), key=lambda item: (-item[1], item[0])):
        if classes and best - value <= within * (1 + _FLOAT_NOISE):
            classes[-1].append(trajectory_id)
        else:
            classes.append([trajectory_id])
            best = value
    return classes
