"""Text of agents that play by habit: what the tokenizer is trained on and the base policy is cloned from."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from babylon_rl.simulator.market import Market, make_market, stable_seed
from babylon_rl.simulator.observation import Observation, observe
from babylon_rl.simulator.portfolio import Portfolio, parse_order
from babylon_rl.simulator.strategies import habits
from babylon_rl.windows import HourWindow

FIRST_WINDOW: Final = HourWindow.parse("2001-01-01T00:00")  # only names markets; no partition is that old


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One decision played by habit: the observation and the answer."""

    observation: Observation
    answer: str


def draw_markets(purpose: str, seed: int, windows: int) -> Iterator[Market]:
    """Draw `windows` markets that no other purpose or seed shares."""
    world = stable_seed("policy", purpose, seed)
    for i in range(windows):
        yield make_market(FIRST_WINDOW.next(i), world)


def play_by_habit(purpose: str, seed: int, windows: int) -> list[Example]:
    """Let one agent play each window by habit.

    Returns:
        One example per decision (three a window), in order of play.
    """
    r = random.Random(stable_seed("policy-habits", purpose, seed))  # noqa: S311  # play, not secrets
    examples: list[Example] = []
    for market in draw_markets(purpose, seed, windows):
        portfolio = Portfolio()
        for tick in range(market.decisions):
            observation = observe(market, portfolio, tick)
            answer = habits(observation, r)
            examples.append(Example(observation=observation, answer=answer))
            order, _ = parse_order(answer, market.tickers)
            if order is not None:
                portfolio.execute(market, tick, order)
    return examples
