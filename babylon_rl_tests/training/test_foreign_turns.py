"""Turns of models that are not ours: judged and reported like all, trained on by a stated rule."""

from collections import Counter
from dataclasses import replace

import pytest
from training_factories import LINEAGE, a_batch, a_group, with_turns

from babylon_rl.errors import DataError
from babylon_rl.policy.shipped import shipped_base
from babylon_rl.training.art_groups import to_art_groups
from babylon_rl.training.foreign_turns import FOREIGN, Speaker, find_speaker
from babylon_rl.training.sequences import plan_training

CONTEXT = 2048
OWN = f"{LINEAGE}@0"


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shipped_base(), local_files_only=True)


def a_mixed_group(*versions: str | None, hours: int = 0):
    """Agent i answers as `versions[i]`; its reward rises with i."""
    made = a_group(hours, agents=len(versions), decisions=2)
    members = tuple(
        with_turns(replace(made, group=replace(made.group, members=(m,))), policy_version=v).group.members[0]
        for m, v in zip(made.group.members, versions, strict=True)
    )
    return replace(made, group=replace(made.group, members=members))


def trained(tokenizer, batch, **options) -> Counter[str]:
    """Agent → its number of turns that ART's own tokenizer trains on; "+" after one that is reinforced."""
    from art.preprocessing.tokenize import tokenize_trajectory_groups

    plan = plan_training(batch, tokenizer, context=CONTEXT, **options)
    results = tokenize_trajectory_groups(tokenizer, to_art_groups(plan), False, False)
    return Counter(r.trajectory.metadata["trajectory_id"][-1] + "+" * (r.advantage > 0) for r in results)


def test_a_foreign_text_is_never_pushed_down_by_default(tokenizer) -> None:
    """The worst two of four are one of ours and one of gpt-4o's: only our own is made less likely."""
    found = trained(tokenizer, a_batch(a_mixed_group(OWN, "gpt-4o", OWN, "gpt-4o")))

    assert found == {"0": 2, "2+": 2, "3+": 2}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("own_only", {"0": 2, "2+": 2}),
        ("positive_only", {"0": 2, "2+": 2, "3+": 2}),
        ("all", {"0": 2, "1": 2, "2+": 2, "3+": 2}),
    ],
)
def test_the_setting_names_which_foreign_turns_train(tokenizer, rule, expected) -> None:
    batch = replace(a_batch(a_mixed_group(OWN, "gpt-4o", OWN, None)), foreign_turns=rule)

    assert trained(tokenizer, batch) == expected


def test_what_others_said_counts_in_the_comparison(tokenizer) -> None:
    """Judged as before: an own turn's advantage is over all members, whoever of them trains."""
    batch = a_batch(a_mixed_group(OWN, "gpt-4o", OWN, "gpt-4o"))
    advantages = {
        s.trajectory_id[-1]: s.advantage
        for rule in ("own_only", "all")
        for d in plan_training(replace(batch, foreign_turns=rule), tokenizer, context=CONTEXT).decisions
        for s in d.sequences
    }

    own_only = plan_training(replace(batch, foreign_turns="own_only"), tokenizer, context=CONTEXT)
    assert all(s.advantage == advantages[s.trajectory_id[-1]] for d in own_only.decisions for s in d.sequences)
    # Ranks 0, 1/3, 2/3, 1: mean 1/2, deviation √(5/36) = 0.37268.
    assert advantages == pytest.approx({"0": -1.34163, "1": -0.44721, "2": 0.44721, "3": 1.34163}, abs=1e-4)


def test_a_batch_of_others_turns_is_refused_with_what_to_do(tokenizer) -> None:
    batch = a_batch(a_mixed_group(OWN, "gpt-4o", None, "gpt-4o"), a_mixed_group(OWN, OWN, None, None, hours=1))

    with pytest.raises(DataError, match=r"6 of 16 turns .* share of 0\.38, .*MIN_OWN_SHARE asks for 0\.5.*SHARE=0"):
        plan_training(batch, tokenizer, context=CONTEXT)
    for at_least in (0.0, 0.375):
        counts = plan_training(replace(batch, min_own_share=at_least), tokenizer, context=CONTEXT).counts
        assert (counts["data/own_share"], counts["data/turns_own"], counts["data/turns_foreign"]) == (0.375, 6, 10)
        assert counts["data/turns_foreign_left_out"] == 2  # of agent 1, in the first window


def test_nothing_left_by_the_rule_is_an_error_that_names_it(tokenizer) -> None:
    batch = replace(a_batch(a_mixed_group(None, "gpt-4o")), foreign_turns="own_only", min_own_share=0.0)

    with pytest.raises(DataError, match="4 are other models' answers that BABYLON_FOREIGN_TURNS=own_only leaves out"):
        plan_training(batch, tokenizer, context=CONTEXT)


@pytest.mark.parametrize(
    ("version", "speaker"),
    [
        (f"{LINEAGE}@0", Speaker(is_own=True, step=0)),
        (f"{LINEAGE}@12", Speaker(is_own=True, step=12)),
        (f" {LINEAGE}@3 ", Speaker(is_own=True, step=3)),
        (f"hosted_vllm/{LINEAGE}@3", Speaker(is_own=True, step=3)),
        (f"wandb-artifact:///entity/babylon-agents/{LINEAGE}:step7", Speaker(is_own=True, step=7)),
        (f"{LINEAGE}@latest", Speaker(is_own=True)),
        (f"{LINEAGE}@" + "9" * 5000, Speaker(is_own=True)),
        ("Qwen/Qwen3-4B", Speaker(is_own=True, step=0)),
        ("openai/Qwen/Qwen3-4B", Speaker(is_own=True, step=0)),
        ("scripted/habits", Speaker(is_own=True)),
        (f"{LINEAGE}", FOREIGN),
        (f"not-{LINEAGE}@3", FOREIGN),
        ("other-line@5", FOREIGN),
        ("Qwen3-4B", FOREIGN),
        ("gpt-4o", FOREIGN),
        ("@3", FOREIGN),
        ("", FOREIGN),
        (None, FOREIGN),
    ],
)
def test_whose_an_answer_is_stands_in_its_version(version, speaker) -> None:
    assert find_speaker(version, LINEAGE, "Qwen/Qwen3-4B") == speaker
