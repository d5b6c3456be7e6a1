"""Runs a policy server for the duration of a `with` block."""

import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from babylon_rl.database.connection import platform_url
from babylon_rl.errors import ConfigError, TransientError
from babylon_rl.policy.shipped import shipped_base

if TYPE_CHECKING:
    from babylon_rl.settings import DatabaseSettings, TrainingSettings
    from babylon_rl.settings.live import ServingSettings

logger = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 120.0  # importing torch and transformers on a busy machine
STOP_TIMEOUT_S: Final = 10.0
_TAIL_CHARS: Final = 1500


def base_of(settings: "TrainingSettings") -> Path:
    """Directory of the base policy that the settings name, or of the shipped one."""
    return Path(settings.base_model) if settings.base_model else shipped_base()


@contextmanager
def running_server(
    settings: "ServingSettings", database: "DatabaseSettings", *, base: Path, checkpoints: Path, lineage: str
) -> Iterator[str]:
    """Yield the base URL, ending in `/v1`, of an endpoint that serves the checkpoints.

    That is `settings.inference_url` where it is set. Otherwise a server is started on a free loopback port; it stops
    at the end of the block, and also when this process dies, however it dies.

    Args:
        settings: The URL of a running endpoint, or the temperature to serve with.
        database: Of the ledger, whose recorded checkpoints are served.
        base: Directory of the base policy.
        checkpoints: Directory under which every checkpoint lies.
        lineage: The lineage that can be asked for before its first checkpoint.

    Raises:
        ConfigError: The server exited before it was ready; the message has the last lines of its log.
        TransientError: It did not answer in time.
    """
    if settings.inference_url:
        yield settings.inference_url.rstrip("/")
        return
    # Bound here and handed over, so that nobody takes the port between choosing and listening.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener, tempfile.TemporaryFile() as log:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        arguments = {
            "--base": base,
            "--root": checkpoints,
            "--temperature": settings.serve_temperature,
            "--lineage": lineage,
        }
        process = _start(arguments, platform_url(database), listener, log)
        listener.close()
        try:
            _wait_until_ready(process, port, log)
            logger.info("started policy server pid=%d port=%d", process.pid, port)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            _stop(process)


def _start(
    arguments: dict[str, object], database_url: str, listener: socket.socket, log: IO[bytes]
) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "babylon_rl.policy.server"]
    for name, value in {**arguments, "--fd": listener.fileno(), "--parent": os.getpid()}.items():
        command += [name, str(value)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, pass_fds=[listener.fileno()]
    )
    if process.stdin is not None:
        with suppress(BrokenPipeError):  # it has exited already; `_wait_until_ready` says why
            process.stdin.write(f"{database_url}\n".encode())
            process.stdin.flush()
    return process


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: IO[bytes]) -> None:
    import httpx

    deadline = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while True:
            if process.poll() is not None:
                raise ConfigError(
                    f"the policy server exited with status {process.returncode} before it was ready; "
                    f"the end of its log: {_read_tail(log)}"
                )
            try:
                if client.get(f"http://127.0.0.1:{port}/healthz").is_success:
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                raise TransientError(
                    f"the policy server was not ready after {START_TIMEOUT_S:.0f} s; try again on a less busy machine; "
                    f"the end of its log: {_read_tail(log)}"
                )
            time.sleep(0.05)


def _read_tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")[-_TAIL_CHARS:].strip() or "(empty)"


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin is not None:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
