"""The CPU trainer end to end: real gradients, real files, real kills."""

import asyncio
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import training_factories
from training_factories import LINEAGE, a_batch, a_group, batch_of, cpu_trainer

from babylon_rl.errors import ConfigError, DataError, TransientError
from babylon_rl.policy.checkpoints import checkpoint_dir, steps, write_ledger_of
from babylon_rl.policy.model import load_policy
from babylon_rl.policy.shipped import shipped_base
from babylon_rl.settings import Settings
from babylon_rl.training import checkpoint_store
from babylon_rl.training.config import CpuTrainingConfig
from babylon_rl.training.factory import open_trainer
from babylon_rl.training.sequences import PARENT, Behaviour, plan_training
from babylon_rl.training.trainer import NoJob


def train(root: Path, batch):
    return asyncio.run(cpu_trainer(root).train(batch))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Steps 1 and 2 in this process, by one trainer."""
    root = tmp_path_factory.mktemp("uninterrupted")
    trainer = cpu_trainer(root)
    return root, [asyncio.run(trainer.train(batch_of(step))) for step in (1, 2)]


def files(root: Path, step: int) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(checkpoint_dir(root, LINEAGE, step).iterdir())}


def test_a_killed_training_run_again_writes_the_same_bytes(two_steps, tmp_path) -> None:
    """All state, Adam's too, is in the checkpoint: neither another process nor a kill -9 changes the bytes."""
    script = training_factories.__file__

    def run(*steps: str) -> int:
        done = subprocess.run([sys.executable, script, str(tmp_path), *steps], capture_output=True, text=True)
        assert done.stdout == "", "a trainer that prints breaks whoever draws on the screen"
        return done.returncode

    assert run("1", "2!") == -signal.SIGKILL
    assert steps(tmp_path, LINEAGE)[-1] == 1
    # What a kill during saving, and one between saving and recording, leave behind.
    checkpoint_dir(tmp_path, LINEAGE, 2).with_suffix(".tmp").mkdir()
    checkpoint_dir(tmp_path, LINEAGE, 2).mkdir()
    (checkpoint_dir(tmp_path, LINEAGE, 2) / "checkpoint.json").write_text("{}")
    train(tmp_path, batch_of(2))

    for step in (1, 2):
        assert files(tmp_path, step) == files(two_steps[0], step)
    assert not list(checkpoint_dir(tmp_path, LINEAGE, 2).parent.glob("*.tmp"))


def test_manifest_and_metadata_say_what_was_trained(two_steps) -> None:
    root, (first, second) = two_steps
    metadata = json.loads(files(root, 2)["checkpoint.json"])

    assert second.path == str(checkpoint_dir(root, LINEAGE, 2))
    assert second.manifest == checkpoint_store.file_digests(checkpoint_dir(root, LINEAGE, 2))
    assert set(second.manifest) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "checkpoint.json",
        "optimizer.safetensors",
    }
    assert (metadata["lineage"], metadata["step"], metadata["windows"]) == (
        LINEAGE,
        2,
        ["2025-01-15T12:00", "2025-01-15T13:00"],
    )
    assert metadata["judgment_keys"] == ["judgment-2", "judgment-3"]
    assert metadata["parent"] == {"step": 1, "digest": first.manifest["checkpoint.json"]}
    texts = b"".join(v for k, v in files(root, 2).items() if k.endswith(".json")).decode()
    assert str(root) not in texts
    assert str(shipped_base()) not in texts


def test_row_order_does_not_change_the_checkpoint_but_seed_does(two_steps, tmp_path) -> None:
    batch = batch_of(1)
    turned = tuple(replace(g, group=replace(g.group, members=g.group.members[::-1])) for g in reversed(batch.groups))

    train(tmp_path / "turned", replace(batch, groups=turned))
    train(tmp_path / "other", replace(batch, seed=2))

    assert files(tmp_path / "turned", 1) == files(two_steps[0], 1)
    assert (
        files(tmp_path / "other", 1)["adapter_model.safetensors"] != files(two_steps[0], 1)["adapter_model.safetensors"]
    )


def test_training_makes_high_rewards_likelier_and_low_less_so(tmp_path) -> None:
    import torch

    batch = a_batch(*(a_group(i, agents=4) for i in range(3)))
    train(tmp_path, replace(batch, learning_rate=0.01))
    plan = plan_training(batch, load_policy(shipped_base()).tokenizer, context=2048)

    def logprob(model, s) -> float:
        ids = torch.tensor([[*s.prompt_ids, *s.response_ids]])
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1)
        return float(logprobs.gather(1, ids[0, 1:, None])[-len(s.response_ids) :].sum())

    before, after = (
        load_policy(shipped_base()).model,
        load_policy(shipped_base(), checkpoint_dir(tmp_path, LINEAGE, 1)).model,
    )
    change = {0.0: 0.0, 1.0: 0.0}
    for s in (s for d in plan.decisions for s in d.sequences if s.reward in change):
        change[s.reward] += logprob(after, s) - logprob(before, s)
    assert change[1.0] > 0.05
    assert change[0.0] < -0.05


def test_old_log_probs_are_those_of_the_sampling_policy(two_steps) -> None:
    """Turns sampled by the base at 0.8 and turns of an unknown policy, with `@1` as parent: two policies, two temperatures."""
    import torch

    from babylon_rl.training.cpu_backend import CpuEngine
    from babylon_rl.training.cpu_service import CpuJob, CpuService

    root, _ = two_steps
    engine = CpuEngine(root, shipped_base())
    groups = (a_group(0, version=f"{LINEAGE}@0", temperature=0.8), a_group(1, version=None))
    plan = plan_training(a_batch(*groups, step=2), engine.tokenizer, context=2048)
    assert plan.behaviours == (Behaviour(0, 0.8), PARENT)
    model = type("Model", (), {"base_model": str(shipped_base())})
    packed = engine.backend._get_packed_tensors(model, engine.build_groups(plan), 0.0, False, True, False, 640, 1)
    rows = {k: v for k, v in packed.items() if isinstance(v, torch.Tensor)}
    service = CpuService(root, shipped_base(), CpuTrainingConfig(), None)
    service.job = CpuJob(lineage=LINEAGE, step=2, seed=1, base_digest="", behaviours=plan.behaviours)

    temperature = service._fill_logprobs(rows, (rows["group_ids"] != -1).sum(1))

    sampling_policy = {
        0: load_policy(shipped_base()).model,
        None: load_policy(shipped_base(), checkpoint_dir(root, LINEAGE, 1)).model,
    }
    expected = []
    for s in (s for d in plan.decisions for s in d.sequences if s.reward != 0.5):
        ids = torch.tensor([[*s.prompt_ids, *s.response_ids]])
        with torch.inference_mode():
            logits = sampling_policy[s.behaviour.step](input_ids=ids).logits[0, :-1].float() / s.behaviour.temperature
        logprobs = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[-len(s.response_ids) :, 0]
        expected += [(float(x), s.behaviour.temperature) for x in logprobs]
    mask = rows["assistant_mask"]
    assert rows["logprobs"][mask].tolist() == pytest.approx([e[0] for e in expected], abs=2e-4)
    assert temperature[mask].tolist() == pytest.approx([e[1] for e in expected])


def test_the_default_trainer_is_the_cpu_and_reports_each_step(tmp_path) -> None:
    reported = []

    async def run():
        settings = Settings.load(BABYLON_HOME=str(tmp_path))
        async with open_trainer(
            settings.training,
            checkpoints=settings.checkpoints_dir,
            jobs=NoJob(),
            progress=lambda steps=1, **facts: reported.append((steps, facts["total"])),
        ) as trainer:
            return trainer.name, await trainer.train(a_batch())

    name, made = asyncio.run(run())

    assert name == "cpu"
    assert Path(made.path).is_relative_to(tmp_path / "checkpoints")
    assert reported == [(1, 1)]
    assert made.metrics["behaviour/unknown"] == 20
    assert (
        made.metrics["data/tokens_trainable"] > made.metrics["data/step_trainer_tokens"] > 0
    )  # the middle has no advantage
    assert made.metrics["loss/learning_rate"] == pytest.approx(3e-3)


def test_asyncio_is_left_as_python_made_it(tmp_path) -> None:
    """Importing `art.local.backend` plainly replaces `asyncio.run` and every task by nest_asyncio's."""
    cpu_trainer(tmp_path)

    assert "art.local.backend" in sys.modules
    assert asyncio.run.__module__ == "asyncio.runners"
    assert asyncio.Task.__module__ == "_asyncio"


def test_arts_own_call_works_without_us(tmp_path) -> None:
    """`await backend.train(art.TrainableModel, groups)`, the call that all three trainers go through."""
    import art

    from babylon_rl.training.cpu_backend import CpuBackend

    messages = [{"role": "system", "content": "Trade."}, {"role": "user", "content": "Now?"}]
    group = art.TrajectoryGroup(
        art.Trajectory(messages_and_choices=[*messages, {"role": "assistant", "content": answer}], reward=reward)
        for answer, reward in (("BUY", 1.0), ("SELL", 0.0))
    )

    async def run():
        backend = CpuBackend(tmp_path, shipped_base())
        model = art.TrainableModel(name="own", project="babylon-agents", base_model=str(shipped_base()))
        await model.register(backend)
        steps = [
            (await backend.train(model, [group], learning_rate=1e-3, allow_training_without_logprobs=True)).step
            for _ in range(2)
        ]
        await backend.close()
        return steps

    assert asyncio.run(run()) == [1, 2]
    assert steps(tmp_path, "own")[-1] == 2


def test_a_batch_without_reward_spread_is_refused(tmp_path) -> None:
    flat = a_group(0, rewards=dict.fromkeys(range(5), 0.3))

    with pytest.raises(DataError, match="every member has the same reward"):
        train(tmp_path / "root", a_batch(flat))

    assert not list(tmp_path.rglob("*.json"))


def _copy(two_steps, tmp_path: Path) -> Path:
    import shutil

    shutil.copytree(two_steps[0], tmp_path / "copy")
    return tmp_path / "copy"


def test_a_missing_changed_or_foreign_parent_is_refused(two_steps, tmp_path) -> None:
    root = _copy(two_steps, tmp_path)
    third = replace(batch_of(1), step=3)
    with pytest.raises(DataError, match=rf"{LINEAGE}@3 is recorded but"):
        train(root, replace(third, step=4))
    with pytest.raises(DataError, match=r"adapter_model\.safetensors changed"):
        train(root, replace(third, parent_manifest={"adapter_model.safetensors": "0" * 64}))

    weights = checkpoint_dir(root, LINEAGE, 2) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=r"adapter_model\.safetensors changed"):
        train(root, third)

    assert steps(root, LINEAGE)[-1] == 2, "a refusal removes nothing"
    with pytest.raises(DataError, match="was trained on base"):
        checkpoint_store.reconcile(root, LINEAGE, 1, base="f" * 64)


def test_what_the_ledger_does_not_know_is_made_again(two_steps, tmp_path) -> None:
    """Step 2 is finished on disk but was never recorded: the ledger asks for step 2 once more."""
    root = _copy(two_steps, tmp_path)

    made = train(root, replace(batch_of(2), seed=5))

    assert steps(root, LINEAGE)[-1] == 2
    assert made.manifest != two_steps[1][1].manifest


def test_two_processes_never_train_one_lineage_at_once(tmp_path) -> None:
    with checkpoint_store.lineage_lock(tmp_path, LINEAGE), pytest.raises(TransientError, match="another process"):
        train(tmp_path, batch_of(1))


def test_only_our_own_leftovers_are_removed(tmp_path) -> None:
    """Steps after the parent: our killed training's go, whoever's unfinished ones without an id too, another's stay."""

    def leave(name: str, ledger_id: str | None, *, finished: bool) -> Path:
        directory = checkpoint_dir(tmp_path, LINEAGE, 0).with_name(name)
        directory.mkdir(parents=True)
        if ledger_id is not None:
            write_ledger_of(directory, ledger_id)
        if finished:
            (directory / "checkpoint.json").write_text("{}")
        return directory

    def reconcile() -> list[str]:
        return checkpoint_store.reconcile(tmp_path, LINEAGE, 0, base="b", ledger_id="ours")

    leave("0001", "ours", finished=True)
    leave("0002", None, finished=False)
    leave("0003.tmp", "ours", finished=False)
    assert reconcile() == ["0001", "0002", "0003"]
    for name, ledger_id, finished in (("0001", "theirs", True), ("0004", None, True), ("0001.tmp", "theirs", False)):
        ours, foreign = leave("0002", "ours", finished=True), leave(name, ledger_id, finished=finished)
        with pytest.raises(ConfigError, match=rf"{name}' was not made for this database.*BABYLON_LINEAGE"):
            reconcile()
        assert ours.is_dir(), "a refusal removes nothing"
        assert foreign.is_dir()
        foreign.rename(tmp_path / name)
        assert reconcile() == ["0002"]
