"""A row of the game as it is kept after parsing: what of it trains, and what of it is hindsight.

Structs of msgspec and no dataclasses for what is inside `stepsJson`, because steps are most of the bytes: JSON is decoded
straight into them.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec

from babylon_rl.types import Json

END_OF_TIME_MS: Final = 253_402_300_800_000  # the year 10000: too late for a `datetime`


class LlmCall(msgspec.Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """One call of a policy as the game logged it."""

    response: str
    purpose: Annotated[str, msgspec.Meta(min_length=1)] = "other"
    system_prompt: str = ""
    user_prompt: str = ""
    model: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    model_version: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    temperature: float | None = None
    max_tokens: float | None = None
    completion_tokens: float | None = None
    finish_reason: Annotated[str, msgspec.Meta(min_length=1)] | None = None


class EnvironmentState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The agent's account when it decided: the part of a step's `environmentState` that is kept.

    Attributes:
        lifetime_pnl_usd: P&L over the agent's whole life until then.
    """

    balance_usd: float | None = msgspec.field(default=None, name="agentBalance")
    lifetime_pnl_usd: float | None = msgspec.field(default=None, name="agentPnL")


UNKNOWN_ENVIRONMENT: Final = EnvironmentState()


class Step(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One observation → action: what is kept of an entry of `stepsJson`.

    A msgspec struct and no dataclass, because steps are most of the bytes: JSON is decoded straight into it.

    Attributes:
        at_ms: Milliseconds since 1970, if known.
        action: The game's action object; its `result` and `correctness` are hindsight.
        trust_state: What the game knew of the agent's trust then, in any form. Hindsight.
        counterparty: Who the other side of the interaction really was, in any form. Hindsight.
    """

    at_ms: Annotated[int, msgspec.Meta(ge=0, lt=END_OF_TIME_MS)] | None = msgspec.field(default=None, name="timestamp")
    environment: EnvironmentState = msgspec.field(default=UNKNOWN_ENVIRONMENT, name="environmentState")
    llm_calls: tuple[LlmCall, ...] = msgspec.field(default=(), name="llmCalls")
    action: Json = msgspec.field(default_factory=dict)
    trust_state: Any = msgspec.field(default=None, name="trustState")
    counterparty: Any = msgspec.field(default=None, name="counterpartyContext")

    @property
    def at(self) -> datetime | None:
        return None if self.at_ms is None else datetime.fromtimestamp(self.at_ms / 1000, UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """One usable row of `trajectories`: in live data one agent tick (0–3 steps).

    Attributes:
        window_id: Its hour, and its scenario if it names one.
        archetype: The kind of player that the game says the agent is, if it does.
    """

    source_id: str
    trajectory_id: str
    agent_id: str
    window_id: str
    start_at: datetime
    end_at: datetime | None
    final_pnl: float | None
    final_balance: float | None
    steps: tuple[Step, ...]
    metadata: Json
    archetype: str | None = None
