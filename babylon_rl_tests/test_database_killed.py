"""SIGKILL of the database server under a command: one sentence, and the same command goes on afterwards."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from babylon_rl.database.connection import connect
from babylon_rl.database.embedded import ensure_server, stop_server
from babylon_rl.windows import HourWindow

FIRST = HourWindow.parse("2025-01-15T00:00")
COMMAND = [sys.executable, "-m", "babylon_rl.cli.main"]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    # Not below pytest's own directory: it is not readable for the system user that PostgreSQL runs as under root.
    home = Path(tempfile.mkdtemp(prefix="babylon-test-"))
    yield home
    stop_server(home)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    environment = {"PATH": os.environ["PATH"], "BABYLON_HOME": str(home)}
    played = ["spawn-test-agents", "--agents", "6", "--windows", "24", "--start", str(FIRST), "--policy", "habits"]
    subprocess.run([*COMMAND, *played], env=environment, check=True, capture_output=True)
    return environment


def count(home: Path, table: str) -> int:
    engine = connect(ensure_server(home))
    with engine.connect() as conn:
        found = int(conn.scalar(sa.text(f"SELECT count(*) FROM babylon_rl.{table}")) or 0)
    engine.dispose()
    return found


def kill_server_under(home: Path, environment: dict[str, str], arguments: list[str], moment: Callable[[], bool]) -> str:
    """Run a command, kill the server once `moment` has come; the command's stderr."""
    with subprocess.Popen(
        [*COMMAND, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + 60
        while not moment():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        os.kill(int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 2, output + errors
    return errors


@pytest.mark.parametrize(
    ("arguments", "table"),
    [
        (["materialize", "--from", str(FIRST), "--to", str(FIRST.next(23))], "contextualized_groups"),
        (["train", "--iterations", "1", "--windows-per-iteration", "12", "--no-evaluate"], "planned_batches"),
    ],
    ids=["materialize", "train"],
)
def test_a_killed_database_is_one_sentence(
    home: Path, environment: dict[str, str], arguments: list[str], table: str
) -> None:
    errors = kill_server_under(home, environment, arguments, lambda: count(home, table) > 0)

    assert "Traceback" not in errors
    assert len(errors.strip().splitlines()) <= 3, errors
    assert "the database went away" in errors
    assert "run the same command again" in errors

    again = subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
