"""What can go wrong upstream, and how a caller hears of it: OpenAI's shape, no address, no key."""

from enum import StrEnum
from typing import Final

from babylon_rl.policy.wire import RequestError


class Failure(StrEnum):
    """Why an upstream did not answer. The value is the error's `code`."""

    UNREACHABLE = "upstream_unreachable"
    TIMED_OUT = "upstream_timeout"
    OVERLOADED = "upstream_overloaded"
    FAILED = "upstream_error"
    REFUSED = "upstream_refused"
    BROKEN = "upstream_broken"
    """It stopped in the middle of a stream."""
    UNAVAILABLE = "policy_unavailable"
    """Its weights are not those recorded, or nothing is configured to serve it."""
    RESTING = "upstream_resting"
    """It failed so often just now that it was not asked."""


_STATUS: Final = {Failure.TIMED_OUT: 504, Failure.OVERLOADED: 503, Failure.UNAVAILABLE: 503, Failure.RESTING: 503}
_WORDS: Final = {
    Failure.UNREACHABLE: "its server cannot be reached",
    Failure.TIMED_OUT: "its server did not answer in time",
    Failure.OVERLOADED: "its server has too much to do",
    Failure.FAILED: "its server failed",
    Failure.REFUSED: "its server refused to answer for this gateway",
    Failure.BROKEN: "its server stopped in the middle of the answer",
    Failure.UNAVAILABLE: "it cannot be served here now",
    Failure.RESTING: "its server failed repeatedly",
}


class UpstreamError(Exception):
    """An upstream did not answer; another policy may.

    Attributes:
        failure: Why.
        passing: Whether the same request may work a moment later.
    """

    def __init__(self, failure: Failure, detail: str = "", *, passing: bool = False) -> None:
        super().__init__(detail or _WORDS[failure])
        self.failure = failure
        self.passing = passing

    def for_caller(self, policy: str) -> RequestError:
        """What the caller is told; the detail is for the log."""
        return RequestError(
            _STATUS.get(self.failure, 502),
            f"{policy} did not answer: {_WORDS[self.failure]}; send the request again",
            code=self.failure.value,
        )
