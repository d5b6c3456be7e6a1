from pathlib import Path

import pytest

from babylon_rl.errors import ConfigError, DataError
from babylon_rl.policy.checkpoints import METADATA_FILE, checkpoint_dir, latest_step, lineages, resolve, steps
from babylon_rl.settings import Settings


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
    assert latest_step(root, "mmo") == 10
    assert lineages(root) == ["mmo"]


def test_nothing_trained_is_step_0(tmp_path: Path) -> None:
    assert latest_step(tmp_path / "absent", "mmo") == 0
    assert lineages(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("name", "step"), [("mmo", 10), ("mmo@latest", 10), ("mmo@2", 2), ("mmo@0002", 2), ("mmo@0", 0), ("mmo@10", 10)]
)
def test_a_name_resolves_to_lineage_and_step(root: Path, name: str, step: int) -> None:
    assert resolve(root, name) == ("mmo", step)
    assert resolve(root, name, known=()) == ("mmo", step)


@pytest.mark.parametrize("name", ["mmo@3", "mmo@11", "mmo@12"])
def test_an_unfinished_step_is_unknown(root: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"policy '{name}' is unknown: .*the latest is 'mmo@10'"):
        resolve(root, name)


@pytest.mark.parametrize(
    "name", ["", "..", "..@1", ".x", "@3", "mmo@", "mmo@-1", "mmo@1.5", "../x@1", "a/b", "mmo@best", "mmo@1 ", "x" * 65]
)
def test_what_is_no_policy_name_is_refused(root: Path, name: str) -> None:
    with pytest.raises(DataError, match="is not a policy name"):
        resolve(root, name)


def test_a_lineage_without_checkpoints_is_the_base(root: Path) -> None:
    assert resolve(root, "fresh") == ("fresh", 0)
    assert resolve(root, "fresh@latest", known=("fresh",)) == ("fresh", 0)
    with pytest.raises(DataError, match="lineage 'gpt-4' has no checkpoint; known lineages: fresh, mmo"):
        resolve(root, "gpt-4", known=("fresh",))


@pytest.mark.parametrize("name", [".", "..", ".hidden", "a/b", ""])
def test_a_lineage_is_a_folder_of_its_own(name: str) -> None:
    with pytest.raises(ConfigError, match="BABYLON_LINEAGE"):
        Settings.load(BABYLON_LINEAGE=name)
