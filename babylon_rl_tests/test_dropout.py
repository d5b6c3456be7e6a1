"""Dropout leaves out whole windows: exactly as many as computed, the same ones whatever the order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.grouping.dropout import bottom_k, dropout_count
from babylon_rl_tests.factories import WINDOW

HOURS = [str(WINDOW.next(i)) for i in range(60)]


@pytest.mark.parametrize(
    ("windows", "target", "cap", "dropped"),
    [
        (5_000, 1_000, 0.3, 1_500),  # the numbers of the game's guide: 3,500 are used
        (1_200, 1_000, 0.3, 200),  # no more than is beyond the target
        (1_000, 1_000, 0.3, 0),
        (10, 1, 0.3, 3),
        (5_000, None, 0.3, 0),
        (5_000, 1, 0.0, 0),
    ],
)
def test_what_is_beyond_the_target_is_dropped_up_to_the_cap(
    windows: int, target: int | None, cap: float, dropped: int
) -> None:
    assert dropout_count(windows, target=target, cap=cap) == dropped


@given(st.permutations(HOURS), st.integers(0, 60), st.integers(0, 60), st.integers(0, 10**9))
def test_a_higher_rate_only_adds_and_order_never_matters(hours: list[str], j: int, k: int, seed: int) -> None:
    fewer, more = sorted((j, k))
    out = bottom_k(hours, more, seed=seed)
    assert len(out) == more
    assert bottom_k(HOURS, fewer, seed=seed) <= out == bottom_k(HOURS, more, seed=seed)


def test_another_seed_drops_other_windows() -> None:
    assert len({bottom_k(HOURS, 20, seed=s) for s in range(5)}) == 5
