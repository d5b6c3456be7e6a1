"""An HTTP server as a child process: started on a socket that its parent bound, and gone when its parent is.

What belongs here: both sides of that. What is served, and what the child is told, is its caller's.
"""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Final

from babylon_rl.errors import ConfigError, TransientError

logger = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 120.0  # importing torch and transformers on a busy machine
STOP_TIMEOUT_S: Final = 10.0
_TAIL_CHARS: Final = 1500


@contextmanager
def running_child(
    module: str, arguments: Mapping[str, object], *, options: Sequence[str] = (), told: str, what: str
) -> Iterator[int]:
    """Yield the loopback port of a server that runs until the end of the block, or until this process dies.

    Args:
        module: Run as `python -m`; it takes `--fd` and `--parent` beside `arguments`, and answers `/healthz`.
        arguments: Option → value; everybody on the machine can read them.
        options: Options without a value.
        told: First line of the child's stdin, where secrets belong.
        what: The server's name, for messages.

    Raises:
        ConfigError: The server exited before it was ready; the message has the last lines of its log.
        TransientError: It did not answer in time.
    """
    # Bound here and handed over, so that nobody takes the port between choosing and listening.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener, tempfile.TemporaryFile() as log:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        process = _start([module, *options], arguments, told, listener, log)
        listener.close()
        try:
            _wait_until_ready(process, port, log, what)
            logger.info("started %s pid=%d port=%d", what, process.pid, port)
            yield port
        finally:
            _stop(process)


def _start(
    module: list[str], arguments: Mapping[str, object], told: str, listener: socket.socket, log: IO[bytes]
) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", *module]
    for name, value in {**arguments, "--fd": listener.fileno(), "--parent": os.getpid()}.items():
        command += [name, str(value)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, pass_fds=[listener.fileno()]
    )
    if process.stdin is not None:
        with suppress(BrokenPipeError):  # it has exited already; `_wait_until_ready` says why
            process.stdin.write(f"{told}\n".encode())
            process.stdin.flush()
    return process


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: IO[bytes], what: str) -> None:
    import httpx

    deadline = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while True:
            if process.poll() is not None:
                raise ConfigError(
                    f"the {what} exited with status {process.returncode} before it was ready; "
                    f"the end of its log: {_read_tail(log)}"
                )
            try:
                if client.get(f"http://127.0.0.1:{port}/healthz").is_success:
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                raise TransientError(
                    f"the {what} was not ready after {START_TIMEOUT_S:.0f} s; try again on a less busy machine; "
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


def read_line(descriptor: int) -> str:
    """In the child: one line, byte by byte, so that what follows it is left in the pipe."""
    line = b""
    while (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
        line += byte
    return line.decode()


def exit_with_parent(parent: int) -> None:
    """In the child: stop this process once its parent is gone, or closes our stdin.

    Not PR_SET_PDEATHSIG: that fires when the parent's *thread* ends, and runs of an orchestrator start us from threads.
    The pipe on stdin closes as soon as the parent dies. The parent's id is checked too, because a fork of the parent may
    keep the pipe open.
    """
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], 1.0)
        if readable and not os.read(sys.stdin.fileno(), 1):
            break
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(8)  # longer than a graceful shutdown takes
    os._exit(1)
