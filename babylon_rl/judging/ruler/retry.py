"""The one retry layer between us and a judge. The clients below it have their own retries turned off.

Not tenacity, which needs four callbacks for this loop; not aiolimiter, which lets requests burst where `RateLimiter`
spaces them evenly.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from babylon_rl.judging.ruler.endpoint import BusyError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a busy server is asked again, and how long we wait in between.

    Attributes:
        tries: Requests at most, the first included.
        first_wait_s: Wait before the second try; doubles from try to try, less a jitter of up to a half.
        longest_wait_s: We give up at once when a server asks for a longer wait.
        sleep: Waits; tests pass one that only records.
    """

    tries: int = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    sleep: Sleep = asyncio.sleep

    async def run(self, attempt: Callable[[], Awaitable[T]], *, seed: str, what: str) -> T:
        """Await `attempt` until it answers.

        Args:
            attempt: One request; raises `BusyError` for what may pass.
            seed: Of the jitter, so that requests that failed together are not repeated together.
            what: Names the request in the log.

        Raises:
            BusyError: It was still busy at the last try, or asks for more time than we have.
        """
        jitter = random.Random(seed)  # noqa: S311  # spreads load, guards nothing
        n = 1
        while True:
            try:
                return await attempt()
            except BusyError as e:
                busy = e
            wait = busy.retry_after_s
            if wait is None:
                wait = min(self.longest_wait_s, self.first_wait_s * 2 ** (n - 1)) * jitter.uniform(0.5, 1.0)
            if n >= self.tries or wait > self.longest_wait_s:
                raise BusyError(
                    f"{busy}; gave up after {n} of {self.tries} tries; materialize the window again later",
                    retry_after_s=busy.retry_after_s,
                )
            logger.info("judge was busy what=%s try=%d of=%d wait_s=%.2f", what, n, self.tries, wait)
            await self.sleep(wait)
            n += 1


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
