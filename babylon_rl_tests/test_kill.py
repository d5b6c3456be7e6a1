"""SIGKILL in the middle of training: running the command again finishes it, and no window trains twice."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from babylon_rl.pipeline.evaluate import unevaluated
from babylon_rl.pipeline.workspace import open_workspace
from babylon_rl.settings import Settings
from babylon_rl.simulator.spawn import AgentLineup, spawn
from babylon_rl.windows import HourWindow

FIRST = HourWindow.parse("2025-01-15T00:00")


def train(environment: dict[str, str], log: Path, *, evaluate: bool = False) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "babylon_rl.cli.main",
        "train",
        "--iterations",
        "2",
        "--windows-per-iteration",
        "4",
        "--evaluate" if evaluate else "--no-evaluate",
    ]
    with log.open("ab") as out:  # the process has its own handle of it
        return subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)


def wait_until(
    happened: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, timeout_s: float = 120
) -> None:
    end = time.monotonic() + timeout_s
    while not happened():
        assert process.poll() is None, f"the command ended too early:\n{log.read_text()}"
        assert time.monotonic() < end, f"did not happen within {timeout_s} s:\n{log.read_text()}"
        time.sleep(0.02)


@pytest.mark.parametrize("moment", ["planned", "written"])
def test_after_a_kill_training_finishes_and_repeats_no_window(
    settings: Settings, engine: sa.Engine, environment: dict[str, str], tmp_path: Path, moment: str
) -> None:
    """Killed once the batch is planned, and once the first checkpoint's files are written but not recorded."""
    spawn(engine, [FIRST.next(i) for i in range(8)], AgentLineup(learners=6, policy="habits", stand_in=True), seed=1)
    log = tmp_path / "log"
    step = settings.checkpoints_dir / "babylon-agents/models/babylon-mmo/checkpoints/0001"

    def planned() -> bool:
        with engine.connect() as conn:
            return bool(conn.scalar(sa.text("SELECT count(*) FROM babylon_rl.planned_batches")))

    def written() -> bool:
        return any(step.parent.glob("0001*"))

    process = train(environment, log)
    wait_until(planned if moment == "planned" else written, process, log)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with open_workspace(settings) as workspace:
        plan = workspace.ledger.unfinished_batch()
        before = workspace.ledger.checkpoints()
    assert before == [] or moment == "written"

    assert train(environment, log).wait(timeout=240) == 0, log.read_text()

    with open_workspace(settings) as workspace:
        made = workspace.ledger.checkpoints()
    assert [c.step for c in made][:2] == [1, 2]
    if plan is not None:
        assert made[0].windows == plan.windows
    used = [w for c in made for w in c.windows]
    assert len(used) == len(set(used)) == 8
    assert not list(step.parent.glob("*.tmp"))
    assert sorted(p.name for p in step.parent.iterdir() if p.is_dir()) == ["0001", "0002"]


def test_a_checkpoint_killed_in_evaluation_is_evaluated_later(
    settings: Settings, engine: sa.Engine, environment: dict[str, str], tmp_path: Path
) -> None:
    spawn(engine, [FIRST.next(i) for i in range(4)], AgentLineup(learners=6, policy="habits", stand_in=True), seed=1)
    log = tmp_path / "log"
    environment = environment | {"BABYLON_EVALUATION_WINDOWS": "4"}

    def count(table: str) -> int:
        with engine.connect() as conn:
            return int(conn.scalar(sa.text(f"SELECT count(*) FROM babylon_rl.{table}")) or 0)

    process = train(environment, log, evaluate=True)
    wait_until(lambda: count("checkpoints") == 1, process, log)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert count("evaluations") == 0
    with open_workspace(settings.changed(serving={"evaluation_windows": 4})) as workspace:
        assert unevaluated(workspace) == [1]

        assert train(environment, log, evaluate=True).wait(timeout=240) == 0, log.read_text()

        assert unevaluated(workspace) == []
        assert [c.step for c in workspace.ledger.checkpoints()] == [1]
    assert "Evaluating babylon-mmo@1" in log.read_text()
