import pytest
from deployment_factories import an_hour

from babylon_rl.deployment.evidence import AgentResult, ArmCalls, WindowEvidence
from babylon_rl.deployment.guards import Drawdown, Errors, GuardRail, InvalidActions, Latency, State, Verdict
from babylon_rl.deployment.stages import Arm

ALPHA = 0.0025


def judge(guard: GuardRail, hours: list[WindowEvidence]) -> Verdict:
    for hour in hours:
        guard.add(hour)
    return guard.judge()


def hours_of_calls(
    candidate: ArmCalls, incumbent: ArmCalls, hours: int, *, arm: Arm = Arm.CANDIDATE
) -> list[WindowEvidence]:
    return [an_hour(i, calls={arm: candidate, Arm.INCUMBENT: incumbent}) for i in range(hours)]


@pytest.mark.parametrize("arm", [Arm.CANDIDATE, Arm.SHADOW])
@pytest.mark.parametrize(
    ("failed", "hours", "state"),
    [
        (0, 10, State.FINE),
        (1, 10, State.FINE),  # 3 %: within the margin of 5 points
        (4, 3, State.SUSPECT),  # 13 %: beyond it, and 12 of 90 prove little
        (4, 40, State.BREACHED),
        (15, 1, State.FINE),  # one hour's outage decides nothing
        (15, 2, State.BREACHED),
    ],
)
def test_failed_calls_beyond_the_margin(arm: Arm, failed: int, hours: int, state: State) -> None:
    made = hours_of_calls(ArmCalls(calls=30, errors=failed), ArmCalls(calls=270), hours, arm=arm)
    assert judge(Errors(ALPHA), made).state is state


def test_errors_that_both_arms_have_are_not_the_candidates() -> None:
    made = hours_of_calls(ArmCalls(calls=30, errors=15), ArmCalls(calls=270, errors=135), 20)
    assert judge(Errors(ALPHA), made).state is State.FINE


def test_few_calls_prove_nothing() -> None:
    made = hours_of_calls(ArmCalls(calls=5, errors=5), ArmCalls(calls=270), 3)
    assert judge(Errors(ALPHA), made).state is State.FINE


@pytest.mark.parametrize(("invalid", "state"), [(0, State.FINE), (1, State.SUSPECT), (9, State.BREACHED)])
def test_invalid_actions_beyond_the_margin(invalid: int, state: State) -> None:
    hours = [
        an_hour(
            i,
            agents=[
                AgentResult(agent_id="c", arm=Arm.CANDIDATE, pnl_usd=0, decisions=15, invalid=invalid),
                AgentResult(agent_id="i", arm=Arm.INCUMBENT, pnl_usd=0, decisions=150, invalid=0),
            ],
        )
        for i in range(4)
    ]
    verdict = judge(InvalidActions(ALPHA), hours)
    assert verdict.state is state
    assert f"{4 * invalid} of 60 actions were invalid of the candidate" in verdict.sentence


@pytest.mark.parametrize(
    ("candidate_ms", "hours", "state"),
    [
        (400.0, 30, State.FINE),
        (790.0, 30, State.FINE),  # less than twice
        (3000.0, 1, State.FINE),
        (3000.0, 3, State.SUSPECT),
        (3000.0, 8, State.BREACHED),
    ],
)
def test_hours_that_are_slow(candidate_ms: float, hours: int, state: State) -> None:
    slow, usual = (ArmCalls(calls=20, latency_ms=(ms,) * 20) for ms in (candidate_ms, 400.0))
    assert judge(Latency(ALPHA), hours_of_calls(slow, usual, hours)).state is state


def test_twice_of_next_to_nothing_is_not_slow() -> None:
    slow, usual = (ArmCalls(calls=20, latency_ms=(ms,) * 20) for ms in (30.0, 10.0))
    assert judge(Latency(ALPHA), hours_of_calls(slow, usual, 30)).state is State.FINE


def test_hours_with_few_calls_are_no_sample_of_latency() -> None:
    slow, usual = (ArmCalls(calls=19, latency_ms=(ms,) * 19) for ms in (9000.0, 10.0))
    assert judge(Latency(ALPHA), hours_of_calls(slow, usual, 30)).state is State.FINE


INCUMBENT = (-100.0, -50.0, 0.0, 50.0, 100.0)


def test_a_crash_is_seen_before_the_interval_exists() -> None:
    hours = [an_hour(i, [-2000.0], INCUMBENT) for i in range(4)]
    verdict = judge(Drawdown(ALPHA), hours)
    assert verdict.state is State.BREACHED
    assert "8,000 USD an agent behind the incumbent's, 6,000 without its worst window" in verdict.sentence


def test_one_bad_hour_is_no_drawdown() -> None:
    hours = [an_hour(i, [-9000.0 if i == 2 else 0.0], INCUMBENT) for i in range(6)]
    assert judge(Drawdown(ALPHA), hours).state is State.FINE


def test_a_crash_of_all_its_agents_does_not_widen_the_limit() -> None:
    hours = [an_hour(i, [-900.0 * i] * 5, INCUMBENT) for i in range(5)]
    assert judge(Drawdown(ALPHA), hours).state is State.BREACHED


def test_too_few_windows_have_no_limit() -> None:
    assert judge(Drawdown(ALPHA), [an_hour(i, [-2000.0], INCUMBENT) for i in range(2)]).state is State.FINE


@pytest.mark.parametrize(("limit", "state"), [(499.0, State.BREACHED), (501.0, State.FINE)])
def test_an_operators_limit_holds_from_the_first_window(limit: float, state: State) -> None:
    assert judge(Drawdown(ALPHA, limit), [an_hour(0, [-500.0], [0.0])]).state is state
