"""The processes of one `babylon-rl up`: written down, so that the next one finds and ends what a killed one left behind.

A process is known by its id and its start time: after a reboot another process may have the id.
"""

import ctypes
import fcntl
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psutil

from babylon_rl.common.running import is_running
from babylon_rl.errors import ConfigError

logger = logging.getLogger(__name__)

END_TIMEOUT_S: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1


@contextmanager
def only_one_up(home: Path, port: int) -> Iterator["ProcessRecord"]:
    """Be the only `up` of this DAGSTER_HOME for the length of the block, and end what a killed one left behind.

    The operating system releases the lock when the process dies, however it dies.

    Raises:
        ConfigError: Another `up` runs.
    """
    path = home / "up.json"
    with (home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = _read_record(path)
            raise ConfigError(
                f"babylon-rl up already runs for this BABYLON_HOME (process {other.get('up', 'unknown')}, port "
                f"{other.get('port', 'unknown')}); use that one, or stop it first"
            ) from None
        record = ProcessRecord(path, port)
        record.end_survivors()
        record.update()
        yield record
        path.unlink(missing_ok=True)


class ProcessRecord:
    """The file `up.json`."""

    def __init__(self, path: Path, port: int) -> None:
        self._path, self._port = path, port
        self._written: dict[int, float] = {}

    def update(self) -> None:
        """Write down what runs now: this process, and all that it started, also what lost its parent since."""
        found = {p.pid: started for p, started in _with_descendants(psutil.Process())}
        found |= {pid: s for pid, s in self._written.items() if pid not in found and is_running(pid, s)}
        if found == self._written:
            return
        self._written = found
        body = {"host": socket.gethostname(), "port": self._port, "up": os.getpid(), "processes": found}
        unfinished = self._path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(body))
        unfinished.replace(self._path)

    def end_survivors(self) -> None:
        """End what is written down and still runs, with all that it started, except this process."""
        survivors = _find_survivors(self._path)
        for p in survivors:
            with suppress(psutil.NoSuchProcess):
                p.terminate()
        _, stubborn = psutil.wait_procs(survivors, timeout=END_TIMEOUT_S)
        for p in stubborn:
            with suppress(psutil.NoSuchProcess):
                p.kill()
        psutil.wait_procs(stubborn, timeout=END_TIMEOUT_S)
        if survivors:
            logger.info("ended processes that up left running pids=%s", [p.pid for p in survivors])


def prepare_child() -> Callable[[], None]:
    """What a child does before it becomes webserver or daemon: take signals as usual, and stop when this process dies.

    Only Linux tells a child of its parent's death; elsewhere the next `up` ends it.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: a fork should not import

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
            if os.getppid() != parent:  # it died before it could be told
                os._exit(1)

    return prepare


def _read_record(path: Path) -> dict[str, Any]:
    """What `update` wrote; nothing where the file is missing, damaged, or of another machine that shares the home."""
    try:
        body = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) and body.get("host") == socket.gethostname() else {}


def _find_survivors(path: Path) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for pid, started in _read_record(path).get("processes", {}).items():
        if is_running(int(pid), started):
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                found |= {p.pid: p for p, _ in _with_descendants(psutil.Process(int(pid)))}
    found.pop(os.getpid(), None)
    return list(found.values())


def _with_descendants(process: psutil.Process) -> list[tuple[psutil.Process, float]]:
    """A process and all that it started, each with its start. Postgres has a session of its own, and is not among them."""
    session = os.getsid(process.pid)
    found = []
    for p in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(p.pid) == session:
                found.append((p, p.create_time()))
    return found
