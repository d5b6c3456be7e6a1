"""Scripted players: the five kinds of the game's guide, the mixture that a base policy is cloned from, and references.

An answer states what it read, then the reason, then the action (docs/policy.md §2): a small policy that must state
the reading first learns to read, and RL can only amplify what it can represent.
"""

import json
import random
from collections.abc import Callable
from typing import Final, Literal

from babylon_rl.errors import ConfigError
from babylon_rl.simulator.market import Market
from babylon_rl.simulator.observation import Observation

SIZES: Final = (0.1, 0.3, 0.5)
TONE_WORD: Final = {1: "good", -1: "bad", 0: "calm"}
Cue = Literal["news", "price", "event", "rest"]
Strategy = Callable[[Observation, random.Random], str]


def reading(o: Observation) -> str:
    """The honest reading of a prompt, which every answer of the base policy starts with."""
    event = "none" if o.hint is None else ("yes" if o.hint.leans_yes else "no")
    return (
        f"{o.headline.ticker} {TONE_WORD[o.headline.tone]}, {o.mover} {'up' if o.mover_up else 'down'}, event {event}"
    )


def answer(o: Observation, cue: Cue, size: float, *, against: bool = False) -> str:
    """Act on one cue of the observation, with it or against it; a neutral cue means HOLD."""
    parts = dict(zip(("news", "price", "event"), reading(o).split(", "), strict=True))
    sign = {
        "news": o.headline.tone,
        "price": 1 if o.mover_up else -1,
        "event": 0 if o.hint is None else (1 if o.hint.leans_yes else -1),
        "rest": 0,
    }[cue]
    sign = -sign if against else sign
    fields: dict[str, object] = {"read": reading(o), "why": parts.get(cue, "rest")}
    if sign == 0:
        fields |= {"action": "HOLD"}
    elif cue == "event":
        fields |= {"action": "BUY_YES" if sign > 0 else "BUY_NO", "size": size}
    else:
        ticker = o.headline.ticker if cue == "news" else o.mover
        fields |= {"action": "BUY" if sign > 0 else "SELL", "ticker": ticker, "size": size}
    return json.dumps(fields, separators=(",", ":"))


def conservative(o: Observation, r: random.Random) -> str:
    """Small positions on news; holds at least 40 % of the time."""
    return answer(o, "rest" if r.random() < 0.4 else "news", 0.1)


def balanced(o: Observation, r: random.Random) -> str:
    """A little of everything."""
    return answer(o, r.choice(("news", "price", "event")), 0.3)


def aggressive(o: Observation, r: random.Random) -> str:
    """The largest size on news or price, against them 30 % of the time."""
    return answer(o, r.choice(("news", "price")), 0.5, against=r.random() < 0.3)


def momentum(o: Observation, r: random.Random) -> str:
    """Follows the top mover."""
    return answer(o, "price", r.choice((0.3, 0.5)))


def contrarian(o: Observation, r: random.Random) -> str:
    """Fades the top mover."""
    return answer(o, "price", r.choice((0.1, 0.3)), against=True)


def noise(o: Observation, r: random.Random) -> str:
    """Trades a random ticker in a random direction: must lose the fees."""
    side = r.choice(("BUY", "SELL"))
    return json.dumps({"action": side, "ticker": r.choice(o.tickers), "size": r.choice(SIZES)}, separators=(",", ":"))


def reader(o: Observation, _r: random.Random) -> str:
    """The best scripted player that knows only the prompt: follows the news, or the price where the news is neutral."""
    return answer(o, "news" if o.headline.tone else "price", 0.5)


def habits(o: Observation, r: random.Random) -> str:
    """What the base policy is cloned from: legal, unremarkable, with leanings that RL can find.

    Acts on the news 30 % of the time, on the price 30 %, on the event 25 %, and rests otherwise. Follows the news in
    70 % of the cases, trades against the price move in 70 %, follows the event in 60 %; sizes are random. It earns
    nothing. A fair coin instead of leanings taught nothing that RL could amplify (docs/policy.md §3).
    """
    cue: Cue = r.choices(("news", "price", "event", "rest"), weights=(0.3, 0.3, 0.25, 0.15))[0]
    with_it = {"news": 0.7, "price": 0.3, "event": 0.6, "rest": 1.0}[cue]
    return answer(o, cue, r.choice(SIZES), against=r.random() >= with_it)


GUIDE_KINDS: Final[dict[str, Strategy]] = {
    "conservative": conservative,
    "balanced": balanced,
    "aggressive": aggressive,
    "momentum": momentum,
    "contrarian": contrarian,
}
STRATEGIES: Final[dict[str, Strategy]] = GUIDE_KINDS | {"noise": noise, "reader": reader, "habits": habits}


def strategy(name: str) -> Strategy:
    """Look up a scripted player by name.

    Raises:
        ConfigError: No player has that name.
    """
    try:
        return STRATEGIES[name]
    except KeyError:
        raise ConfigError(
            f"player {name!r} is unknown; expected guide, current, a checkpoint such as babylon-mmo@3, or one of "
            f"{', '.join(STRATEGIES)}"
        ) from None


def oracle(market: Market, tick: int) -> str:
    """A reference, not a player: knows the regimes and the resolution, but not the noise.

    Buys the ticker that the hidden regimes push furthest, or the question's true side.
    """
    push = {t: sum(k.regimes[t] for k in market.ticks[tick:]) for t in market.tickers}
    best = max(market.tickers, key=lambda t: abs(push[t]))
    if push[best]:
        action: dict[str, object] = {"action": "BUY" if push[best] > 0 else "SELL", "ticker": best, "size": 0.5}
    else:
        action = {"action": "BUY_YES" if market.resolves_yes else "BUY_NO", "size": 0.5}
    return json.dumps(action, separators=(",", ":"))
