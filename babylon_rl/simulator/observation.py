"""What an agent is shown: the prompt, and the same facts as fields for scripted strategies.

Nothing hidden is here: no regime, no resolution, no later price.
"""

from dataclasses import dataclass
from typing import Final

from babylon_rl.simulator.market import Headline, Hint, Market
from babylon_rl.simulator.portfolio import START_BALANCE_USD, Portfolio

SYSTEM_PROMPT: Final = "You trade stock perps and prediction markets in Babylon. Answer with one JSON action."


@dataclass(frozen=True, slots=True)
class Observation:
    """One decision's view. `text` is the user prompt; the other fields hold the same facts."""

    text: str
    tickers: tuple[str, ...]
    prices: dict[str, float]
    changes: dict[str, float]
    mover: str
    headline: Headline
    hint: Hint | None
    balance_usd: float
    pnl_usd: float
    open_positions: int

    @property
    def mover_up(self) -> bool:
        return self.changes[self.mover] > 0


def observe(market: Market, portfolio: Portfolio, tick: int) -> Observation:
    """Show decision `tick` of `market` to the owner of `portfolio`."""
    now = market.ticks[tick]
    balance = portfolio.value_usd(market, tick)
    pnl = balance - START_BALANCE_USD
    mover = max(market.tickers, key=lambda t: abs(now.changes[t]))
    held = ", ".join(
        f"{'long' if u > 0 else 'short'} {t} {abs(portfolio.exposure(market, tick, t)):.1f}"
        for t, u in portfolio.units.items()
        if abs(u) > 1e-9
    )
    shares = "; ".join(n for n, s in (("YES", portfolio.yes_shares), ("NO", portfolio.no_shares)) if s > 0)
    positions = "; ".join(p for p in (held, shares) if p) or "none"
    lines = ["Markets:"]
    lines += [f"{t} {now.prices[t]:.1f} ({now.changes[t] * 100:+.1f}%)" for t in market.tickers]
    lines.append(f"Q: {market.question} YES {now.yes_price * 100:.0f}%")
    lines.append(f"Top mover: {mover} {now.changes[mover] * 100:+.1f}%")
    lines += ["News:", "- " + now.headline.text]
    if now.hint:
        lines.append("- " + now.hint.text)
    lines.append(f"Step {tick + 1}/{market.decisions} balance {balance:.0f} pnl {pnl:+.0f} positions: {positions}")
    return Observation(
        "\n".join(lines),
        market.tickers,
        now.prices,
        now.changes,
        mover,
        now.headline,
        now.hint,
        balance,
        pnl,
        portfolio.open_positions,
    )
