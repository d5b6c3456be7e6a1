import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.common.statistics import paired_bootstrap, share_of_gap, win_rate
from babylon_rl.errors import ConfigError, DataError

MONEY = st.floats(min_value=-10_000, max_value=10_000, allow_nan=False)
PAIRS = st.lists(st.tuples(MONEY, MONEY), min_size=2, max_size=40)


def unzip(pairs: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [a for a, _ in pairs], [b for _, b in pairs]


@settings(deadline=None, max_examples=40)
@given(PAIRS, st.integers(0, 2**32))
def test_swapping_the_sides_mirrors_the_interval(pairs: list[tuple[float, float]], seed: int) -> None:
    a, b = unzip(pairs)
    forward = paired_bootstrap(a, b, resamples=500, seed=seed)
    back = paired_bootstrap(b, a, resamples=500, seed=seed)
    assert (back.mean, back.lo, back.hi) == pytest.approx((-forward.mean, -forward.hi, -forward.lo), abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(PAIRS, MONEY)
def test_a_constant_shift_moves_the_interval_by_just_that(pairs: list[tuple[float, float]], shift: float) -> None:
    a, b = unzip(pairs)
    plain = paired_bootstrap(a, b, resamples=500)
    moved = paired_bootstrap(a, [x + shift for x in b], resamples=500)
    assert (moved.mean - plain.mean, moved.lo - plain.lo, moved.hi - plain.hi) == pytest.approx((shift,) * 3, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(PAIRS)
def test_the_interval_lies_inside_the_differences_seen(pairs: list[tuple[float, float]]) -> None:
    a, b = unzip(pairs)
    interval = paired_bootstrap(a, b, resamples=500)
    differences = [y - x for x, y in pairs]
    assert min(differences) - 1e-6 <= interval.lo <= interval.hi <= max(differences) + 1e-6
    assert interval.n == len(pairs)


def test_a_planted_zero_effect_covers_zero_about_95_times_in_100() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(200):
        market = rng.normal(0, 300, 60)  # what a window pays whoever plays it; cancels in pairs
        a, b = market + rng.normal(0, 40, 60), market + rng.normal(0, 40, 60)
        interval = paired_bootstrap(a.tolist(), b.tolist(), resamples=1_000, seed=trial)
        covered += interval.lo <= 0 <= interval.hi
    assert 0.90 <= covered / 200 <= 0.99


def test_pairing_finds_an_effect_that_window_spread_hides() -> None:
    rng = np.random.default_rng(3)
    market = rng.normal(0, 300, 60)
    a, b = market + rng.normal(0, 10, 60), market + 20 + rng.normal(0, 10, 60)
    paired = paired_bootstrap(a.tolist(), b.tolist())
    shuffled = paired_bootstrap(a.tolist(), rng.permutation(b).tolist())
    assert 0 < paired.lo < 20 < paired.hi
    assert shuffled.lo < 0 < shuffled.hi


def test_a_known_case_by_hand() -> None:
    """Two pairs, differences 0 and 1: resampled means are 0, 0.5, 1 with weights 1/4, 1/2, 1/4."""
    interval = paired_bootstrap([5.0, 5.0], [5.0, 6.0], level=0.4)
    assert (interval.mean, interval.lo, interval.hi) == (0.5, 0.5, 0.5)
    wide = paired_bootstrap([5.0, 5.0], [5.0, 6.0])
    assert (wide.lo, wide.hi) == (0.0, 1.0)


def test_an_interval_repeats_with_its_seed() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 50).tolist(), rng.normal(1, 1, 50).tolist()
    assert paired_bootstrap(a, b, seed=4) == paired_bootstrap(a, b, seed=4)
    other = paired_bootstrap(a, b, seed=5)
    assert other != paired_bootstrap(a, b, seed=4)
    assert other.lo == pytest.approx(paired_bootstrap(a, b, seed=4).lo, abs=0.03)


def test_many_windows_are_resampled_in_bounded_memory() -> None:
    rng = np.random.default_rng(1)
    b = rng.normal(0, 1, 20_000)
    interval = paired_bootstrap([0.0] * 20_000, b.tolist(), resamples=300)
    assert interval.hi - interval.lo == pytest.approx(2 * 1.96 / math.sqrt(20_000), rel=0.2)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1.0, 2.0], [1.0], "2 against 1"),
        ([1.0], [1.0], "at least 2 windows, found 1"),
        ([], [], "found 0"),
        ([1.0, 2.0], [1.0, math.nan], r"b\[1\] is nan"),
        ([math.inf, 2.0], [1.0, 1.0], r"a\[0\] is inf"),
    ],
)
def test_what_cannot_be_paired_is_refused(a: list[float], b: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        paired_bootstrap(a, b)


def test_a_senseless_level_or_resample_count_is_refused() -> None:
    with pytest.raises(ConfigError, match="level=95"):
        paired_bootstrap([1.0, 2.0], [1.0, 2.0], level=95)
    with pytest.raises(ConfigError, match="resamples=0"):
        paired_bootstrap([1.0, 2.0], [1.0, 2.0], resamples=0)


def test_share_of_gap_is_unknown_where_there_is_no_gap() -> None:
    assert share_of_gap(0.0, 50.0, 200.0) == 0.25
    assert share_of_gap(-20.0, -30.0, 80.0) == pytest.approx(-0.1)
    assert share_of_gap(10.0, 20.0, 10.0) is None
    assert share_of_gap(10.0, 20.0, 5.0) is None
    with pytest.raises(DataError):
        share_of_gap(math.nan, 1.0, 2.0)


def test_holding_is_no_win_and_no_windows_have_no_win_rate() -> None:
    assert win_rate([1.0, 0.0, -2.0, 0.01]) == 0.5
    assert win_rate([]) is None
