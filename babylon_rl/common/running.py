"""Whether a process that was written down still runs."""

from typing import Final

import psutil

_CLOCK_STEP_S: Final = 5.0  # the start of a process is derived from the clock, which may be set


def is_running(pid: int, started: float) -> bool:
    """Whether the process that has had this id since `started` (seconds since 1970) still runs on this machine.

    An id alone does not tell: after a reboot another process may have it. A zombie does not run.
    """
    try:
        process = psutil.Process(pid)
        same = abs(float(process.create_time()) - started) < _CLOCK_STEP_S
        return same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
