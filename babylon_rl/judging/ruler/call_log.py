"""The log of requests that cost money: each is recorded before it is sent, and its reply as soon as it arrives.

What belongs here: the interface of the log, and a log that keeps nothing. The log in our database, with the day's
budget, is `babylon_rl/store/judge_calls.py`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from babylon_rl.judging.ruler.completion import Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, with the judgment it is for.

    Attributes:
        judgment_key: The judgment it is made for.
        slot: Which part of that judgment: a pass (`p0`), or a sub-batch of a pass (`p0/h1of5`). A second request of
            the same slot means that an earlier reply could not be used.
        prompt_tokens: Our own count of the prompt.
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
    """Status of a request; stored as `judge_calls.state`."""

    ASKED = "asked"
    """Sent, no reply yet. A request whose process was killed keeps this status and its reservation."""
    DENIED = "denied"
    """Not sent: it could have crossed the day's budget."""
    REPLIED = "replied"
    REFUSED = "refused"
    """The judge said that it gives no answer: nothing is owed."""
    LOST = "lost"
    """Sent, and the judge's answer did not reach us: it may have been paid for, so it keeps its reservation."""


class CallLog(Protocol):
    """Keeps requests and their replies."""

    def replies(self, judgment_key: str, slot: str) -> list[Reply]:
        """Earlier replies of this slot, oldest first."""

    def begin(self, call: Call) -> str:
        """Record a request before it is sent.

        Returns:
            An id for `end`.

        Raises:
            BudgetSpentError: It could cross the budget.
        """

    def end(self, call_id: str, status: CallStatus, reply: Reply | None = None, cost_usd: float | None = None) -> None:
        """Record how a request ended, with its whole reply; called before anything else is done with the reply."""


class NullCallLog:
    """Keeps nothing and has no budget: for a judge without a database."""

    def replies(self, judgment_key: str, slot: str) -> list[Reply]:
        return []

    def begin(self, call: Call) -> str:
        return ""

    def end(self, call_id: str, status: CallStatus, reply: Reply | None = None, cost_usd: float | None = None) -> None:
        """Keep nothing."""
