"""The few statistics a result is reported with: a paired bootstrap, a win rate, a share of a gap.

Plain numbers in, plain numbers out; seeded, so that a report can be reproduced. Nothing here decides what counts as a
success.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from babylon_rl.errors import ConfigError, DataError

_INDICES_AT_ONCE = 1_000_000  # 8 MB of resampled indices: bounded memory however many windows there are


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and the percentile bootstrap interval around it, in the unit of the data.

    Attributes:
        n: How many pairs it rests on.
    """

    mean: float
    lo: float
    hi: float
    n: int


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], *, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Estimate how much `b` is above `a`, by resampling pairs.

    The pair is the unit that is independent: one held-out window. Where several agents play a window,
    give the window's mean, or the interval comes out too narrow.

    Args:
        a: N values, one per window.
        b: N values for the same windows in the same order.
        resamples: Bootstrap samples drawn.
        seed: Same seed, same interval.
        level: Nominal coverage, e.g. 0.95.

    Returns:
        Mean of `b - a` with its percentile interval.

    Raises:
        DataError: Lengths differ, fewer than two pairs, or a value is not finite.
        ConfigError: `level` lies outside (0, 1) or `resamples` is below 1.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ConfigError(
            f"a bootstrap needs 0 < level < 1 and resamples >= 1, found level={level} resamples={resamples}"
        )
    if len(a) != len(b):
        raise DataError(
            f"paired values differ in number: {len(a)} against {len(b)}; evaluate both policies on the same windows",
            facts={"a": len(a), "b": len(b)},
        )
    difference = _finite(b, "b") - _finite(a, "a")
    n = len(difference)
    if n < 2:
        raise DataError(
            f"an interval needs at least 2 windows, found {n}; raise BABYLON_EVALUATION_WINDOWS", facts={"n": n}
        )
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _INDICES_AT_ONCE // n)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        means[start : start + size] = difference[rng.integers(0, n, size=(size, n))].mean(axis=1)
    lo, hi = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=float(difference.mean()), lo=float(lo), hi=float(hi), n=n)


def share_of_gap(base: float, final: float, oracle: float) -> float | None:
    """How much of the way from `base` to `oracle` the `final` policy went.

    Returns:
        1.0 at the oracle, 0.0 at the base, negative below it; None where the oracle is not above
        the base, because then there is no gap to close.

    Raises:
        DataError: A value is not finite.
    """
    base, final, oracle = (float(x) for x in _finite((base, final, oracle), "base, final, oracle"))
    gap = oracle - base
    return (final - base) / gap if gap > 0 else None


def win_rate(pnl: Sequence[float]) -> float | None:
    """Share of values above zero. A zero (an agent that held) is no win. None when there are none.

    Raises:
        DataError: A value is not finite.
    """
    values = _finite(pnl, "pnl")
    return float((values > 0).mean()) if len(values) else None


def _finite(values: Sequence[float], name: str) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    for i, value in enumerate(array):
        if not math.isfinite(value):
            raise DataError(
                f"{name}[{i}] is {value}, expected a finite number; leave windows with unknown P&L out of both sides",
                facts={"index": i},
            )
    return array
