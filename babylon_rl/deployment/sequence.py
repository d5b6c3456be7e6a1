"""Bounds that hold at every look at once, in plain Python: for a mean, for a rate, and for a running sum.

A fixed-sample interval looked at after every window is wrong far more often than it says. These hold however often one
looks, because each is the boundary of one martingale (Ville's inequality). What they are applied to is in `comparison.py`
and `guards.py`.

Sources: the mean, arXiv 2103.06476 (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas), theorem 2.2, with information in the place
of the number of observations as in its section 2.5; the rate, arXiv 1810.08240 (Howard, Ramdas, McAuliffe, Sekhon), the
beta-binomial mixture. Why no library: docs/deployment.md.
"""

import math
from statistics import NormalDist


def choose_rho2(alpha: float, information: float) -> float:
    """The mixture's precision that makes the boundary narrowest about `information` (2103.06476, appendix C.3)."""
    length = -2 * math.log(alpha)
    return (length + math.log1p(length)) / information


def mixture_boundary(variance: float, alpha: float, rho2: float) -> float:
    """How far a sum of centred terms strays, ever, with chance at most `alpha`, either way.

    Args:
        variance: Of the sum so far, in the unit that `rho2` was chosen in.
        alpha: In (0, 1).
        rho2: Fixed before the first look.

    Returns:
        `sqrt((variance·rho2 + 1) / rho2 · ln((variance·rho2 + 1) / alpha²))`.
    """
    grown = variance * rho2 + 1
    return math.sqrt(grown / rho2 * (math.log(grown) - 2 * math.log(alpha)))


def bound_rate(hits: int, trials: int, alpha: float) -> tuple[float, float]:
    """Lower and upper bound of a rate; at any look one of them is wrong with chance at most `alpha`.

    The likelihood ratio of a uniform mixture of rates against one rate is a martingale under that rate; the rates against
    which it stays below 1 / `alpha` are the interval. No trial: (0, 1).
    """
    if trials <= 0:
        return 0.0, 1.0
    misses = trials - hits
    mixture = math.lgamma(hits + 1) + math.lgamma(misses + 1) - math.lgamma(trials + 2)
    limit = -math.log(alpha)

    def excess(rate: float) -> float:
        seen = (hits * math.log(rate) if hits else 0.0) + (misses * math.log1p(-rate) if misses else 0.0)
        return mixture - seen - limit

    def search(outside: float, inside: float) -> float:
        for _ in range(60):
            middle = (outside + inside) / 2
            if excess(middle) > 0:
                outside = middle
            else:
                inside = middle
        return outside

    at = min(max(hits / trials, 1e-12), 1 - 1e-12)
    return (search(1e-15, at) if hits else 0.0), (search(1 - 1e-15, at) if misses else 1.0)


def t_quantile(probability: float, degrees: int) -> float:
    """Student's t quantile; for 3 degrees and more by its expansion about the normal (Abramowitz & Stegun 26.7.5), within 1 %."""
    if degrees < 1:
        return math.inf
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z = float(NormalDist().inv_cdf(probability))
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**k for k, term in enumerate(terms, start=1))
