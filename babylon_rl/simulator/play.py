"""Let agents play whole windows: observe, answer, trade, settle. Nothing is written here (`recording.py`)."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.simulator.market import Market, stable_seed
from babylon_rl.simulator.observation import Observation, observe
from babylon_rl.simulator.players import Player, PlayerAnswer
from babylon_rl.simulator.portfolio import START_BALANCE_USD, Order, Portfolio, parse_order
from babylon_rl.simulator.strategies import oracle


@dataclass(frozen=True, slots=True)
class AgentSlot:
    """One agent of a window: its stable id, and who decides for it.

    Attributes:
        learner: Whether its rows are offered as training data; a rival only plays.
    """

    agent_id: str
    player: Player
    learner: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One decision and its result. `order` is None when the answer was not a legal action."""

    tick: int
    observation: Observation
    answer: PlayerAnswer
    order: Order | None
    error: str | None
    result: dict[str, Any]
    balance_after_usd: float
    trades: int


@dataclass(slots=True)
class Playthrough:
    """One agent's whole window."""

    market: Market
    slot: AgentSlot
    moves: list[Move] = field(default_factory=list)

    @property
    def pnl_usd(self) -> float:
        return self.moves[-1].balance_after_usd - START_BALANCE_USD

    @property
    def invalid(self) -> int:
        return sum(m.order is None for m in self.moves)


async def play(
    markets: Sequence[Market],
    slots: Sequence[AgentSlot],
    *,
    seed: int,
    progress: Progress = ignore_progress,
) -> list[Playthrough]:
    """Play every market with an agent in every slot, all at once; agents never see each other.

    Args:
        markets: The windows to play.
        slots: Agents of each window, the same in all of them.
        seed: With the window, agent and tick it fixes every player's own randomness.
        progress: Called after each decision.

    Returns:
        `len(markets) * len(slots)` playthroughs, by market, then by slot.
    """

    async def play_window(market: Market, slot: AgentSlot) -> Playthrough:
        playthrough, portfolio = Playthrough(market, slot), Portfolio()
        for tick in range(market.decisions):
            observation = observe(market, portfolio, tick)
            answer = await slot.player.answer(
                observation, seed=stable_seed("play", seed, market.window, slot.agent_id, tick), window=market.window
            )
            order, error = parse_order(answer.text, market.tickers)
            result = portfolio.execute(market, tick, order) if order is not None else {}
            playthrough.moves.append(
                Move(
                    tick=tick,
                    observation=observation,
                    answer=answer,
                    order=order,
                    error=error,
                    result=result,
                    balance_after_usd=portfolio.value_usd(market, tick + 1),
                    trades=portfolio.trades,
                )
            )
            progress()
        return playthrough

    return list(await asyncio.gather(*(play_window(m, s) for m in markets for s in slots)))


def oracle_pnl_usd(market: Market) -> float:
    """P&L of a player who knows the hidden regimes and the resolution."""
    portfolio = Portfolio()
    for tick in range(market.decisions):
        order, error = parse_order(oracle(market, tick), market.tickers)
        if order is None:  # a bug of ours, not a player's
            raise AssertionError(error)
        portfolio.execute(market, tick, order)
    return portfolio.value_usd(market, market.decisions) - START_BALANCE_USD
