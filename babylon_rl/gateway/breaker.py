"""A circuit breaker: who failed several times in a row is left alone for a while, then tried with one call."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final

FAILURES: Final = 3  # in a row
FIRST_REST_S: Final = 5.0
LONGEST_REST_S: Final = 60.0


@dataclass(slots=True)
class Breaker:
    """The breaker of one model at one upstream.

    It advises only: where nobody else could answer, the upstream is asked all the same.
    """

    clock: Callable[[], float] = time.monotonic
    _failures: int = 0
    _rest_s: float = FIRST_REST_S
    _closed_at: float = 0.0  # when the rest ends
    _trying: bool = False

    @property
    def is_open(self) -> bool:
        return self._failures >= FAILURES

    def lets_through(self) -> bool:
        """Whether a call may be tried; of an open breaker, one call at a time once the rest is over."""
        if not self.is_open:
            return True
        if self._trying or self.clock() < self._closed_at:
            return False
        self._trying = True
        return True

    def succeed(self) -> None:
        self._failures, self._rest_s, self._trying = 0, FIRST_REST_S, False

    def fail(self) -> None:
        if self.is_open and self._trying:
            self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)
        self._failures += 1
        self._trying = False
        if self.is_open:
            self._closed_at = self.clock() + self._rest_s

    def let_go(self) -> None:
        """A call ended and says nothing about the upstream: its caller left, or was refused for what it asked."""
        self._trying = False


@dataclass(slots=True)
class Breakers:
    """A breaker for each upstream and model, made when it is first asked for."""

    _known: dict[Hashable, Breaker] = field(default_factory=dict)

    def of(self, key: Hashable) -> Breaker:
        return self._known.setdefault(key, Breaker())

    def open_count(self) -> int:
        return sum(b.is_open for b in self._known.values())
