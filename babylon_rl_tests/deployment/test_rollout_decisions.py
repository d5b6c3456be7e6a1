import json
import math
import random
from dataclasses import replace

import pytest
from deployment_factories import a_rollout, an_hour, decide_at, the_settings

from babylon_rl.deployment.evidence import AgentResult, ArmCalls, WindowEvidence
from babylon_rl.deployment.rules import WIDEN_AFTER_WINDOWS, Decision, Rollout, decide, intervals
from babylon_rl.deployment.stages import Arm, Stage
from babylon_rl.errors import DataError

HEALTHY = {
    Arm.CANDIDATE: ArmCalls(calls=30, latency_ms=(100.0,) * 30),
    Arm.INCUMBENT: ArmCalls(calls=30, latency_ms=(100.0,) * 30),
}
FAILING = {Arm.CANDIDATE: ArmCalls(calls=30, errors=20), Arm.INCUMBENT: ArmCalls(calls=30)}
DOUBTFUL = {Arm.CANDIDATE: ArmCalls(calls=30, errors=4), Arm.INCUMBENT: ArmCalls(calls=270)}


def play_hours(
    count: int,
    effect: float = 0.0,
    *,
    stage: Stage = Stage.HALF,
    start: int = 0,
    arms: tuple[int, int] = (5, 5),
    number: int = 1,
) -> list[WindowEvidence]:
    """Noise of 100 USD an agent and hour, 100 USD a trade; nothing else speaks against the candidate."""
    r = random.Random(f"{count} {start} {stage}")
    return [
        an_hour(
            start + i,
            [effect + r.gauss(0, 100) for _ in range(arms[0])],
            [r.gauss(0, 100) for _ in range(arms[1])],
            stage=stage,
            number=number,
            calls=HEALTHY,
        )
        for i in range(count)
    ]


def shadow_hours(count: int, calls: ArmCalls) -> list[WindowEvidence]:
    return [
        an_hour(i, [], [0.0, 1.0], stage=Stage.SHADOW, calls={Arm.SHADOW: calls, Arm.INCUMBENT: HEALTHY[Arm.INCUMBENT]})
        for i in range(count)
    ]


@pytest.mark.parametrize("stage", [Stage.NONE, Stage.CANDIDATE])
def test_without_a_trial_there_is_nothing_to_decide(stage: Stage) -> None:
    assert decide_at(stage, []).decision is Decision.HOLD


def test_a_shadow_goes_on_after_its_windows() -> None:
    hours = shadow_hours(3, HEALTHY[Arm.CANDIDATE])
    assert decide_at(Stage.SHADOW, hours[:2], shadow_windows=3).decision is Decision.HOLD
    assert decide_at(Stage.SHADOW, hours, shadow_windows=3).decision is Decision.ADVANCE


def test_a_shadow_that_fails_is_rolled_back() -> None:
    look = decide_at(Stage.SHADOW, shadow_hours(3, FAILING[Arm.CANDIDATE]), shadow_windows=3)
    assert look.decision is Decision.ROLL_BACK
    assert "60 of 90 calls failed of the candidate" in look.reason


def test_a_slow_shadow_is_rolled_back() -> None:
    slow = ArmCalls(calls=30, latency_ms=(5000.0,) * 30)
    assert decide_at(Stage.SHADOW, shadow_hours(3, slow), shadow_windows=3).decision is Decision.HOLD
    look = decide_at(Stage.SHADOW, shadow_hours(8, slow), shadow_windows=3)
    assert look.decision is Decision.ROLL_BACK
    assert "`latency`" in look.reason


def test_a_shadow_that_was_never_asked_ends() -> None:
    hours = shadow_hours(5, ArmCalls())
    assert decide_at(Stage.SHADOW, hours, shadow_windows=1, rollout_windows=6).decision is Decision.HOLD
    assert decide_at(Stage.SHADOW, hours, shadow_windows=1, rollout_windows=5).decision is Decision.END


def test_a_canary_with_nothing_against_it_goes_to_half() -> None:
    hours = play_hours(6, stage=Stage.CANARY, arms=(1, 9))
    assert decide_at(Stage.CANARY, hours[:5]).decision is Decision.HOLD
    look = decide_at(Stage.CANARY, hours)
    assert look.decision is Decision.ADVANCE
    assert "6 of 6 canary windows" in look.reason


def test_a_canary_counts_only_windows_that_were_compared() -> None:
    hours = play_hours(6, stage=Stage.CANARY, arms=(1, 9))
    hours[3] = an_hour(3, [], [1.0, 2.0], stage=Stage.CANARY)
    assert decide_at(Stage.CANARY, hours).decision is Decision.HOLD


def test_a_better_canary_is_not_promoted_before_half() -> None:
    hours = play_hours(30, 500, stage=Stage.CANARY, arms=(1, 9))
    assert decide_at(Stage.CANARY, hours).decision is Decision.ADVANCE


def test_half_is_promoted_when_shown_better() -> None:
    hours = play_hours(60, 100)
    look = decide_at(Stage.HALF, hours)
    assert look.decision is Decision.PROMOTE
    assert look.lo is not None
    assert look.lo > 0
    assert f"{look.lo:+,.2f}" in look.reason


@pytest.mark.parametrize(("stage", "arms"), [(Stage.CANARY, (1, 9)), (Stage.HALF, (5, 5))])
def test_each_stage_is_rolled_back_when_shown_worse(stage: Stage, arms: tuple[int, int]) -> None:
    look = decide_at(stage, play_hours(60, -150, stage=stage, arms=arms))
    assert look.decision is Decision.ROLL_BACK
    assert look.hi is not None
    assert look.hi < 0
    assert "worse than the incumbent" in look.reason


def test_the_canarys_windows_count_at_half_too() -> None:
    canary, half = play_hours(20, 80, stage=Stage.CANARY, arms=(1, 9)), play_hours(30, 80, start=20, number=2)
    whole = decide(a_rollout(number=2), [*canary, *half], the_settings())
    assert whole.facts["windows_compared"] == 50
    assert whole.windows == 50


def test_nothing_is_decided_by_money_before_the_burn_in() -> None:
    look = decide_at(Stage.HALF, play_hours(7, 500))
    assert (look.decision, look.lo, look.hi) == (Decision.HOLD, None, None)
    assert look.mean is not None


def test_a_twin_ends_undecided() -> None:
    hours = play_hours(40)
    assert decide_at(Stage.HALF, hours, rollout_windows=41).decision is Decision.HOLD
    look = decide_at(Stage.HALF, hours, rollout_windows=40)
    assert look.decision is Decision.END
    assert "undecided after 40 windows" in look.reason


@pytest.mark.parametrize("stage", [Stage.CANARY, Stage.HALF])
def test_a_guard_rail_rolls_back_before_money_is_known(stage: Stage) -> None:
    hours = [replace(h, calls=FAILING) for h in play_hours(2, 500, stage=stage)]
    assert decide_at(stage, hours).decision is Decision.ROLL_BACK


def test_a_crash_rolls_back_before_the_burn_in() -> None:
    look = decide_at(Stage.CANARY, play_hours(5, -3000, stage=Stage.CANARY, arms=(1, 9)))
    assert look.decision is Decision.ROLL_BACK
    assert "`drawdown`" in look.reason


def test_invalid_actions_roll_back() -> None:
    hours = [
        replace(h, agents=tuple(replace(a, decisions=10, invalid=9 * (a.arm is Arm.CANDIDATE)) for a in h.agents))
        for h in play_hours(3)
    ]
    assert "`invalid`" in decide_at(Stage.HALF, hours).reason


@pytest.mark.parametrize(("stage", "effect"), [(Stage.CANARY, 0.0), (Stage.HALF, 500.0)])
def test_a_guard_rail_in_doubt_keeps_a_rollout_where_it_is(stage: Stage, effect: float) -> None:
    played = play_hours(10, effect, stage=stage)
    hours = [replace(h, calls=DOUBTFUL if i < 3 else {}) for i, h in enumerate(played)]
    look = decide_at(stage, hours)
    assert look.decision is Decision.HOLD
    assert "in doubt" in look.reason
    assert decide_at(stage, hours, rollout_windows=10).decision is Decision.END  # no state without a way out


def test_an_arm_without_agents_widens() -> None:
    empty = [an_hour(i, [], [0.0, 1.0, 2.0]) for i in range(WIDEN_AFTER_WINDOWS)]
    assert decide_at(Stage.HALF, empty[1:]).decision is Decision.HOLD
    assert decide_at(Stage.HALF, empty).decision is Decision.WIDEN


def test_a_candidate_that_answers_nobody_does_not_widen() -> None:
    """Its agents are there, and the incumbent answers them: more of them would wait for a server that is down."""
    down = {Arm.CANDIDATE: ArmCalls(calls=3, errors=3), Arm.INCUMBENT: ArmCalls(calls=3)}
    hours = [an_hour(i, [], [0.0, 1.0, 2.0], calls=down) for i in range(WIDEN_AFTER_WINDOWS)]
    assert decide_at(Stage.HALF, hours).decision is Decision.HOLD


def test_a_test_agent_alone_widens_the_arm_of_the_others() -> None:
    lone = AgentResult(agent_id="test-1", arm=Arm.CANDIDATE, is_test=True, pnl_usd=0.0)
    hours = [an_hour(i, [], [0.0, 1.0], agents=[lone], stage=Stage.CANARY) for i in range(WIDEN_AFTER_WINDOWS)]
    assert decide_at(Stage.CANARY, hours).decision is Decision.WIDEN


def test_a_widened_arm_gets_its_windows_before_it_widens_again() -> None:
    empty = [an_hour(i, [], [0.0, 1.0]) for i in range(WIDEN_AFTER_WINDOWS)]
    after = an_hour(WIDEN_AFTER_WINDOWS, [], [0.0, 1.0], number=2)
    assert decide(a_rollout(number=2), [*empty, after], the_settings()).decision is Decision.HOLD


def test_hours_that_nobody_played_do_not_widen() -> None:
    assert decide_at(Stage.HALF, [an_hour(i) for i in range(10)]).decision is Decision.HOLD


def test_a_paused_rollout_is_looked_at_alike() -> None:
    hours = play_hours(60, -150)
    assert decide(a_rollout(paused=True), hours, the_settings()) == decide(a_rollout(), hours, the_settings())


@pytest.mark.parametrize("swap", [False, True])
def test_windows_out_of_order_or_twice_are_refused(swap: bool) -> None:
    first, second = an_hour(0), an_hour(1)
    with pytest.raises(DataError, match="each hour once, in time order"):
        decide_at(Stage.HALF, [second, first] if swap else [first, first])


def test_a_rollout_that_grows_decides_as_one_read_whole() -> None:
    hours, rollout = play_hours(30, -120), Rollout(the_settings())
    for i, hour in enumerate(hours):
        rollout.add(hour)
        assert rollout.look(a_rollout()) == decide_at(Stage.HALF, hours[: i + 1])


def test_the_picture_ends_where_the_look_does() -> None:
    hours = play_hours(20, 50)
    line, look = intervals(hours, the_settings()), decide_at(Stage.HALF, hours)
    assert line[-1] == (hours[-1].window_id, look.mean, look.lo, look.hi)
    assert [w for w, *_ in line] == [h.window_id for h in hours]
    assert [lo is None for _, _, lo, _ in line] == [True] * 7 + [False] * 13


def test_facts_say_what_both_arms_did() -> None:
    agents = [
        AgentResult(
            agent_id="c", arm=Arm.CANDIDATE, pnl_usd=10, decisions=4, invalid=1, timed=2, timed_right=1, volume_usd=300
        ),
        AgentResult(agent_id="i", arm=Arm.INCUMBENT, pnl_usd=-4, decisions=4, timed=4, timed_right=3, volume_usd=700),
        AgentResult(agent_id="j", arm=Arm.INCUMBENT, pnl_usd=2, decisions=4),
        AgentResult(agent_id="k", arm=Arm.INCUMBENT, pnl_usd=math.nan),
    ]
    calls = {Arm.CANDIDATE: ArmCalls(calls=4, errors=1, latency_ms=(10.0, 20.0, 90.0))}
    hour = replace(an_hour(0, agents=agents, calls=calls), excluded={"x": "answered by both arms"})
    facts = decide_at(Stage.HALF, [hour]).facts
    expected = {
        "candidate_mean_pnl_usd": 10,
        "incumbent_mean_pnl_usd": -1,
        "candidate_win_rate": 1,
        "incumbent_win_rate": 0.5,
        "candidate_timing_share": 0.5,
        "incumbent_timing_share": 0.75,
        "candidate_invalid_share": 0.25,
        "candidate_error_share": 0.25,
        "candidate_latency_p50_ms": 20,
        "candidate_latency_p95_ms": 90,
        "candidate_volume_share": 0.3,
        "candidate_agent_hours": 1,
        "incumbent_agent_hours": 2,
        "incumbent_agents": 2,
        "windows_compared": 1,
        "agent_hours_excluded": 1,
        "cuped_theta": 0,
    }
    assert {k: facts[k] for k in expected} == expected
    assert "incumbent_latency_p50_ms" not in facts  # unknown is left out
    json.dumps(facts, allow_nan=False)
