"""The log of requests that cost money: each is written before it is sent, and its reply the moment it is there.

What belongs here: what a judge needs from such a log, and one that keeps nothing. The one in our database, under the
day's budget, is `babylon_rl/store/judge_calls.py`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from babylon_rl.judging.ruler.endpoint import Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request for one purpose.

    Attributes:
        judgment_key: The judgment it is made for.
        slot: Which question of that judgment: a pass (`p0`), or a sub-batch of a pass (`p0/h1of5`). Asking the same
            slot again means that an earlier reply could not be used.
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


class CallStatus(StrEnum):
    """What became of a request; stored as `judge_calls.state`."""

    ASKED = "asked"
    """Sent, not yet ended. Of a killed process it stays so, and so does its reservation."""
    DENIED = "denied"
    """Not sent: it could have crossed the day's budget."""
    REPLIED = "replied"
    REFUSED = "refused"
    """An error status: nothing was judged, nothing is owed."""
    LOST = "lost"
    """Sent, and no answer: it may have been paid for, so its reservation stands."""


class CallLog(Protocol):
    """Keeps requests and their replies."""

    def replies(self, judgment_key: str, slot: str) -> list[Reply]:
        """Replies that this slot got before, oldest first."""

    def begin(self, call: Call) -> str:
        """Write a request down before it is sent.

        Returns:
            An id to end it under.

        Raises:
            BudgetSpentError: It could cross the budget.
        """

    def end(self, call_id: str, status: CallStatus, reply: Reply | None = None, cost_usd: float | None = None) -> None:
        """Write down how a request ended; of a reply, all of it, before anything else is done with it."""


class NullCallLog:
    """Keeps nothing and has no budget: for a judge without a database."""

    def replies(self, judgment_key: str, slot: str) -> list[Reply]:
        return []

    def begin(self, call: Call) -> str:
        return ""

    def end(self, call_id: str, status: CallStatus, reply: Reply | None = None, cost_usd: float | None = None) -> None:
        """Forget it."""
