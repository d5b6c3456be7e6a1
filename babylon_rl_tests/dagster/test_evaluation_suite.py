"""An evaluation is read back only for the base and the simulator that it was made with."""

import shutil
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa
from safetensors.torch import load_file, save_file
from zstandard import ZstdCompressor

from babylon_rl.database import tables as t
from babylon_rl.pipeline.evaluate import curve, evaluate_checkpoint, suite_of
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.policy.shipped import shipped_base
from babylon_rl.store.evaluations import PolicyResult, read_evaluation


def with_base(workspace: Workspace, base: Path) -> Workspace:
    settings = workspace.settings.changed(training={"base_model": str(base)}, serving={"evaluation_windows": 2})
    return replace(workspace, settings=settings)


def write_other_base(folder: Path) -> Path:
    """The shipped base with its last layers' answers made worse."""
    shutil.copytree(shipped_base(), folder)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v * 0.5 for k, v in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_another_base_is_played_and_not_read_from_the_cache(workspace: Workspace, tmp_path: Path) -> None:
    """A checkpoint was compared with what another base had earned, and a lift of +101 was reported."""
    one = with_base(workspace, shipped_base())
    other = with_base(workspace, write_other_base(tmp_path / "other"))

    first, second = (evaluate_checkpoint(w, 0) for w in (one, other))

    assert first.suite != second.suite
    assert first.base.pnl_usd != second.base.pnl_usd
    assert evaluate_checkpoint(one, 0) == first


def test_the_suite_names_base_and_simulator(workspace: Workspace, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    name = suite_of(workspace).name
    monkeypatch.setattr("babylon_rl.simulator.version.SIMULATOR_VERSION", 10**6)
    assert suite_of(workspace).name != name


def test_an_evaluation_from_before_stays_readable(workspace: Workspace) -> None:
    """Rows of before are of suites whose names say neither base nor simulator."""
    body = ZstdCompressor().compress(b'{"invalid_rate":0.25,"name":"babylon-mmo@0","pnl_usd":[1.5,-2.0]}')
    row = {"lineage": "babylon-mmo", "step": 0, "suite": "held-out-2w-T0.5", "body": body, "base_mean_pnl_usd": 1.0}
    zero = dict.fromkeys(("mean_pnl_usd", "lift_usd", "lift_lo_usd", "lift_hi_usd"), 0.0)
    with workspace.store.engine.begin() as conn:
        conn.execute(sa.insert(t.evaluations), [row | zero])
    kept = read_evaluation(workspace.store.engine, "babylon-mmo", 0, "held-out-2w-T0.5")
    assert kept == PolicyResult(name="babylon-mmo@0", pnl_usd=(1.5, -2.0), invalid_rate=0.25)
    assert curve(workspace) == [], "and it is no point of a curve whose other points another base made"
