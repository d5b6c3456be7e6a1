"""One call under way: what was asked, who is answering, and the record that it leaves."""

import time
from dataclasses import dataclass, field

import msgspec

from babylon_rl.gateway.calls import ServedCall, new_call_id
from babylon_rl.gateway.heard import Heard
from babylon_rl.gateway.reading import Asked
from babylon_rl.gateway.routing import Route
from babylon_rl.gateway.state import ServedState
from babylon_rl.gateway.upstreams import Target
from babylon_rl.types import policy_name


@dataclass(slots=True, kw_only=True)
class Call:
    """A call keeps the state that it began with, whatever is deployed meanwhile.

    Attributes:
        step: That is asked now, or answered.
        fell_back_from: That should have answered and could not.
        status: As the caller gets it.
        error: OpenAI's code.
    """

    asked: Asked
    state: ServedState
    route: Route
    id: str = field(default_factory=new_call_id)
    step: int = -1
    target: Target | None = None
    heard: Heard = field(default_factory=Heard)
    fell_back_from: int | None = None
    status: int = 200
    error: str | None = None
    is_recorded: bool = False
    _began: float = field(default_factory=time.perf_counter)
    _first_token_ms: float | None = None

    def __post_init__(self) -> None:
        self.step = self.route.step

    @property
    def policy(self) -> str:
        """Name of the step that is asked now, or answered."""
        return policy_name(self.state.deployment.lineage, self.step)

    @property
    def headers(self) -> dict[str, str]:
        """What the response says about who spoke."""
        return {"x-babylon-call": self.id, "x-babylon-policy": self.policy, "x-babylon-arm": self.route.arm.value}

    def note_first_token(self) -> None:
        """Called with the first piece of a streamed answer."""
        self._first_token_ms = self._elapsed_ms()

    def to_record(self, *, temperature: float, keep_text: bool) -> ServedCall:
        """What is recorded of it.

        Args:
            temperature: That upstreams take where the caller named none.
            keep_text: Whether `served_calls` keeps prompts and answers.
        """
        asked, heard, d = self.asked, self.heard, self.state.deployment
        text = {}
        if keep_text or asked.trajectory_id is not None:
            text = {
                "messages": msgspec.json.encode(asked.fields["messages"]).decode(),
                "response": heard.response,
                "reasoning": heard.reasoning,
            }
        return ServedCall(
            call_id=self.id,
            agent_id=asked.agent_id,
            window_id=asked.window_id,
            lineage=d.lineage,
            step=self.step,
            digest="" if self.target is None else self.target.digest,
            arm=self.route.arm,
            deployment=d.number,
            rollout=d.rollout,
            fell_back_from=self.fell_back_from,
            upstream="none" if self.target is None else self.target.kind,
            status=self.status,
            error=self.error,
            asked_at=asked.at,
            first_token_ms=self._first_token_ms,
            latency_ms=self._elapsed_ms(),
            prompt_tokens=heard.prompt_tokens,
            completion_tokens=heard.completion_tokens,
            temperature=temperature if asked.temperature is None else asked.temperature,
            finish_reason=heard.finish_reason,
            streamed=asked.stream,
            logprobs=None if heard.logprobs is None else tuple(heard.logprobs),
            trajectory_id=asked.trajectory_id,
            step_number=asked.step_number,
            keep_text=keep_text,
            purpose=asked.purpose,
            max_tokens=asked.limit,
            top_p=_read_float(asked.fields.get("top_p")),
            model_asked=asked.model,
            **text,
        )

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._began) * 1000


def _read_float(value: object) -> float | None:
    """A number of the request that the gateway itself does not need: whatever it is, the call is answered and recorded."""
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return None
