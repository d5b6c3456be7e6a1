"""Prepares DAGSTER_HOME and runs Dagster's webserver and daemon, on loopback by default."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from babylon_rl.cli.processes import ProcessRecord, only_one_up, prepare_child
from babylon_rl.database.connection import event_log_url
from babylon_rl.defs.rename_assets import rename_asset
from babylon_rl.errors import ConfigError
from babylon_rl.settings import Settings

logger = logging.getLogger(__name__)


def dagster_home(settings: Settings) -> Path:
    """Where Dagster keeps its files: under BABYLON_HOME, so that one folder is the whole state."""
    return settings.home / "dagster"


def prepare_dagster(settings: Settings) -> dict[str, str]:
    """Make DAGSTER_HOME ready, bring an older instance up to date, and set the variables that Dagster reads.

    Returns:
        The variables set, for a shell (`babylon-rl env`).

    Raises:
        ConfigError: `dagster.yaml` is not beside the package; run from a clone of the repository.
    """
    source = Path(__file__).parent.parent.parent / "dagster.yaml"
    if not source.exists():
        raise ConfigError("dagster.yaml is not beside the package; run babylon-rl from a clone of its repository")
    home = dagster_home(settings)
    home.mkdir(parents=True, exist_ok=True)
    target = home / "dagster.yaml"
    if not target.exists() or target.read_bytes() != source.read_bytes():
        shutil.copyfile(source, target)
    variables = {
        "BABYLON_HOME": str(settings.home),
        "DAGSTER_HOME": str(home),
        "BABYLON_DAGSTER_URL": event_log_url(settings.database),
        "DAGSTER_EVENT_BATCH_SIZE": "1000",
        "DAGSTER_DISABLE_TELEMETRY": "yes",
    }
    os.environ.update(variables)
    # Instances from before 2026-11 have the asset under its first name.
    rename_asset(variables["BABYLON_DAGSTER_URL"], "trajectory_groups", "contextualized_groups")
    return variables


def up(settings: Settings, *, port: int, host: str = "127.0.0.1") -> int:
    """Run webserver and daemon until one ends or the user stops us; all that they started stops with them.

    What an `up` that was killed left behind is ended first: its processes, and its runs.

    Args:
        settings: Name the folders and databases.
        port: Of the webserver.
        host: Address to listen on.

    Returns:
        The exit status of whichever ended first; 0 when the user stopped us.

    Raises:
        ConfigError: `up` runs for this home already, or the port is taken.
    """
    from babylon_rl.defs.dead_runs import end_runs_left_behind  # brings Dagster along

    prepare_dagster(settings)
    # Each load of the definitions would repeat Dagster's beta and preview notices, which are for developers.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    with only_one_up(dagster_home(settings), port) as record:
        _require_free_port(host, port)
        end_runs_left_behind()
        return _run_services(record, port=port, host=host)


def _run_services(record: ProcessRecord, *, port: int, host: str) -> int:
    workspace = Path(__file__).parent.parent.parent / "workspace.yaml"
    commands = [
        [sys.executable, "-m", "dagster_webserver", "-h", host, "-p", str(port), "-w", str(workspace)],
        [sys.executable, "-m", "dagster._daemon", "run", "-w", str(workspace)],
    ]
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    # A shell that starts us in the background has us ignore SIGINT, and Dagster would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    children: list[subprocess.Popen[bytes]] = []
    try:
        children += [subprocess.Popen(c, preexec_fn=prepare_child()) for c in commands]
        while not stopping and all(c.poll() is None for c in children):
            with suppress(OSError):  # a full disk does not end what runs
                record.update()
            time.sleep(0.5)
    except KeyboardInterrupt:
        stopping = True
    ended = next((c.returncode for c in children if c.poll() is not None), 0)
    with suppress(OSError):
        record.update()
    for c in children:
        if c.poll() is None:
            c.send_signal(signal.SIGINT)
    for c in children:
        with suppress(subprocess.TimeoutExpired):
            c.wait(timeout=15)
    record.end_survivors()
    return 0 if stopping else (ended or 1)


def _require_free_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the webserver does
        try:
            probe.bind((host, port))
        except OSError as e:
            raise ConfigError(
                f"port {port} on {host} cannot be used: {e.strerror or e}; end the program that listens there, or choose "
                "another port with `babylon-rl up --port`"
            ) from None
