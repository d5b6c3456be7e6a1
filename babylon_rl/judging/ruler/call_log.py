"""Every request to a judge that costs money, written down before it goes out and again the moment its reply is there.

What belongs here: what a judge needs from such a book, and the one that forgets. The one that keeps, in our database
and under the day's budget, is `babylon_rl/store/judge_calls.py`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from babylon_rl.errors import DataError
from babylon_rl.judging.ruler.endpoint import Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request for one purpose.

    Attributes:
        judgment_key: The judgment it is made for.
        slot: Which question of that judgment: a pass (`p0`), or a heat of a pass (`p0/h1of5`). Asking the same slot
            again means that an earlier reply could not be used.
        prompt_tokens: Our count of what is sent.
        reserved_usd: The most it can cost.
    """

    judgment_key: str
    slot: str
    window_id: str
    group_id: str
    judge_model: str
    judge_version: str
    prompt_tokens: int
    reserved_usd: float


class Ended(StrEnum):
    """How a request ended."""

    REPLIED = "replied"
    REFUSED = "refused"  # an error status: nothing was judged, nothing is owed
    LOST = "lost"  # sent, and no answer: it may have been paid for, so its reservation stands


class BudgetSpentError(DataError):
    """The next request could cross the day's budget; it was not sent."""


class Journal(Protocol):
    """A book of requests."""

    def replies(self, judgment_key: str, slot: str) -> list[Reply]:
        """Replies that this slot got before, in order, with what each did cost."""

    def begin(self, call: Call) -> str:
        """Write a request down before it is sent.

        Returns:
            An id to end it under.

        Raises:
            BudgetSpentError: It could cross the budget.
        """

    def end(self, call_id: str, how: Ended, reply: Reply | None = None, cost_usd: float | None = None) -> None:
        """Write down how a request ended; of a reply, all of it, before anything else is done with it."""


@runtime_checkable
class Journaled(Protocol):
    """A judge whose requests can be kept in a journal."""

    def keep_in(self, journal: Journal) -> None: ...


class NoJournal:
    """Keeps nothing: for judges outside a database, such as in an audit's dry run."""

    def replies(self, judgment_key: str, slot: str) -> list[Reply]:
        del judgment_key, slot
        return []

    def begin(self, call: Call) -> str:
        del call
        return ""

    def end(self, call_id: str, how: Ended, reply: Reply | None = None, cost_usd: float | None = None) -> None:
        """Forget it."""
