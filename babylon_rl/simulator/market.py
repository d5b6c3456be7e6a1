"""One window's market, fixed by a seed: prices, a YES/NO question, and news that hints at a hidden regime.

What belongs here: the market itself. What agents see of it is `observation.py`; what they own is `portfolio.py`.
Drift, noise and regime changes are given per hour, so that the number of decisions does not change how an hour moves.
Their values were found by measurement (docs/policy.md §4): with a weaker signal the advantage of a good choice drowns
in noise.
"""

import hashlib
import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import numpy as np

from babylon_rl.windows import HOUR, HourWindow

TICKERS: Final = ("TRUMP", "MUSK", "ALTMAN", "ZUCK")  # as in the game, the whole universe is always listed
DRIFT_PER_HOUR: Final = 0.072
NOISE_PER_SQRT_HOUR: Final = 0.0295
NEWS_ACCURACY: Final = 0.85
HINT_ACCURACY: Final = 0.85
HINT_CHANCE: Final = 0.5
REGIME_CHANGES_PER_HOUR: Final = 0.4876  # 85 % stay as they are for 20 minutes
REGIME_ODDS: Final = (0.38, 0.24, 0.38)

GOOD: Final = (
    "{t} shares surge as insiders hint at a record deal",
    "Analysts upgrade {t}, call outlook bright",
    "{t} beats every forecast, crowd cheers",
    "Leak: {t} about to win a huge contract",
    "Big fund quietly buying {t}",
    "{t} product launch gets rave reviews",
    "Regulator drops the case against {t}",
    "{t} announces massive buyback",
    "Rumor mill is bullish on {t} today",
    "Rivals in panic as {t} gains ground",
)
BAD: Final = (
    "{t} shares tumble as insiders hint at a scandal",
    "Analysts downgrade {t}, call outlook grim",
    "{t} misses every forecast, crowd boos",
    "Leak: {t} about to lose a huge contract",
    "Big fund quietly dumping {t}",
    "{t} product launch gets awful reviews",
    "Regulator opens a case against {t}",
    "{t} cancels the planned buyback",
    "Rumor mill is bearish on {t} today",
    "Rivals celebrate as {t} loses ground",
)
CALM: Final = (
    "{t} holds its annual meeting",
    "{t} posts a photo of breakfast",
    "Nothing new from {t} this hour",
    "{t} traders wait for a signal",
    "Quiet session for {t}",
    "{t} changes its logo colour again",
)
QUESTIONS: Final = (
    "Will {t} tweet about Mars today?",
    "Will {t} announce a merger this hour?",
    "Will {t} appear on live TV?",
    "Will {t} delete the app?",
    "Will {t} ban a rival?",
)
HINT_YES: Final = (
    "Sources close to {t} confirm it will happen",
    "Staff of {t} already prepare for it",
    "Leaked memo: {t} said yes",
)
HINT_NO: Final = (
    "Sources close to {t} deny it flatly",
    "Staff of {t} say plans were scrapped",
    "Leaked memo: {t} said no",
)
HEADLINES: Final = {1: GOOD, -1: BAD, 0: CALM}


@dataclass(frozen=True, slots=True)
class Headline:
    """One line of news; `tone` is what its words say, which is not always the truth."""

    ticker: str
    tone: int
    text: str


@dataclass(frozen=True, slots=True)
class Hint:
    """News about the question; `leans_yes` is what its words say."""

    leans_yes: bool
    text: str


@dataclass(frozen=True, slots=True)
class Tick:
    """The market at one decision. `regimes` is hidden: it drives the prices after this tick."""

    prices: dict[str, float]
    changes: dict[str, float]
    yes_price: float
    headline: Headline
    hint: Hint | None
    regimes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Market:
    """A whole window, the same for every agent in it.

    Attributes:
        ticks: One per decision, at `at(i)`.
        closing: Prices at the window's end.
        resolves_yes: How the question is resolved; hidden from agents.
    """

    window: HourWindow
    question: str
    question_ticker: str
    resolves_yes: bool
    ticks: tuple[Tick, ...]
    closing: dict[str, float]
    closing_yes_price: float
    tickers: tuple[str, ...] = field(default=TICKERS)

    @property
    def decisions(self) -> int:
        return len(self.ticks)

    def at(self, tick: int) -> datetime:
        """When decision `tick` is taken: the window's start plus its share of the hour."""
        return self.window.start_at + HOUR * tick / self.decisions

    def price(self, tick: int, ticker: str) -> float:
        """Price at a decision, or the closing price for `tick == decisions`."""
        return self.closing[ticker] if tick >= self.decisions else self.ticks[tick].prices[ticker]

    def yes_price(self, tick: int) -> float:
        """Price of YES at a decision; what it pays (0 or 1) once the window is over."""
        return float(self.resolves_yes) if tick >= self.decisions else self.ticks[tick].yes_price

    @property
    def market_id(self) -> str:
        return f"q-{self.window}"


def stable_seed(*parts: object) -> int:
    """63 bits from the parts' text: the same on every machine, whatever PYTHONHASHSEED."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def make_market(window: HourWindow, seed: int, *, decisions: int = 3) -> Market:
    """Draw the market of `window`.

    Args:
        window: The hour it fills; windows of one seed are independent of each other.
        seed: Of the world. The same seed and window give the same market, to the last digit.
        decisions: Times an agent acts in the hour (3: every 20 minutes).
    """
    r = np.random.default_rng(stable_seed("market", seed, window))
    drift, noise = DRIFT_PER_HOUR / decisions, NOISE_PER_SQRT_HOUR / math.sqrt(decisions)
    switch = 1 - math.exp(-REGIME_CHANGES_PER_HOUR / decisions)
    question_ticker = str(r.choice(TICKERS))
    question = str(r.choice(QUESTIONS)).format(t=question_ticker)
    resolves_yes = bool(r.random() < 0.5)
    yes_price = float(r.uniform(0.35, 0.65))

    def draw_regime() -> int:
        return int(r.choice([-1, 0, 1], p=REGIME_ODDS))

    regimes = {t: draw_regime() for t in TICKERS}
    prices = {t: float(r.uniform(20, 200)) for t in TICKERS}
    changes = {
        t: regimes[t] * drift + noise * float(r.normal()) for t in TICKERS
    }  # the changes before the first decision
    ticks: list[Tick] = []
    for _ in range(decisions):
        for t in TICKERS:
            if r.random() < switch:
                regimes[t] = draw_regime()
        subject = str(r.choice(TICKERS))
        tone = regimes[subject]
        if r.random() >= NEWS_ACCURACY:
            tone = int(r.choice([s for s in (-1, 0, 1) if s != tone]))
        headline = Headline(subject, tone, str(r.choice(HEADLINES[tone])).format(t="$" + subject))
        hint = None
        if r.random() < HINT_CHANCE:
            leans = resolves_yes if r.random() < HINT_ACCURACY else not resolves_yes
            hint = Hint(leans, str(r.choice(HINT_YES if leans else HINT_NO)).format(t=question_ticker))
        ticks.append(Tick(dict(prices), dict(changes), yes_price, headline, hint, dict(regimes)))
        changes = {t: regimes[t] * drift + noise * float(r.normal()) for t in TICKERS}
        prices = {t: prices[t] * math.exp(changes[t]) for t in TICKERS}
        yes_price = float(np.clip(yes_price + r.normal() * 0.052 / math.sqrt(decisions), 0.1, 0.9))
    return Market(window, question, question_ticker, resolves_yes, tuple(ticks), prices, yes_price)
