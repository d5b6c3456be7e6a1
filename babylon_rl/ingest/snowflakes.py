"""Ids for rows of the game's tables, of the game's own form."""

from collections.abc import Callable
from datetime import datetime
from threading import Lock
from typing import Final

_EPOCH_MS: Final = 1_420_070_400_000  # 2015-01-01: every id of this century stays above 2^53 and below 2^63


class SnowflakeIds:
    """Ids as the game's: decimal strings above 2^53, rising, made of clock, counter and worker.

    Two writers with the same simulated clock need different workers, or they make the same ids.
    """

    def __init__(self, clock: Callable[[], datetime], *, worker: int = 0) -> None:
        """Start after `clock()`; only the low 10 bits of `worker` count."""
        self._clock = clock
        self._worker = worker & 0x3FF
        self._last = 0
        self._lock = Lock()

    def __call__(self) -> str:
        ms = int(self._clock().timestamp() * 1000) - _EPOCH_MS
        with self._lock:
            # The counter carries over into the milliseconds when a simulated clock stands still.
            self._last = max(max(ms, 1 << 32) << 12, self._last + 1)
            return str(self._last << 10 | self._worker)
