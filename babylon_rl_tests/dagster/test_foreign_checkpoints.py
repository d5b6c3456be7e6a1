"""A BABYLON_HOME used with another database: checkpoints that its ledger never recorded are neither deleted nor served."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from dagster_factories import FIRST, spawn_windows

from babylon_rl.cli.runner import Runner
from babylon_rl.database.migrate import upgrade
from babylon_rl.errors import ConfigError
from babylon_rl.pipeline.train import train_range
from babylon_rl.pipeline.workspace import Workspace, claim_checkpoints, open_workspace
from babylon_rl.policy.checkpoints import LEDGER_FILE, checkpoint_dir
from babylon_rl.settings import Settings

LINEAGE = "babylon-mmo"


@pytest.fixture
def elsewhere(settings: Settings, empty_database_url: str) -> Settings:
    """The same BABYLON_HOME with another, empty database."""
    other = Settings.load(BABYLON_HOME=str(settings.home), DATABASE_URL=empty_database_url, BABYLON_PLATFORM_URL=None)
    upgrade(other.database)
    return other


@pytest.fixture
def trained(workspace: Workspace, runner: Runner, resources: dict[str, object]) -> Path:
    """Steps 1 and 2 of the first database; their folder."""
    spawn_windows(workspace, 6)
    runner.materialize("windows", FIRST, FIRST.next(5), resources=resources)
    train_range(workspace, list(FIRST.until(FIRST.next(5))), batch_size=3)
    assert [c.step for c in workspace.ledger.checkpoints()] == [1, 2]
    return checkpoint_dir(workspace.settings.checkpoints_dir, LINEAGE, 1).parent


def judge_elsewhere(settings: Settings, runner: Runner, resources: dict[str, object]) -> None:
    with open_workspace(settings) as other:
        spawn_windows(other, 3)
        runner.materialize("windows", FIRST, FIRST.next(2), resources={**resources, "workspace": other})


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def models(settings: Settings, tmp_path: Path) -> list[str]:
    """What `babylon-rl serve` lists."""
    assert settings.database.url is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"],
        "BABYLON_HOME": str(settings.home),
        "DATABASE_URL": settings.database.url.get_secret_value(),
    }
    command = [sys.executable, "-m", "babylon_rl.cli.main", "serve", "--port", str(port)]
    log = tmp_path / "serve.log"
    with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
        try:
            end = time.monotonic() + 60
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                try:
                    listed = httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False).json()["data"]
                except httpx.TransportError:
                    time.sleep(0.1)
                    continue
                return [m["id"] for m in listed]
        finally:
            process.send_signal(signal.SIGTERM)


def test_another_databases_checkpoints_are_not_deleted(
    trained: Path, elsewhere: Settings, runner: Runner, resources: dict[str, object]
) -> None:
    judge_elsewhere(elsewhere, runner, resources)
    before = digests(trained)
    with open_workspace(elsewhere) as other:
        with pytest.raises(ConfigError, match="BABYLON_LINEAGE") as refusal:
            train_range(other, [FIRST.next(2)], batch_size=3)
        assert str(trained / "0001") in str(refusal.value)
        assert "BABYLON_HOME" in str(refusal.value)
        assert digests(trained) == before
        assert other.ledger.checkpoints() == []

    fresh = elsewhere.model_copy(update={"lineage": "another"})
    with open_workspace(fresh) as other:
        runner.materialize("windows", FIRST, FIRST.next(2), resources={**resources, "workspace": other})
        train_range(other, [FIRST.next(2)], batch_size=3)
        assert [c.name for c in other.ledger.checkpoints()] == ["another@1"]
    assert digests(trained) == before


def test_another_databases_checkpoints_are_not_served(trained: Path, elsewhere: Settings, tmp_path: Path) -> None:
    with open_workspace(elsewhere):
        assert models(elsewhere, tmp_path) == ["babylon-mmo@0"]


@pytest.mark.usefixtures("trained")
def test_our_own_checkpoints_are_served(settings: Settings, tmp_path: Path) -> None:
    assert models(settings, tmp_path) == ["babylon-mmo@0", "babylon-mmo@1", "babylon-mmo@2"]


def test_recorded_checkpoints_from_before_the_id_are_ours(
    workspace: Workspace, trained: Path, elsewhere: Settings, tmp_path: Path
) -> None:
    """They are served, because the ledger has recorded them, and get the id with the next training."""
    before = digests(trained)
    for step in ("0001", "0002"):
        (trained / step / LEDGER_FILE).unlink()

    assert models(elsewhere, tmp_path) == ["babylon-mmo@0"]
    assert models(workspace.settings, tmp_path) == ["babylon-mmo@0", "babylon-mmo@1", "babylon-mmo@2"]
    claim_checkpoints(workspace)
    assert digests(trained) == before
