"""One call of an agent, as it is recorded once it has ended."""

import secrets
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from babylon_rl.deployment.stages import Arm

CALLER_LEFT: Final = 499
_DIGITS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: no letter looks like a digit


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCall:
    """A row of `served_calls`, and what `llm_call_logs` needs beside it.

    Attributes:
        step: That answered; where nobody did, that was asked last.
        digest: Of its recorded manifest; empty for the base and for remote weights.
        deployment: Number of the deployment that it was answered under.
        fell_back_from: Step that should have answered and could not.
        upstream: `engine` or `openai`.
        status: HTTP, as the caller got it; `CALLER_LEFT` where it did not wait.
        error: OpenAI's error code, never a message.
        asked_at: When the call's body had arrived.
        first_token_ms: From `asked_at`; only of streamed answers.
        temperature: That it was sampled with.
        trajectory_id: As the caller named it; None: it named none, and nothing goes into `llm_call_logs`.
        messages: JSON of the request's messages; only where text is kept, or the call names a trajectory.
        response: Text of the answer; likewise.
        reasoning: Of a model that shows it; likewise.
        keep_text: Whether `served_calls` keeps `messages` and `response` too.
        model_asked: The request's `model`.
    """

    call_id: str
    agent_id: str | None
    window_id: str
    lineage: str
    step: int
    digest: str
    arm: Arm
    deployment: int
    rollout: str | None
    fell_back_from: int | None
    upstream: str
    status: int
    error: str | None
    asked_at: datetime
    first_token_ms: float | None
    latency_ms: float
    prompt_tokens: int | None
    completion_tokens: int | None
    temperature: float | None
    finish_reason: str | None
    streamed: bool
    logprobs: tuple[float, ...] | None = None
    trajectory_id: str | None = None
    step_number: int | None = None
    messages: str | None = None
    response: str | None = None
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
