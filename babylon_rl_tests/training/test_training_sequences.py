"""What trains, decided without ART or torch."""

from dataclasses import replace

import msgspec
import pytest
from training_factories import LINEAGE, a_batch, a_group, with_turns

from babylon_rl.errors import DataError
from babylon_rl.policy.shipped import shipped_base
from babylon_rl.training.foreign_turns import find_speaker
from babylon_rl.training.sequences import MIN_TEMPERATURE, PARENT, Behaviour, behaviour_of, plan_training
from babylon_rl.types import Turn

CONTEXT = 2048


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shipped_base(), local_files_only=True)


def test_each_decision_of_a_window_is_one_group(tokenizer) -> None:
    plan = plan_training(a_batch(a_group(0, agents=5, decisions=3)), tokenizer, context=CONTEXT)

    assert [d.decision for d in plan.decisions] == [0, 1, 2]
    for d in plan.decisions:
        rewards = {s.trajectory_id.rpartition("-")[2]: s.reward for s in d.sequences}
        assert rewards == {"0": 0.0, "1": 0.25, "2": 0.5, "3": 0.75, "4": 1.0}


def test_order_of_groups_and_members_changes_nothing(tokenizer) -> None:
    groups = [a_group(i) for i in range(3)]
    turned = [
        replace(g, group=replace(g.group, members=g.group.members[::-1]), rewards=dict(reversed(g.rewards.items())))
        for g in groups[::-1]
    ]

    plans = [plan_training(a_batch(*gs), tokenizer, context=CONTEXT) for gs in (groups, turned)]

    assert plans[0] == plans[1]


def test_the_answer_trains_to_its_end_token_and_ends_there(tokenizer) -> None:
    plan = plan_training(a_batch(a_group(0)), tokenizer, context=CONTEXT)

    for s in (s for d in plan.decisions for s in d.sequences):
        assert s.response_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(s.response_ids[:-1]) == s.turn.response


def test_a_window_with_equal_rewards_trains_nothing(tokenizer) -> None:
    """0.1 three times has a float mean that is not 0.1: without our own check ART trains on the rounding error."""
    flat = a_group(0, agents=3, rewards=dict.fromkeys(range(3), 0.1))

    plan = plan_training(a_batch(flat, a_group(1)), tokenizer, context=CONTEXT)

    assert {d.window_id for d in plan.decisions} == {"2025-01-15T11:00"}
    assert plan.counts["data/groups_without_spread"] == 1
    with pytest.raises(DataError, match="every member has the same reward"):
        plan_training(a_batch(flat), tokenizer, context=CONTEXT)


def test_a_prompt_beyond_the_context_is_left_out_whole(tokenizer) -> None:
    group = a_group(0, agents=4, decisions=1)
    first = group.group.members[0]
    long = msgspec.structs.replace(first.turns[0], user=first.turns[0].user * 20)
    members = (replace(first, turns=(long,)), *group.group.members[1:])
    batch = a_batch(replace(group, group=replace(group.group, members=members)))

    plan = plan_training(batch, tokenizer, context=CONTEXT)

    assert plan.counts["data/turns_too_long"] == 1
    assert sorted(s.trajectory_id for s in plan.decisions[0].sequences) == [m.trajectory_id for m in members[1:]]
    assert plan.longest <= CONTEXT


def test_nothing_left_to_train_on_is_an_error_that_says_why(tokenizer) -> None:
    with pytest.raises(DataError, match=r"no trainable tokens: of 10 turns, 10 are longer than .* 20 tokens"):
        plan_training(a_batch(a_group(0)), tokenizer, context=20)
    with pytest.raises(DataError, match="10 have no answer"):
        plan_training(a_batch(with_turns(a_group(0), response="")), tokenizer, context=CONTEXT)


def test_an_agent_that_missed_a_decision_costs_no_other_its_turn(tokenizer) -> None:
    group = a_group(0, agents=2, decisions=2)
    first, second = group.group.members
    members = (first, replace(second, turns=second.turns[:1]))

    plan = plan_training(
        a_batch(replace(group, group=replace(group.group, members=members))), tokenizer, context=CONTEXT
    )

    assert [(d.decision, len(d.sequences)) for d in plan.decisions] == [(0, 2), (1, 1)]
    assert {s.trajectory_id[-1]: (round(s.advantage, 5), s.weight) for d in plan.decisions for s in d.sequences} == {
        "0": (-1.0, 0.75),
        "1": (1.0, 1.5),
    }


@pytest.mark.parametrize(
    ("version", "temperature", "expected"),
    [
        (f"{LINEAGE}@5", 1.0, (Behaviour(5, 1.0), "recomputed")),
        (f"{LINEAGE}@3", 0.7, (Behaviour(3, 0.7), "recomputed")),
        (f"{LINEAGE}@3", None, (Behaviour(3, 1.0), "recomputed")),
        (f"{LINEAGE}@2", 1.0, (PARENT, "stale")),
        (f"{LINEAGE}@6", 1.0, (PARENT, "unknown")),
        (f"{LINEAGE}@5", MIN_TEMPERATURE / 2, (PARENT, "greedy")),
        ("other-line@5", 1.0, (PARENT, "unknown")),
        (None, 1.0, (PARENT, "unknown")),
        ("gpt-4o", 1.0, (PARENT, "unknown")),
    ],
)
def test_only_recent_checkpoints_give_their_own_log_probs(version, temperature, expected) -> None:
    turn = Turn(system="s", user="u", response="r", policy_version=version, temperature=temperature)

    assert behaviour_of(turn, find_speaker(version, LINEAGE), parent_step=5) == expected


def test_turns_are_counted_by_whose_log_probs_stand_for_theirs(tokenizer) -> None:
    groups = [
        a_group(0, version=f"{LINEAGE}@4"),
        a_group(1, version=f"{LINEAGE}@1"),
        a_group(2, version="scripted/habits"),
        a_group(3, version=f"{LINEAGE}@4", temperature=0.0),
    ]

    counts = plan_training(a_batch(*groups, step=5), tokenizer, context=CONTEXT).counts

    kinds = ("recomputed", "stale", "unknown", "greedy")
    assert {k: counts[f"behaviour/{k}"] for k in kinds} == dict.fromkeys(kinds, 10.0)


@pytest.mark.parametrize(
    ("rewards", "says"),
    [
        ({0: 0.0, 1: 1.5}, "outside"),
        ({0: 0.0, 1: float("nan")}, "outside"),
    ],
)
def test_a_reward_outside_the_unit_interval_is_refused(tokenizer, rewards, says) -> None:
    with pytest.raises(DataError, match=says):
        plan_training(a_batch(a_group(0, agents=2, rewards=rewards)), tokenizer, context=CONTEXT)


def test_rewards_and_members_must_match_one_to_one(tokenizer) -> None:
    group = a_group(0)
    for rewards in ({**group.rewards, "someone": 0.5}, dict(list(group.rewards.items())[1:])):
        with pytest.raises(DataError, match="unmatched"):
            plan_training(a_batch(replace(group, rewards=rewards)), tokenizer, context=CONTEXT)


def test_a_cut_answer_does_not_train_the_end_token(tokenizer) -> None:
    """Else the policy learns to stop in the middle of a word, where its limit happened to be."""
    group = a_group(0, agents=3, decisions=1)
    first = group.group.members[0]
    cut = replace(first, turns=tuple(msgspec.structs.replace(t, is_cut=True) for t in first.turns))
    batch = a_batch(replace(group, group=replace(group.group, members=(cut, *group.group.members[1:]))))

    plan = plan_training(batch, tokenizer, context=CONTEXT)

    ends = {s.trajectory_id: s.response_ids[-1] == tokenizer.eos_token_id for s in plan.decisions[0].sequences}
    assert ends == {m.trajectory_id: m is not cut for m in (cut, *group.group.members[1:])}
    assert all(
        tokenizer.decode(s.response_ids, skip_special_tokens=True) == s.turn.response
        for s in plan.decisions[0].sequences
    )
    assert plan.counts["data/turns_cut"] == 1
