"""How often a judge is asked again, and how densely: the numbers and the spacing. `circuit_breaker.py` applies them.

Not aiolimiter, which lets requests burst where `RateLimiter` spaces them evenly.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a judge that gives no answer is asked again, and how long we wait in between.

    Attributes:
        tries: Requests at most, the first included.
        first_wait_s: Wait before the second try; doubles from try to try, less a jitter of up to a half.
        longest_wait_s: A group is given up at once when a server asks for a longer wait.
        sleep: Waits; tests pass one that only records.
    """

    tries: int = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    sleep: Sleep = asyncio.sleep


class RateLimiter:
    """Spaces the starts of requests evenly, at most `per_minute`; None: no limit."""

    def __init__(self, per_minute: float | None, *, sleep: Sleep = asyncio.sleep) -> None:
        self._interval_s = 60.0 / per_minute if per_minute else 0.0
        self._sleep = sleep
        self._next_at = 0.0

    async def acquire(self) -> None:
        """Wait until a request may start; first come, first served."""
        if not self._interval_s:
            return
        now = time.monotonic()
        start_at = max(now, self._next_at)
        self._next_at = start_at + self._interval_s
        if start_at > now:
            await self._sleep(start_at - now)
