import math
import random

import pytest
from deployment_factories import an_hour, some_agents
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.deployment.comparison import BURN_IN_WINDOWS, Comparison, Interval
from babylon_rl.deployment.evidence import AgentResult, WindowEvidence
from babylon_rl.deployment.spread import split_spread
from babylon_rl.deployment.stages import Arm


def compare(hours: list[WindowEvidence], **how: float | bool) -> Interval:
    comparison = Comparison(alpha=0.04, **how)  # type: ignore[arg-type]
    for hour in hours:
        comparison.add(hour)
    interval = comparison.interval()
    assert interval is not None
    return interval


def draw_hours(
    seed: int, *, effect: float = 0.0, lasting: float = 0.0, windows: int = 60, agents: int = 10
) -> list[WindowEvidence]:
    """Half against half: noise of 100 USD, a shock of the market common to all, agents that differ by `lasting`."""
    r = random.Random(seed)
    own = [lasting * r.gauss(0, 1) for _ in range(agents)]
    earlier = [o + r.gauss(0, 100) / 5 for o in own]
    hours = []
    for i in range(windows):
        shock = r.gauss(0, 1000)
        results = [
            AgentResult(
                agent_id=f"a{k}",
                arm=Arm.CANDIDATE if k % 2 else Arm.INCUMBENT,
                pnl_usd=shock + own[k] + r.gauss(0, 100) + (effect if k % 2 else 0.0),
                earlier_pnl_usd=earlier[k],
            )
            for k in range(agents)
        ]
        hours.append(an_hour(i, agents=results))
    return hours


def test_windows_weigh_by_what_their_arms_can_tell() -> None:
    # 1 against 9 weighs 1·9/10 = 0.9, 5 against 5 weighs 2.5: (0.9 · 100 + 2.5 · 0) / 3.4
    interval = compare([an_hour(0, [100.0], [0.0] * 9), an_hour(1, [7.0] * 5, [7.0] * 5)])
    assert interval.mean == pytest.approx(90 / 3.4)
    assert interval.effective_windows == pytest.approx(3.4**2 / (0.9**2 + 2.5**2))


def test_test_agents_are_compared_with_test_agents() -> None:
    tests = [
        *some_agents(Arm.CANDIDATE, [1000.0] * 2, name="test-c", is_test=True),
        *some_agents(Arm.INCUMBENT, [990.0] * 2, name="test-i", is_test=True),
    ]
    # 10 among test agents and 40 among the others, of equal weight; all in one would be -435
    assert compare([an_hour(0, [40.0, 40.0], [0.0, 0.0], agents=tests)]).mean == pytest.approx(25)


def test_arms_of_different_strata_are_not_compared() -> None:
    tests = some_agents(Arm.CANDIDATE, [1000.0], name="test", is_test=True)
    comparison = Comparison(alpha=0.05)
    assert not comparison.add(an_hour(0, [], [0.0, 0.0], agents=tests))
    assert comparison.interval() is None


def test_there_is_no_interval_before_the_burn_in() -> None:
    hours = draw_hours(1, effect=10_000)
    assert compare(hours[: BURN_IN_WINDOWS - 1]).lo is None
    at_burn_in = compare(hours[:BURN_IN_WINDOWS]).lo
    assert at_burn_in is not None
    assert at_burn_in > 0


def test_two_agents_alone_cannot_tell_a_policy_from_an_agent() -> None:
    assert compare([an_hour(i, [100.0], [float(i % 2)]) for i in range(50)]).lo is None


@settings(deadline=None, max_examples=20)
@given(st.randoms(use_true_random=False))
def test_the_order_of_agents_does_not_matter(shuffler: random.Random) -> None:
    hours = draw_hours(2, lasting=50, windows=12)
    shuffled = [an_hour(i, agents=shuffler.sample(h.agents, len(h.agents))) for i, h in enumerate(hours)]
    assert compare(shuffled) == compare(hours)


@pytest.mark.parametrize("unknown", [math.nan, math.inf, -math.inf])
def test_a_pnl_that_is_no_number_never_enters(unknown: float) -> None:
    hours = draw_hours(3, windows=12)
    stranger = AgentResult(agent_id="stranger", arm=Arm.CANDIDATE, pnl_usd=unknown)
    assert compare([an_hour(i, agents=[*h.agents, stranger]) for i, h in enumerate(hours)]) == compare(hours)


@pytest.mark.parametrize("unknown", [math.nan, math.inf, None])
def test_unknown_earlier_pnl_counts_as_the_others_mean(unknown: float | None) -> None:
    hours = draw_hours(4, lasting=200, windows=12)

    def with_earlier(value: float | None) -> Interval:
        return compare(
            [
                an_hour(
                    i,
                    agents=[
                        *h.agents[1:],
                        AgentResult(
                            agent_id="a0", arm=Arm.INCUMBENT, pnl_usd=h.agents[0].pnl_usd, earlier_pnl_usd=value
                        ),
                    ],
                )
                for i, h in enumerate(hours)
            ]
        )

    known = [a.earlier_pnl_usd for a in hours[0].agents[1:] if a.earlier_pnl_usd is not None]
    expected = with_earlier(math.fsum(known) / len(known))
    found = with_earlier(unknown)
    assert (found.mean, found.lo, found.hi) == pytest.approx((expected.mean, expected.lo, expected.hi))


def half_width(interval: Interval) -> float:
    assert interval.lo is not None
    assert interval.hi is not None
    return (interval.hi - interval.lo) / 2


def test_earlier_pnl_sharpens_where_agents_differ_lastingly() -> None:
    hours = draw_hours(5, lasting=200, effect=50)
    sharp, blunt = compare(hours), compare(hours, use_earlier=False)
    assert sharp.theta > 0.9
    assert blunt.theta == 0
    assert half_width(sharp) < half_width(blunt) / 3
    assert abs(sharp.mean - 50) < 40


def test_earlier_pnl_is_left_alone_where_it_predicts_nothing() -> None:
    thetas = [compare(draw_hours(seed)).theta for seed in range(20)]
    assert sum(t == 0 for t in thetas) >= 15
    assert max(thetas) <= 1


def test_a_shock_of_the_market_common_to_all_cancels() -> None:
    """The shock's spread is 1,000 USD an hour; without it a difference's is 63."""
    assert half_width(compare(draw_hours(6))) < 50


def test_more_hours_do_not_average_lasting_differences_out() -> None:
    few, many = (half_width(compare(draw_hours(7, lasting=300, windows=w), use_earlier=False)) for w in (50, 300))
    assert many > few / 2  # √6 of chance, and nothing of what lasts


def test_spread_is_split_as_by_hand() -> None:
    # two agents, ±3 in both of two windows: all of it lasts; ±3 with its sign changing: none
    same = split_spread([(2, 6.0, 18.0), (2, -6.0, 18.0)], degrees=1)
    changing = split_spread([(2, 0.0, 18.0), (2, 0.0, 18.0)], degrees=1)
    assert same is not None
    assert changing is not None
    assert (same.lasting, same.chance) == (9, 0)
    assert (changing.lasting, changing.chance) == (0, 9)
    assert changing.lasting_upper > 0
    assert split_spread([(1, 3.0, 9.0)], degrees=1) is None


def test_twins_are_rarely_told_apart_however_often_looked_at() -> None:
    """The whole error rate is measured by benchmarks/live_ab.py; here 40 runs, of which 1.6 may err at alpha 0.04."""
    wrong = 0
    for seed in range(40):
        comparison = Comparison(alpha=0.04)
        for hour in draw_hours(100 + seed, lasting=30 if seed % 2 else 0, windows=80):
            comparison.add(hour)
            interval = comparison.interval()
            if interval and interval.lo is not None and interval.hi is not None and not interval.lo <= 0 <= interval.hi:
                wrong += 1
                break
    assert wrong <= 3


def test_an_effect_is_found_in_most_runs() -> None:
    found = [compare(draw_hours(200 + seed, effect=60)) for seed in range(20)]
    assert sum(i.lo is not None and i.lo > 0 for i in found) >= 18
