"""One advantage per trajectory, over its group; worked by hand, and read off what ART's own tokenizer and packer make."""

import math
from collections import defaultdict
from dataclasses import replace

import pytest
from training_factories import a_batch, a_group

from babylon_rl.policy.shipped import shipped_base
from babylon_rl.training.art_groups import to_art_groups
from babylon_rl.training.packing import pack_rows
from babylon_rl.training.rewards import grpo_advantages
from babylon_rl.training.sequences import TrainingPlan, plan_training
from babylon_rl.training.trainer import RewardedGroup

CONTEXT = 2048


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shipped_base(), local_files_only=True)


def a_ragged_group(*turns: int, hours: int = 0, rewards: dict[int, float] | None = None) -> RewardedGroup:
    """Agent i has `turns[i]` turns."""
    made = a_group(hours, agents=len(turns), decisions=max(turns), rewards=rewards)
    members = tuple(replace(m, turns=m.turns[:n]) for m, n in zip(made.group.members, turns, strict=True))
    return replace(made, group=replace(made.group, members=members))


def tokenise(tokenizer, plan: TrainingPlan):
    from art.preprocessing.tokenize import tokenize_trajectory_groups

    groups = to_art_groups(plan)
    return list(tokenize_trajectory_groups(tokenizer, groups, False, False, shuffle_group_trajectories=False))


def pulls(results, pad_id: int) -> dict[str, list[float]]:
    """Trajectory id → per turn, the sum of advantage × weight over its packed tokens: how strongly the loss pulls at it."""
    packed = pack_rows(results, max(len(r.token_ids) for r in results), pad_id)
    pulled = (packed["advantages"] * packed["weights"]).double()
    totals = defaultdict(list)
    rows = iter(
        float(pulled[row][packed["group_ids"][row] == group].sum())
        for row in range(len(pulled))
        for group in dict.fromkeys(packed["group_ids"][row][packed["assistant_mask"][row]].tolist())
    )
    for r in results:
        totals[r.trajectory.metadata["trajectory_id"]].append(next(rows))
    return totals


@pytest.mark.parametrize("turns", [(1, 12, 3, 7, 2, 9, 5, 4), (12, 1, 1, 1, 1, 1, 1, 2), (1, 2, 3, 4, 5, 6, 7, 8)])
def test_no_trajectory_has_turns_of_both_signs(tokenizer, turns) -> None:
    """By turn index, the second best of eight got +1.09 while all played and −1.00 where only it and the best did."""
    plan = plan_training(a_batch(a_ragged_group(*turns)), tokenizer, context=CONTEXT)

    signs = defaultdict(set)
    trained = 0
    for r in tokenise(tokenizer, plan):
        signs[r.trajectory.metadata["trajectory_id"]].add(math.copysign(1, r.advantage))
        trained += 1
    assert {len(s) for s in signs.values()} == {1}
    assert trained == sum(turns), "every turn trains, also one that nobody else took"


def test_every_trajectory_pulls_by_its_one_advantage(tokenizer) -> None:
    """Rewards 0, 1/4 and 1 over 1, 2 and 12 turns: advantages −0.98058, −0.39223 and +1.37281 (of test_training_tokens),

    each split evenly over the turns. Three trajectories weigh the same, so 5 turns (15/3) stand for each.
    """
    batch = a_batch(a_ragged_group(1, 2, 12, rewards={0: 0.0, 1: 0.25, 2: 1.0}))
    plan = plan_training(batch, tokenizer, context=CONTEXT)

    found = pulls(tokenise(tokenizer, plan), tokenizer.pad_token_id)

    by_agent = {name[-1]: values for name, values in found.items()}
    assert {a: len(v) for a, v in by_agent.items()} == {"0": 1, "1": 2, "2": 12}
    for values in by_agent.values():
        assert values == pytest.approx([sum(values) / len(values)] * len(values), rel=1e-3)
    expected = {"0": -0.98058, "1": -0.39223, "2": 1.37281}
    scale = sum(map(abs, expected.values())) / sum(abs(sum(v)) for v in by_agent.values())
    assert {a: sum(v) * scale for a, v in by_agent.items()} == pytest.approx(expected, rel=1e-3)


def test_equal_turn_counts_give_the_old_numbers_to_the_bit(tokenizer) -> None:
    """What ART computes from ranks, decision by decision: the way it was while all agents had the same turns."""
    from art import Trajectory, TrajectoryGroup
    from art.preprocessing.tokenize import tokenize_trajectory_groups

    for agents in (3, 5, 8, 11):
        plan = plan_training(
            a_batch(*(a_group(i, agents=agents, decisions=3) for i in range(2))), tokenizer, context=CONTEXT
        )
        ours = [(r.trajectory.metadata["trajectory_id"], r.advantage, r.weight) for r in tokenise(tokenizer, plan)]
        old = []
        for art_group in to_art_groups(plan):
            names = [t.metadata["trajectory_id"] for t in art_group if "trajectory_id" in t.metadata]
            rewards = {s.trajectory_id: s.reward for d in plan.decisions for s in d.sequences}
            ranked = TrajectoryGroup(
                Trajectory(messages_and_choices=t.messages_and_choices, reward=rewards[n], metadata=t.metadata)
                for n, t in zip(names, art_group, strict=False)
            )
            old += [
                (r.trajectory.metadata["trajectory_id"], r.advantage, r.weight)
                for r in tokenize_trajectory_groups(tokenizer, [ranked], False, True, shuffle_group_trajectories=False)
            ]
        assert ours == old


def test_a_member_without_turns_counts_in_the_mean(tokenizer) -> None:
    """Its rank is known though nothing of it trains: the others' advantages are those over all four."""
    ragged = a_ragged_group(2, 2, 2, 2)
    silent = replace(ragged.group.members[3], turns=())
    group = replace(ragged, group=replace(ragged.group, members=(*ragged.group.members[:3], silent)))

    results = tokenise(tokenizer, plan_training(a_batch(group), tokenizer, context=CONTEXT))

    expected = dict(zip("012", grpo_advantages([0, 1 / 3, 2 / 3, 1])[:3], strict=True))
    assert {r.trajectory.metadata["trajectory_id"][-1]: r.advantage for r in results} == pytest.approx(expected)
