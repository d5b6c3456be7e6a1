"""Members in another order in each pass, and one score per member with the effect of its places removed.

A judge reads a list and may favour its first or last entries. So a group can be judged in k passes that show members
at different places, chosen so that the places of each member have the same sum; from k ≥ 2 on, the effect of a place
is estimated together with the worth of a member, and removed.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Final

from babylon_rl.common.rank_agreement import kendall_tau

MAX_PASSES: Final = 3
# Ridge penalty on the effects of places: k passes are little evidence about each of them.
RIDGE: Final = 0.5


def orders(members: Sequence[str], passes: int) -> list[list[str]]:
    """The order of members in each pass.

    One pass keeps the order given. The second reverses it; with three, each member's places add up to the same
    (±1 when their number is even), so that a bias that grows evenly from first to last cancels.

    Args:
        members: N ids in random order.
        passes: 1 to 3.
    """
    n = len(members)
    places = [list(range(n))]
    if passes == 2:
        places.append([n - 1 - i for i in range(n)])
    elif passes == 3:
        half = (n + 1) // 2
        second = [(i + half) % n for i in range(n)]
        left = [places[0][i] + second[i] for i in range(n)]
        third = [0] * n
        for place, i in enumerate(sorted(range(n), key=lambda i: -left[i])):
            third[i] = place
        places += [second, third]
    return [[members[i] for i in sorted(range(n), key=lambda i, at=at: at[i])] for at in places]  # type: ignore[misc]


def combine_passes(passes: Sequence[Mapping[str, float]], order: Sequence[Sequence[str]]) -> dict[str, float]:
    """One score per member from k passes over the same members.

    With two passes or more a score is read as `member + place`, solved by least squares over all k × N scores, the
    effects of places shrunk a little towards 0.

    Args:
        passes: Scores by id, one mapping a pass.
        order: The ids in the order in which that pass showed them.

    Returns:
        Scores by id, in [0, 1]; of one pass, its scores unchanged.
    """
    if len(passes) == 1:
        return dict(passes[0])
    return {m: min(1.0, max(0.0, v)) for m, v in fit_member_worth(passes, order).items()}


def fit_member_worth(passes: Sequence[Mapping[str, float]], order: Sequence[Sequence[str]]) -> dict[str, float]:
    """Worth of each member without the effect of its places: `score ≈ member + place`, places summing to about 0."""
    import numpy as np  # not at the top: the code location imports this module

    names = sorted(passes[0])
    at = {m: i for i, m in enumerate(names)}
    n = len(names)
    rows, wanted = [], []
    for scores, shown in zip(passes, order, strict=True):
        for place, m in enumerate(shown):
            row = np.zeros(2 * n)
            row[at[m]] = row[n + place] = 1.0
            rows.append(row)
            wanted.append(scores[m])
    shrink = np.hstack([np.zeros((n, n)), np.eye(n) * math.sqrt(RIDGE)])
    solved, *_ = np.linalg.lstsq(np.vstack([*rows, shrink]), np.array([*wanted, *[0.0] * n]), rcond=None)
    return {m: float(solved[at[m]]) for m in names}


def pass_agreement(passes: Sequence[Mapping[str, float]]) -> float | None:
    """Mean Kendall τ between passes: 1.0 when the order had no effect; None with one pass, or when all scores tie."""
    taus = [kendall_tau(a, b) for a, b in combinations(passes, 2)]
    known = [t for t in taus if t is not None]
    return sum(known) / len(known) if known else None
