"""When a judge's requests are sent, sent again, held back, and no longer sent: the one retry layer above a judge.

Patience is the judge's, not a group's. While groups are answered, a group that is not waits on its own and fails alone.
While nobody is answered, all wait together: one request at a time tries, the next group's before the same group's
again, and once `RetryPolicy.tries` rounds in a row have failed for two groups at least, nothing more is sent.

Not tenacity, which needs four callbacks for this and knows one caller at a time.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from babylon_rl.errors import ConfigError, DataError
from babylon_rl.judging.judge import BudgetSpentError, JudgeDownError
from babylon_rl.judging.ruler.endpoint import BusyError
from babylon_rl.judging.ruler.retry import RateLimiter, RetryPolicy

logger = logging.getLogger(__name__)

T = TypeVar("T")


class CircuitBreaker:
    """Sends the requests of one judge, from its opening to its end.

    A *round* is one failure that all wait after. Requests that were in flight together and fail together are one round.
    """

    def __init__(self, policy: RetryPolicy, *, judge: str, max_in_flight: int, rate_limiter: RateLimiter) -> None:
        self._policy = policy
        self._judge = judge
        self._slots = asyncio.Semaphore(max_in_flight)
        self._rate_limiter = rate_limiter
        self._answers = 0
        self._rounds = 0
        # Since the last answer:
        self._failed_rounds = 0
        self._failed_groups: set[str] = set()
        self._longest_retry_after_s: float | None = None
        # Who holds requests back, and the requests that are held back, first come first.
        self._pauses = 0
        self._trying = False
        self._turns: deque[asyncio.Future[None]] = deque()
        # Why no request is sent any more.
        self._down: str | None = None
        self._refusal: str | None = None

    async def run(self, request: Callable[[], Awaitable[T]], *, group_id: str, seed: str) -> T:
        """Await `request` until the judge answers.

        Args:
            request: Sends it once; raises `BusyError` for what may pass.
            group_id: Whom the request is for; a group has one request at a time.
            seed: Of the jitter, so that requests that failed together are not repeated together.

        Raises:
            BusyError: This group is given up; others may be answered.
            JudgeDownError: Nobody is answered, so nothing more is sent.
            ConfigError: The judge refused this request, or one before it.
        """
        jitter = random.Random(seed)  # noqa: S311  # spreads load, guards nothing
        n = 0
        while True:
            async with self._slots:  # held while the judge works, not while we wait to ask again
                is_trial = await self._wait_for_turn()
                n += 1
                answers, round_ = self._answers, self._rounds
                try:
                    return await self._send(request)
                except BusyError as e:
                    busy = e
                finally:
                    self._trying = self._trying and not is_trial
                    self._wake()
            others_answered = self._answers > answers
            is_new_round = not others_answered and round_ == self._rounds
            if not others_answered:
                self._note_failure(busy, group_id, is_new_round=is_new_round)
            self._give_up_if_due(busy, n)
            wait = busy.retry_after_s
            if wait is None and (others_answered or is_new_round):
                doublings = (n if others_answered else self._failed_rounds) - 1
                wait = min(self._policy.longest_wait_s, self._policy.first_wait_s * 2**doublings)
                wait *= jitter.uniform(0.5, 1.0)
            if wait is not None:
                logger.info("judge was busy group=%s try=%d of=%d wait_s=%.2f", group_id, n, self._policy.tries, wait)
                # Others wait along, unless they are answered and nobody asked for time.
                await self._pause(wait, is_shared=not others_answered or busy.retry_after_s is not None)

    async def _send(self, request: Callable[[], Awaitable[T]]) -> T:
        """Send once, and note whether the judge answered: a prompt refused is an answer too."""
        try:
            answer = await request()
        except ConfigError as e:
            self._refusal = self._refusal or str(e)
            raise
        except DataError as e:
            if not isinstance(e, BudgetSpentError):  # that one was not sent
                self._note_answer()
            raise
        self._note_answer()
        return answer

    def _note_answer(self) -> None:
        self._answers += 1
        self._failed_rounds = 0
        self._failed_groups.clear()
        self._longest_retry_after_s = None

    def _note_failure(self, busy: BusyError, group_id: str, *, is_new_round: bool) -> None:
        self._failed_groups.add(group_id)
        if is_new_round:
            self._rounds += 1
            self._failed_rounds += 1
        if busy.retry_after_s is not None:
            self._longest_retry_after_s = max(busy.retry_after_s, self._longest_retry_after_s or 0.0)
        if self._asks_too_long(busy):
            self._failed_rounds = max(self._failed_rounds, self._policy.tries)
        # One group that fails may be at fault itself: the next one decides.
        if self._failed_rounds >= self._policy.tries and len(self._failed_groups) > 1:
            self._down = (
                f"judge {self._judge!r} is down: {len(self._failed_groups)} groups in a row got no answer, and nothing "
                f"more is sent to it for now; the last failure: {busy}"
            )

    def _give_up_if_due(self, busy: BusyError, n: int) -> None:
        if self._down is not None:
            raise self._down_error()
        if n >= self._policy.tries or self._failed_rounds >= self._policy.tries or self._asks_too_long(busy):
            raise BusyError(
                f"{busy}; gave up after {n} of {self._policy.tries} tries; it is asked again later",
                retry_after_s=busy.retry_after_s,
            )

    def _asks_too_long(self, busy: BusyError) -> bool:
        return busy.retry_after_s is not None and busy.retry_after_s > self._policy.longest_wait_s

    def _down_error(self) -> JudgeDownError:
        return JudgeDownError(self._down or "", retry_after_s=self._longest_retry_after_s)

    async def _wait_for_turn(self) -> bool:
        """Wait until a request may be sent; returns whether it is the only one, which tries for all."""
        while True:
            if self._refusal is not None:
                raise ConfigError(self._refusal)
            if self._down is not None:
                raise self._down_error()
            is_trial = self._failed_rounds > 0
            if self._pauses or (is_trial and self._trying):
                turn = asyncio.get_running_loop().create_future()
                self._turns.append(turn)
                await turn
                continue
            self._trying = self._trying or is_trial
            rounds = self._rounds
            try:
                await self._rate_limiter.acquire()
            except BaseException:
                self._trying = self._trying and not is_trial
                raise
            if is_trial or (rounds == self._rounds and self._refusal is None):
                return is_trial  # else the judge went away while this one waited for the limiter

    async def _pause(self, seconds: float, *, is_shared: bool) -> None:
        self._pauses += is_shared
        try:
            await self._policy.sleep(seconds)
        finally:
            self._pauses -= is_shared
            self._wake()
        await asyncio.sleep(0)  # those that waited go first

    def _wake(self) -> None:
        """Let those that are held back look again, in their order."""
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
