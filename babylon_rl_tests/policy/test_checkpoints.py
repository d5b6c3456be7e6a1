from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from babylon_rl.errors import ConfigError, DataError
from babylon_rl.policy.catalog import Snapshot
from babylon_rl.policy.checkpoints import METADATA_FILE, checkpoint_dir, lineages, steps
from babylon_rl.settings import Settings
from babylon_rl.store.ledger_identity import RecordedCheckpoint


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Lineage `mmo` with steps 1, 2 and 10 finished, 11 unfinished, and things that are no checkpoints."""
    for step in (1, 2, 10):
        finish(checkpoint_dir(tmp_path, "mmo", step))
    checkpoint_dir(tmp_path, "mmo", 11).mkdir(parents=True)
    finish(checkpoint_dir(tmp_path, "mmo", 12).with_suffix(".tmp"))
    finish(checkpoint_dir(tmp_path, "mmo", 1).with_name("best"))
    (checkpoint_dir(tmp_path, "mmo", 1).with_name("0099")).write_text("a file")
    return tmp_path


def finish(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / METADATA_FILE).write_text("{}")


def test_a_checkpoint_lies_where_art_looks_for_it(tmp_path: Path) -> None:
    import art
    from art.utils.output_dirs import get_model_dir, get_step_checkpoint_dir

    model = art.TrainableModel(name="mmo", project="babylon-agents", base_model="x")
    by_art = get_step_checkpoint_dir(get_model_dir(model=model, art_path=str(tmp_path)), 3)

    assert checkpoint_dir(tmp_path, "mmo", 3) == Path(by_art)


def test_only_finished_checkpoints_count(root: Path) -> None:
    assert steps(root, "mmo") == [1, 2, 10]
    assert lineages(root) == ["mmo"]


def test_nothing_trained_is_step_0(tmp_path: Path) -> None:
    assert steps(tmp_path / "absent", "mmo") == []
    assert lineages(tmp_path / "absent") == []


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """Lineage `mmo` with steps 1, 2 and 10 recorded, and `far` whose weights are remote."""
    at = datetime(2025, 1, 15, tzinfo=UTC)
    recorded = [
        RecordedCheckpoint(lineage="mmo", step=s, trainer="cpu", path="p", manifest={"a": f"hash {s}"}, trained_at=at)
        for s in (1, 2, 10)
    ]
    remote = RecordedCheckpoint(
        lineage="far", step=1, trainer="serverless", path="team/p/far:step1", manifest={}, trained_at=at
    )
    return Snapshot(tmp_path, "fresh", [remote, *recorded])


@pytest.mark.parametrize(
    ("name", "step"), [("mmo", 10), ("mmo@latest", 10), ("mmo@2", 2), ("mmo@0002", 2), ("mmo@0", 0), ("mmo@10", 10)]
)
def test_a_name_resolves_to_a_recorded_checkpoint(snapshot: Snapshot, tmp_path: Path, name: str, step: int) -> None:
    found = snapshot.resolve(name)
    assert found.name == f"mmo@{step}"
    assert found.directory == (checkpoint_dir(tmp_path, "mmo", step) if step else None)


def test_the_same_step_made_again_has_another_digest(snapshot: Snapshot) -> None:
    again = [replace(r, manifest={"a": "another hash"}) for r in snapshot.recorded]
    made_again = replace(snapshot, recorded=again)
    assert snapshot.resolve("mmo@2").digest != made_again.resolve("mmo@2").digest
    assert snapshot.resolve("mmo@0") == made_again.resolve("mmo@0")


@pytest.mark.parametrize("name", ["mmo@3", "mmo@11", "mmo@12"])
def test_a_step_that_is_not_recorded_is_unknown(snapshot: Snapshot, name: str) -> None:
    with pytest.raises(DataError, match=rf"policy '{name}' is unknown: .*the latest is 'mmo@10'"):
        snapshot.resolve(name)


@pytest.mark.parametrize(
    "name", ["", "..", "..@1", ".x", "@3", "mmo@", "mmo@-1", "mmo@1.5", "../x@1", "a/b", "mmo@best", "mmo@1 ", "x" * 65]
)
def test_what_is_no_policy_name_is_refused(snapshot: Snapshot, name: str) -> None:
    with pytest.raises(DataError, match="is not a policy name"):
        snapshot.resolve(name)


def test_a_lineage_without_checkpoints_is_the_base(snapshot: Snapshot) -> None:
    assert snapshot.resolve("fresh@latest") == snapshot.resolve("fresh")
    assert snapshot.resolve("fresh").directory is None
    with pytest.raises(DataError, match="lineage 'gpt-4' has no checkpoint; known lineages: far, fresh, mmo"):
        snapshot.resolve("gpt-4")


def test_what_is_served_is_listed(snapshot: Snapshot) -> None:
    listed = [name for name, _ in snapshot.names()]
    assert listed == ["far@0", "fresh@0", "mmo@0", "mmo@1", "mmo@2", "mmo@10"]
    with pytest.raises(DataError, match="its trainer keeps the weights, under 'team/p/far:step1'"):
        snapshot.resolve("far")


@pytest.mark.parametrize("name", [".", "..", ".hidden", "a/b", ""])
def test_a_lineage_is_a_folder_of_its_own(name: str) -> None:
    with pytest.raises(ConfigError, match="BABYLON_LINEAGE"):
        Settings.load(BABYLON_LINEAGE=name)
