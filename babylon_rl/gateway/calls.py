"""One call of an agent, as it is recorded once it has ended."""

import secrets
import time
from dataclasses import dataclass
from typing import Final, Protocol

from babylon_rl.store.served_calls import RecordedCall

CALLER_LEFT: Final = 499
_DIGITS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: no letter looks like a digit


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCall(RecordedCall):
    """A row of `served_calls` as the gateway makes it, and what `llm_call_logs` needs beside it.

    Attributes:
        digest: Of the step's recorded manifest; empty for the base and for remote weights.
        upstream: `engine` or `openai`.
        status: HTTP, as the caller got it; `CALLER_LEFT` where it did not wait.
        error: OpenAI's error code, never a message.
        asked_at: When the call's body had arrived.
        first_token_ms: From `asked_at`; only of streamed answers.
        temperature: That it was sampled with.
        logprobs: Of each drawn token, where our engine answered.
        trajectory_id: As the caller named it; None: it named none, and nothing goes into `llm_call_logs`.
        messages: JSON of the request's messages; only where text is kept, or the call names a trajectory.
        response: Text of the answer; likewise.
        reasoning: Of a model that shows it; likewise.
        keep_text: Whether `served_calls` keeps `messages` and `response` too.
        model_asked: The request's `model`.
    """

    logprobs: tuple[float, ...] | None = None
    trajectory_id: str | None = None
    step_number: int | None = None
    keep_text: bool = False
    purpose: str = "action"
    reasoning: str | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    model_asked: str = ""


class CallSink(Protocol):
    """Takes calls off the request's path."""

    def record(self, call: ServedCall) -> None:
        """Take a call; never blocks, and never raises."""
        ...

    @property
    def waiting(self) -> int:
        """Calls that are not written yet."""
        ...


def new_call_id() -> str:
    """`call-` and 26 characters: 48 bits of the clock's milliseconds, so that ids sort by time, and 80 drawn ones."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return "call-" + "".join(_DIGITS[number >> shift & 31] for shift in range(125, -1, -5))
