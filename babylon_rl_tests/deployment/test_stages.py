import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.deployment.stages import (
    SHARES,
    TEST_SHARES,
    Arm,
    Deployment,
    Stage,
    choose_threshold,
    is_test_agent,
    place_of,
)

AGENTS = st.sets(st.text(min_size=1), min_size=2, max_size=30)
SHARE = st.floats(min_value=0.001, max_value=0.999)


def count_inside(rollout: str, agents: set[str], threshold: float) -> int:
    return sum(place_of(rollout, a) < threshold for a in agents)


@given(st.text(), AGENTS, SHARE)
def test_both_arms_keep_somebody(rollout: str, agents: set[str], share: float) -> None:
    inside = count_inside(rollout, agents, choose_threshold(rollout, agents, share))
    assert 1 <= inside <= len(agents) - 1


@given(st.text(), AGENTS, SHARE, SHARE, SHARE)
def test_a_threshold_never_falls(rollout: str, agents: set[str], share: float, other: float, before: float) -> None:
    assert choose_threshold(rollout, agents, share, at_least=before) >= before
    low, high = sorted((share, other))
    assert choose_threshold(rollout, agents, low) <= choose_threshold(rollout, agents, high)


@pytest.mark.parametrize(("stage", "others", "tests"), [(Stage.CANARY, 1, 5), (Stage.HALF, 5, 5)])
def test_ten_agents_split_as_the_stage_says(stage: Stage, others: int, tests: int) -> None:
    for k in range(50):
        agents = {f"agent-{i}" for i in range(10)}
        assert count_inside(f"r{k}", agents, choose_threshold(f"r{k}", agents, SHARES[stage])) == others
        assert count_inside(f"r{k}", agents, choose_threshold(f"r{k}", agents, TEST_SHARES[stage])) == tests


def test_the_share_of_newcomers_is_about_the_stages() -> None:
    agents = {f"agent-{i}" for i in range(1000)}
    threshold = choose_threshold("r", agents, 0.1)
    assert 60 <= count_inside("r", {f"newcomer-{i}" for i in range(1000)}, threshold) <= 140


@pytest.mark.parametrize(("share", "threshold"), [(0.0, 0.0), (0.1, 0.1), (1.0, 1.0)])
def test_without_agents_the_threshold_is_the_share(share: float, threshold: float) -> None:
    assert choose_threshold("r", [], share) == threshold


def test_an_agent_changes_arm_once_in_a_rollout() -> None:
    for k in range(30):
        rollout, agents = f"babylon-mmo@1#{k}", [f"agent-{i}" for i in range(20)]
        thresholds = [0.0]
        for share in (0.0, SHARES[Stage.CANARY], SHARES[Stage.HALF]):
            thresholds.append(choose_threshold(rollout, agents, share, at_least=thresholds[-1]))
        states = [Deployment(lineage="babylon-mmo", candidate=1, rollout=rollout, threshold=t) for t in thresholds]
        for agent in agents:
            steps = [s.step_of(s.arm_of(agent)) for s in states] + [1]  # promoted: the candidate is the incumbent
            assert steps == sorted(steps)
            assert set(steps) <= {0, 1}


def test_a_place_is_the_same_in_another_process() -> None:
    """`hash()` would differ from process to process, and an agent would change arm with each restart."""
    script = (
        "import sys; from babylon_rl.deployment.stages import place_of; import babylon_rl.deployment.rules; "
        "print([place_of('r', f'agent-{i}') for i in range(5)], 'numpy' in sys.modules)"
    )
    expected = f"{[place_of('r', f'agent-{i}') for i in range(5)]} False\n"
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
        )
        assert run.stdout == expected


def test_places_of_two_rollouts_are_unrelated() -> None:
    """Else the same agents would meet every canary."""
    agents = [f"agent-{i}" for i in range(400)]
    both = sum(place_of("r1", a) < 0.5 and place_of("r2", a) < 0.5 for a in agents)
    assert 70 <= both <= 130


def test_an_id_that_is_no_unicode_has_a_place() -> None:
    assert 0 <= place_of("r", "\ud800") < 1


def test_who_answers_an_agent() -> None:
    state = Deployment(lineage="babylon-mmo", incumbent=2, candidate=3, rollout="r", threshold=0.0, test_threshold=1.0)
    assert state.arm_of(None) is Arm.UNNAMED
    assert state.arm_of("a") is Arm.INCUMBENT
    assert state.arm_of("a", is_test=True) is Arm.CANDIDATE
    assert [state.step_of(arm) for arm in (Arm.INCUMBENT, Arm.CANDIDATE, Arm.SHADOW, Arm.UNNAMED)] == [2, 3, 3, 2]
    assert (state.incumbent_name, state.candidate_name) == ("babylon-mmo@2", "babylon-mmo@3")
    assert Deployment(lineage="babylon-mmo").arm_of("a") is Arm.INCUMBENT


@pytest.mark.parametrize(
    ("agent", "is_test"), [("test-1", True), ("Test-1", False), ("mytest-1", False), ("qa-7", True)]
)
def test_test_agents_match_a_shell_pattern(agent: str, is_test: bool) -> None:
    assert is_test_agent(agent, ("test-*", "qa-?")) is is_test
