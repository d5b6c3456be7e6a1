"""What one agent owns, and the rules of trading: exposure limits, fees, spreads, settlement.

A perp position is held in units and valued at the market; every trade pays a fee on its notional. YES
and NO shares cost the price plus a spread and pay 1 or 0 when the window ends.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from babylon_rl.simulator.market import Market

START_BALANCE_USD: Final = 10_000.0
FEE: Final = 0.002
MAX_EXPOSURE: Final = 1.5  # per ticker, as a share of the start balance, long or short
PREDICTION_SHARE: Final = 0.05  # a binary payoff is big: size 1 stakes 5 % of the balance
SPREAD: Final = 0.02

ActionType = Literal["BUY", "SELL", "HOLD", "BUY_YES", "BUY_NO"]


@dataclass(frozen=True, slots=True)
class Order:
    """A legal action. `ticker` is set for perps only; `size` is a share of the start balance."""

    action: ActionType
    ticker: str | None = None
    size: float = 0.0


def parse_order(text: str, tickers: tuple[str, ...]) -> tuple[Order | None, str | None]:
    """Read an agent's answer.

    Returns:
        The order and None, or None and one clear sentence that says what is wrong with the answer.
    """
    try:
        d = json.loads(text)
    except ValueError:
        return None, "the answer is not JSON; expected one JSON object with an action"
    if not isinstance(d, dict):
        return None, f"the answer is a JSON {type(d).__name__}; expected an object with an action"
    action = d.get("action")
    if action == "HOLD":
        return Order("HOLD"), None
    if action not in ("BUY", "SELL", "BUY_YES", "BUY_NO"):
        return None, f"action {action!r} is unknown; expected BUY, SELL, HOLD, BUY_YES or BUY_NO"
    size = d.get("size")
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size <= 1:
        return None, f"size {size!r} does not fit; expected a number above 0 and at most 1"
    if action in ("BUY", "SELL"):
        if d.get("ticker") not in tickers:
            return None, f"ticker {d.get('ticker')!r} is not listed; expected one of {', '.join(tickers)}"
        return Order(action, d["ticker"], float(size)), None
    return Order(action, None, float(size)), None


@dataclass(slots=True)
class Portfolio:
    """Cash, perp units by ticker, and prediction shares of one agent in one window."""

    cash: float = START_BALANCE_USD
    units: dict[str, float] = field(default_factory=dict)
    yes_shares: float = 0.0
    no_shares: float = 0.0
    trades: int = 0
    invalid: int = 0

    def value_usd(self, market: Market, tick: int) -> float:
        """Value at decision `tick`; at `tick == decisions` the window is over and all is settled."""
        perps = sum(u * market.price(tick, t) for t, u in self.units.items())
        yes = market.yes_price(tick)
        return self.cash + perps + self.yes_shares * yes + self.no_shares * (1 - yes)

    def exposure(self, market: Market, tick: int, ticker: str) -> float:
        """Signed share of the start balance held in `ticker`."""
        return self.units.get(ticker, 0.0) * market.price(tick, ticker) / START_BALANCE_USD

    @property
    def open_positions(self) -> int:
        return sum(abs(u) > 1e-9 for u in self.units.values()) + (self.yes_shares > 0) + (self.no_shares > 0)

    def execute(self, market: Market, tick: int, order: Order) -> dict[str, Any]:
        """Trade at the prices of `tick`; returns the game's `action.result`."""
        if order.action == "HOLD":
            return {}
        self.trades += 1
        if order.ticker is not None:
            price = market.price(tick, order.ticker)
            held = self.exposure(market, tick, order.ticker)
            wanted = held + (order.size if order.action == "BUY" else -order.size)
            change = (min(max(wanted, -MAX_EXPOSURE), MAX_EXPOSURE) - held) * START_BALANCE_USD
            fee = abs(change) * FEE
            self.cash -= change + fee
            self.units[order.ticker] = self.units.get(order.ticker, 0.0) + change / price
            return {"price": round(price, 4), "notionalUsd": round(change, 2), "feeUsd": round(fee, 2)}
        stake = START_BALANCE_USD * order.size * PREDICTION_SHARE
        yes = market.yes_price(tick)
        price = (yes if order.action == "BUY_YES" else 1 - yes) + SPREAD
        self.cash -= stake
        if order.action == "BUY_YES":
            self.yes_shares += stake / price
        else:
            self.no_shares += stake / price
        return {"price": round(price, 4), "shares": round(stake / price, 2), "stakeUsd": round(stake, 2)}
