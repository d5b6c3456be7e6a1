"""Who plays a market: scripted players, and the policy behind an OpenAI-compatible endpoint.

Every player gets an `Observation` and answers with text; `play.py` trades by it.
"""

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from babylon_rl.simulator.observation import SYSTEM_PROMPT, Observation
from babylon_rl.simulator.strategies import strategy
from babylon_rl.windows import HourWindow

if TYPE_CHECKING:
    from babylon_rl.policy.client import PolicyClient

MAX_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayerAnswer:
    """One answer, with what the game logs about the call; None is not logged."""

    text: str
    model: str
    model_version: str | None = None
    temperature: float | None = None
    latency_ms: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Player(Protocol):
    """Anything that can decide."""

    @property
    def name(self) -> str: ...

    async def answer(self, observation: Observation, *, seed: int, window: HourWindow) -> PlayerAnswer:
        """Decide; the same seed and observation give the same answer. The window is not shown to a policy."""
        ...


@dataclass(frozen=True, slots=True)
class ScriptedPlayer:
    """One of `strategies.STRATEGIES`, by name.

    Attributes:
        is_stand_in: It plays in place of the base policy, and its calls log `scripted/<name>` as their version, by which
            training counts them as own (`training/foreign_turns.py`); else they log none.
    """

    name: str
    is_stand_in: bool = False

    async def answer(self, observation: Observation, *, seed: int, window: HourWindow) -> PlayerAnswer:
        text = strategy(self.name)(observation, random.Random(seed))  # noqa: S311  a game, not a secret
        model = f"scripted/{self.name}"
        return PlayerAnswer(text=text, model=model, model_version=model if self.is_stand_in else None)


@dataclass(frozen=True, slots=True)
class PolicyPlayer:
    """A served checkpoint, or whichever the gateway has answer an agent.

    Attributes:
        model: Name to ask for, e.g. `babylon-mmo@3` or `babylon-mmo@latest`; of the gateway: `babylon-mmo`.
        temperature: None takes the temperature that the server serves with.
        agent_id: Told to the gateway with each call, as is the hour; None: neither is told.
    """

    client: "PolicyClient"
    model: str
    temperature: float | None = None
    agent_id: str | None = None

    @property
    def name(self) -> str:
        return self.model

    async def answer(self, observation: Observation, *, seed: int, window: HourWindow) -> PlayerAnswer:
        named = {} if self.agent_id is None else {"x-babylon-agent": self.agent_id, "x-babylon-window": str(window)}
        completion = await self.client.complete(
            model=self.model,
            system=SYSTEM_PROMPT,
            user=observation.text,
            temperature=self.temperature,
            seed=seed,
            max_tokens=MAX_TOKENS,
            headers=named,
        )
        return PlayerAnswer(
            text=completion.text,
            model=completion.model,
            model_version=completion.model,  # the server names the concrete checkpoint, also when asked for @latest
            temperature=self.temperature,
            latency_ms=completion.latency_ms,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
        )
