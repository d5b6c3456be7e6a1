import math

import pytest
from deployment_factories import an_hour

from babylon_rl.deployment.comparison import Comparison
from babylon_rl.deployment.sequence import bound_rate, choose_rho2, mixture_boundary, t_quantile

# drawn once: random.Random(5), gauss(10, 40)
DIFFERENCES = (
    -37.2,
    -35.9,
    36.8,
    -81.8,
    4.3,
    -80.2,
    54.0,
    18.1,
    64.3,
    -10.2,
    25.9,
    -1.4,
    -19.5,
    15.8,
    -40.3,
    -4.2,
    37.9,
    12.3,
    -6.4,
    97.6,
    12.3,
    -13.5,
    16.4,
    -10.9,
)


def test_the_boundary_worked_by_hand() -> None:
    # variance 100, rho² 0.02: √(3 / 0.02 · (ln 3 + 2 ln 20)) = √(150 · 7.09008)
    assert mixture_boundary(100, 0.05, 0.02) == pytest.approx(32.6115, abs=1e-4)


def test_the_precision_makes_the_boundary_narrowest_there() -> None:
    best = choose_rho2(0.05, 60)
    narrowest = min((mixture_boundary(60, 0.05, r / 1000), r / 1000) for r in range(20, 500))
    assert mixture_boundary(60, 0.05, best) == pytest.approx(narrowest[0], rel=0.001)


@pytest.mark.parametrize(
    ("windows", "lo", "hi"),
    [
        (8, -81.01328362738279, 50.538283627382796),
        (16, -40.12774591840366, 28.69024591840366),
        (24, -24.1156038032772, 28.632270469943865),
    ],
)
def test_the_interval_is_that_of_the_library_ville(windows: int, lo: float, hi: float) -> None:
    """Of ville 0.1.0, AsymptoticCS(alpha=0.05, min_samples=2) with our rho²: equal weights, agents without a spread."""
    comparison = Comparison(alpha=0.05)
    for i, difference in enumerate(DIFFERENCES[:windows]):
        comparison.add(an_hour(i, [difference] * 2, [0.0] * 2))
    interval = comparison.interval()
    assert interval is not None
    assert (interval.lo, interval.hi) == pytest.approx((lo, hi), rel=1e-9)


def test_a_rate_of_none_in_ten_is_bounded_as_by_hand() -> None:
    # mixture 1/11 against (1 - p)^10: 20 times it at p = 1 - 220^(-1/10)
    assert bound_rate(0, 10, 0.05) == pytest.approx((0.0, 1 - 220**-0.1), abs=1e-9)
    assert bound_rate(10, 10, 0.05) == pytest.approx((220**-0.1, 1.0), abs=1e-9)


def test_a_rate_is_bounded_as_by_the_library_ville() -> None:
    assert bound_rate(2, 20, 0.05) == pytest.approx((0.00365868743388245, 0.4102610576839597), abs=1e-9)


def test_without_a_trial_every_rate_is_possible() -> None:
    assert bound_rate(0, 0, 0.05) == (0.0, 1.0)


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (8, 2.3060), (100, 1.9840)])
def test_the_t_quantile_is_that_of_tables(degrees: int, quantile: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(quantile, rel=0.002)


def test_without_a_degree_of_freedom_nothing_is_known() -> None:
    assert t_quantile(0.975, 0) == math.inf
