"""`babylon-rl up` after a SIGKILL: of all its processes in the middle of a training, and of itself alone."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import dagster as dg
import psutil
import pytest
import sqlalchemy as sa

from babylon_rl.cli.processes import only_one_up
from babylon_rl.cli.services import dagster_home
from babylon_rl.defs.automation import ASKED_AT_TAG
from babylon_rl.defs.dead_runs import PROCESS_TAG
from babylon_rl.settings import Settings
from babylon_rl.simulator.spawn import AgentLineup, spawn
from babylon_rl.windows import HourWindow
from babylon_rl_tests.test_cli import run, serves

FIRST = HourWindow.parse("2025-01-15T00:00")


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def instance(settings: Settings, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    """The instance that the commands use."""
    run(environment, "env")  # makes it
    monkeypatch.setenv("BABYLON_DAGSTER_URL", environment["BABYLON_DAGSTER_URL"])
    return dg.DagsterInstance.from_config(str(dagster_home(settings)))


class Up:
    """Starts `babylon-rl up` as a person does, again and again; ends all of it at the end."""

    def __init__(self, environment: dict[str, str], port: int, log: Path) -> None:
        self.environment = environment | {"BABYLON_MIN_WINDOWS": "3"}
        self.port, self.log = port, log

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "babylon_rl.cli.main", "up", "--port", str(self.port)]
        with self.log.open("ab") as out:
            return subprocess.Popen(command, env=self.environment, stdout=out, stderr=out, start_new_session=True)

    def wait_until(self, happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + 180
        while not happened():
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """All processes of this home, whoever their parent is."""
        found = []
        for p in psutil.process_iter():
            with suppress(psutil.Error):
                if p.environ().get("BABYLON_HOME") == self.environment["BABYLON_HOME"]:
                    found.append(p)
        return found

    def find(self, part: str) -> list[psutil.Process]:
        """Webservers or daemons of this home."""
        return [p for p in self.processes() if part in p.cmdline()]


@pytest.fixture
def up(environment: dict[str, str], port: int, tmp_path: Path) -> Iterator[Up]:
    up = Up(environment, port, tmp_path / "up.log")
    yield up
    for p in up.processes():
        p.kill()


def test_after_any_kill_the_next_up_goes_on(
    up: Up, instance: dg.DagsterInstance, engine: sa.Engine, environment: dict[str, str]
) -> None:
    spawn(engine, [FIRST.next(i) for i in range(3)], AgentLineup(learners=6, policy="habits", stand_in=True), seed=1)
    run(environment, "materialize", "--from", str(FIRST), "--to", str(FIRST.next(2)))

    def rows(table: str) -> int:
        with engine.connect() as conn:
            return int(conn.scalar(sa.text(f"SELECT count(*) FROM babylon_rl.{table}")) or 0)

    # Killed with all its processes while a run trains.
    process = up.start()
    up.wait_until(lambda: rows("planned_batches") == 1, process)
    for p in up.processes():
        p.kill()
    process.wait()
    assert rows("checkpoints") == 0
    (killed,) = instance.get_runs(filters=dg.RunsFilter(job_name="policy"))
    assert killed.status == dg.DagsterRunStatus.STARTED
    assert PROCESS_TAG in killed.tags

    # Killed alone, while its webserver cannot stop in an orderly way.
    process = up.start()
    up.wait_until(lambda: serves(up.port), process)
    output = run(up.environment, "up", "--port", str(up.port), status=2)
    assert f"babylon-rl up already runs for this BABYLON_HOME (process {process.pid}, port {up.port})" in output
    (webserver,) = up.find("dagster_webserver")
    webserver.suspend()
    process.kill()
    process.wait()

    # As if the wait after a failure were over; until here it keeps a sensor from asking for the training again.
    instance.add_run_tags(killed.run_id, {ASKED_AT_TAG: "2026-01-01T00:00:00+00:00"})
    process = up.start()
    up.wait_until(lambda: serves(up.port) and rows("checkpoints") == 1, process)
    ended = instance.get_run_by_id(killed.run_id)
    assert ended is not None
    assert ended.status == dg.DagsterRunStatus.FAILURE
    assert not webserver.is_running()
    assert len(up.find("dagster_webserver")) == 1
    assert len(up.find("dagster._daemon")) == 1

    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert up.processes() == []
    assert "Traceback" not in up.log.read_text()


def test_a_taken_port_is_named_in_one_sentence(environment: dict[str, str], port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        output = run(environment, "up", "--port", str(port), status=2)
    assert f"port {port} on 127.0.0.1 cannot be used: Address already in use" in output
    assert "babylon-rl up --port" in output


STAND_IN = """
import subprocess, sys, time
from pathlib import Path
from babylon_rl.cli.processes import only_one_up
with only_one_up(Path(sys.argv[1]), 1) as record:
    shell = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    sleeper = shell.stdout.readline().strip()
    record.update()
    shell.kill()
    shell.wait()
    record.update()
    print(sleeper, flush=True)
    time.sleep(600)
"""


def test_what_lost_its_parent_is_ended_and_a_reused_id_is_not(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", STAND_IN, str(tmp_path)], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        orphan = psutil.Process(int(killed.stdout.readline()))
        killed.kill()
    record = json.loads((tmp_path / "up.json").read_text())
    assert set(record["processes"]) == {str(killed.pid), str(orphan.pid)}
    with subprocess.Popen(["sleep", "600"]) as another:
        record["processes"][str(another.pid)] = 1.0  # its id was another process's in 1970
        (tmp_path / "up.json").write_text(json.dumps(record))
        with only_one_up(tmp_path, 1):
            assert not orphan.is_running()
            assert another.poll() is None
        another.kill()
