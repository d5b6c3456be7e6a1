"""How far two rankings agree. Not in `statistics.py`, because that needs numpy and the code location loads this module."""

import math
from collections.abc import Mapping
from itertools import combinations


def kendall_tau(a: Mapping[str, float], b: Mapping[str, float], *, within: float = 1e-9) -> float | None:
    """Kendall's τ-b of two rankings of the same ids, in [-1, 1]; values closer than `within` tie.

    Returns:
        None when all values of either side tie.
    """
    agree, left, right = 0, 0, 0
    for x, y in combinations(sorted(a.keys() & b.keys()), 2):
        u, v = _sign(a[x] - a[y], within), _sign(b[x] - b[y], within)
        agree += u * v
        left += u != 0
        right += v != 0
    return agree / math.sqrt(left * right) if left and right else None


def _sign(x: float, within: float) -> int:
    return 0 if abs(x) <= within else (1 if x > 0 else -1)
