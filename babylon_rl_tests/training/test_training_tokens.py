"""What ART makes of our groups, by ART's own code: the tokens, the masks and the advantages that train."""

from pathlib import Path

import pytest
from training_factories import a_batch, a_group

from babylon_rl.policy.checkpoints import PROJECT, checkpoint_dir
from babylon_rl.policy.model import load_policy
from babylon_rl.policy.shipped import shipped_base
from babylon_rl.training.art_groups import SCALE_REWARDS
from babylon_rl.training.cpu_attention import use_packed_attention
from babylon_rl.training.packing import pack_rows
from babylon_rl.training.sequences import plan_training

CONTEXT = 2048


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    from babylon_rl.training.cpu_backend import CpuEngine

    return CpuEngine(tmp_path_factory.mktemp("checkpoints"), shipped_base())


def results_of(engine, batch, **options):
    from art.preprocessing.tokenize import tokenize_trajectory_groups

    plan = plan_training(batch, engine.tokenizer, context=CONTEXT)
    return plan, list(
        tokenize_trajectory_groups(engine.tokenizer, engine.build_groups(plan), False, SCALE_REWARDS, **options)
    )


def test_only_the_answer_of_each_sequence_trains(engine) -> None:
    """From the logged text alone: the template's prompt, then the answer and its end token, and nothing after it."""
    tok = engine.tokenizer
    batch = a_batch(a_group(0, agents=5, decisions=2), a_group(1, agents=5, decisions=2))

    _, results = results_of(engine, batch)

    trained = {}
    for r in results:
        answer = [t for t, m in zip(r.token_ids, r.assistant_mask, strict=True) if m]
        trained.setdefault(r.trajectory.metadata["trajectory_id"], []).append((list(r.token_ids), answer))
    for rewarded in batch.groups:
        middle = f"{rewarded.group.window_id}/agent-2"  # its reward is the mean: no advantage, nothing to learn
        for member in rewarded.group.members:
            expected = []
            for turn in member.turns:
                prompt = tok.apply_chat_template(
                    [{"role": "system", "content": turn.system}, {"role": "user", "content": turn.user}],
                    add_generation_prompt=True,
                    tokenize=False,
                )
                answer = [*tok.encode(turn.response, add_special_tokens=False), tok.eos_token_id]
                expected.append((tok.encode(prompt, add_special_tokens=False) + answer, answer))
            if member.trajectory_id == middle:
                assert member.trajectory_id not in trained
            else:
                assert sorted(trained[member.trajectory_id]) == sorted(expected)


def test_advantages_are_those_worked_by_hand(engine) -> None:
    """Rewards 0, 1/4 and 1: mean 5/12, deviations -5/12, -2/12, 7/12, standard deviation √(78/432) = 0.42492."""
    _, results = results_of(engine, a_batch(a_group(0, agents=3, decisions=2, rewards={0: 0.0, 1: 0.25, 2: 1.0})))

    by_agent = {r.trajectory.metadata["trajectory_id"][-1]: r.advantage for r in results}
    assert len(results) == 6
    assert by_agent == {
        "0": pytest.approx(-0.98058, abs=1e-4),
        "1": pytest.approx(-0.39223, abs=1e-4),
        "2": pytest.approx(1.37281, abs=1e-4),
    }


def test_our_rows_hold_what_arts_rows_hold(engine) -> None:
    """Same sequences, positions, weights and advantages as `art.preprocessing.pack`, and no random order."""
    import torch
    from art.preprocessing.pack import packed_tensors_from_tokenized_results

    _, results = results_of(
        engine, a_batch(*(a_group(i, agents=6) for i in range(3))), shuffle_group_trajectories=False
    )
    ours = pack_rows(results, 640, engine.tokenizer.pad_token_id)
    theirs = packed_tensors_from_tokenized_results(results, 640, engine.tokenizer.pad_token_id, pack_results=True)

    def rows(packed):
        return sorted(
            (
                packed["tokens"][i].tolist(),
                packed["input_pos"][i].tolist(),
                packed["assistant_mask"][i].tolist(),
                [round(x, 4) for x in packed["weights"][i].tolist()],
                [round(x, 4) for x in packed["advantages"][i].tolist()],
                packed["logprobs"][i].nan_to_num(-7).tolist(),
                # ART's ids are random: what counts is which are equal.
                (packed["group_ids"][i][:, None] == packed["group_ids"][i][None]).tolist(),
                (packed["parent_ids"][i][:, None] == packed["group_ids"][i][None]).tolist(),
            )
            for i in range(len(packed["tokens"]))
        )

    assert rows(ours) == rows(theirs)
    again = pack_rows(results, 640, engine.tokenizer.pad_token_id)
    assert all(torch.equal(ours[k].nan_to_num(), again[k].nan_to_num()) for k in ("advantages", "weights", "group_ids"))


def test_packing_does_not_change_log_probs(engine) -> None:
    """A packed token attends to its own prompt and answer only, at its own temperature."""
    import torch

    from babylon_rl.training.cpu_service import token_logprobs

    _, results = results_of(engine, a_batch(a_group(0, agents=6), a_group(1, agents=3)))
    rows = {k: v for k, v in pack_rows(results, 700, 0).items() if isinstance(v, torch.Tensor)}
    rows["temperature"] = torch.full(rows["tokens"].shape, 0.7)
    model = load_policy(shipped_base()).model

    with torch.inference_mode():
        packed, _ = token_logprobs(use_packed_attention(load_policy(shipped_base()).model), rows)
        alone = []
        for r in results:
            logits = model(input_ids=torch.tensor([r.token_ids])).logits[0].float() / 0.7
            logprobs = torch.log_softmax(logits, -1)
            alone += [
                float(logprobs[t - 1, token])
                for t, (token, m) in enumerate(zip(r.token_ids, r.assistant_mask, strict=True))
                if m
            ]

    # Row by row, the trainable positions follow the order of the results.
    packed_logprobs = packed[torch.nn.functional.pad(rows["assistant_mask"][:, 1:], (0, 1))].tolist()
    assert packed_logprobs == pytest.approx(alone, abs=2e-4)


def test_checkpoints_lie_where_art_looks_for_them(tmp_path: Path) -> None:
    import art
    from art.utils.get_model_step import get_model_step
    from art.utils.output_dirs import get_model_dir, get_step_checkpoint_dir

    model = art.TrainableModel(project=PROJECT, name="line.1", base_model="base")
    ours = checkpoint_dir(tmp_path, "line.1", 12)
    assert str(ours) == get_step_checkpoint_dir(get_model_dir(model, str(tmp_path)), 12)
    ours.mkdir(parents=True)
    ours.with_name("0013.tmp").mkdir()
    assert get_model_step(model, str(tmp_path)) == 12
