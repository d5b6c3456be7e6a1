"""Equal scores: one rule for the gate and for the ranks that train, and a partition whatever the order."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.judging.ties import LLM_WITHIN, tie_classes, tolerance_of
from babylon_rl.pipeline.check_rules import scores_spread
from babylon_rl.training.rewards import rewards_of
from babylon_rl.types import Judgment, Score

LLM = "openai/gpt-4o-mini"


def a_judgment(*values: float, judge: str = LLM) -> Judgment:
    scores = tuple(Score(trajectory_id=f"w/a{i}", value=v, explanation="") for i, v in enumerate(values))
    return Judgment(key="k", group_id="g", window_id="w", judge_model=judge, judge_version="1", scores=scores)


def ranks(*values: float, judge: str = LLM) -> list[float]:
    return list(rewards_of(a_judgment(*values, judge=judge)).values())


def test_what_an_llm_cannot_tell_apart_gets_one_reward() -> None:
    # Two places of four each: the mean of ranks 2 and 3, and of ranks 0 and 1, over 3.
    assert ranks(0.804, 0.8, 0.3, 0.301) == pytest.approx([2.5 / 3, 2.5 / 3, 0.5 / 3, 0.5 / 3])
    assert ranks(0.85, 0.84, 0.5) == [0.75, 0.75, 0.0]  # 0.85 - 0.84 is 0.010000000000000009
    assert ranks(0.85, 0.83, 0.5) == [1.0, 0.5, 0.0]


def test_a_computed_score_is_told_apart_to_a_millionth() -> None:
    assert ranks(0.8001, 0.8, 0.3, judge="hindsight") == [1.0, 0.5, 0.0]
    assert ranks(0.8 + 1e-9, 0.8, 0.3, judge="hindsight") == [0.75, 0.75, 0.0]
    assert ranks(0.8001, 0.8, 0.3, judge="dice") == [1.0, 0.5, 0.0]


def test_a_chain_of_small_steps_ties_nobody_with_everybody() -> None:
    chain = {f"a{i}": 0.5 - 0.006 * i for i in range(5)}
    assert tie_classes(chain, within=LLM_WITHIN) == [["a0", "a1"], ["a2", "a3"], ["a4"]]


values = st.lists(st.integers(0, 300).map(lambda n: n / 1000), min_size=2, max_size=12)


@settings(max_examples=200, deadline=None)
@given(values, st.integers(0, 10**6), st.sampled_from([LLM, "hindsight"]))
def test_ties_are_a_partition_that_no_order_changes(scores: list[float], seed: int, judge: str) -> None:
    named = {f"w/a{i}": v for i, v in enumerate(scores)}
    within = tolerance_of(judge)
    classes = tie_classes(named, within=within)
    assert sorted(t for c in classes for t in c) == sorted(named)
    assert all(max(named[t] for t in c) - min(named[t] for t in c) <= within + 1e-9 for c in classes)
    shuffled = random.Random(seed).sample(sorted(named.items()), len(named))
    assert tie_classes(dict(shuffled), within=within) == classes
    rewards = rewards_of(a_judgment(*scores, judge=judge))
    assert sum(rewards.values()) == pytest.approx(len(scores) / 2)
    assert all(rewards[a] >= rewards[b] for a in named for b in named if named[a] >= named[b])


@settings(max_examples=200, deadline=None)
@given(values, st.sampled_from([LLM, "hindsight"]))
def test_the_gate_and_the_ranks_agree_on_equal(scores: list[float], judge: str) -> None:
    judgment = a_judgment(*scores, judge=judge)
    assert scores_spread(judgment).passed is (len(set(rewards_of(judgment).values())) > 1)
