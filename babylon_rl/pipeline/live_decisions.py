"""What an agent's decisions of an hour say besides its P&L: illegal ones, volume, and trades that the market then moved with.

The game's action objects differ from writer to writer; what one does not say is unknown, and not 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from babylon_rl.deployment.evidence import is_money
from babylon_rl.ingest.steps import parse_number
from babylon_rl.types import Json, Trajectory, WindowOutcomes

_IDLE: Final = frozenset({"HOLD", "WAIT", "NONE", "PASS", "NO_ACTION", "DO_NOTHING"})
_UP: Final = frozenset({"BUY", "LONG", "YES", "BUY_YES", "OPEN_LONG"})
_DOWN: Final = frozenset({"SELL", "SHORT", "NO", "BUY_NO", "OPEN_SHORT"})
_PRICES: Final = ("price", "entryPrice", "averagePrice", "avgPrice", "executedPrice")
_AMOUNTS: Final = ("notionalUsd", "stakeUsd", "amountUsd", "notional", "amount", "cost", "volume")


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedDecisions:
    """Sums over one agent's hour; the names are `deployment.evidence.AgentResult`'s."""

    decisions: int
    invalid: int
    timed: int
    timed_right: int
    volume_usd: float | None


def count_decisions(played: Sequence[Trajectory], outcomes: WindowOutcomes) -> CountedDecisions:
    """Count the decisions of one agent's hour.

    Args:
        played: Its trajectories.
        outcomes: Of the hour; unknown ones leave the timing unknown.
    """
    actions = [a for t in played for a in t.decisions]
    trades = [a for a in actions if not _is_idle(a) and not _is_invalid(a) and _find_side(a) is not None]
    timed = [right for a in trades if (right := _moved_with(a, outcomes)) is not None]
    amounts = [amount for a in trades if is_money(amount := _find_number(a, _AMOUNTS))]
    return CountedDecisions(
        decisions=len(actions),
        invalid=sum(map(_is_invalid, actions)),
        timed=len(timed),
        timed_right=sum(timed),
        volume_usd=math.fsum(map(abs, amounts)) if len(amounts) == len(trades) else None,
    )


def _kind(action: Json) -> str:
    return str(action.get("actionType") or "").upper()


def _is_idle(action: Json) -> bool:
    return _kind(action) in _IDLE


def _is_invalid(action: Json) -> bool:
    """No legal action. One writer records a hold, which is legal, as a failure."""
    return _kind(action) == "INVALID" or (action.get("success") is False and not _is_idle(action))


def _moved_with(action: Json, outcomes: WindowOutcomes) -> bool | None:
    """Whether the market closed the hour on the trade's side of its price; None: one of the two is unknown, or they are equal."""
    price, side = _find_number(action, _PRICES), _find_side(action)
    market = _find_text(action, ("ticker", "symbol", "market", "marketId"))
    if price is None or side is None or market is None:
        return None
    name = market.lstrip("$").upper()
    for stock in outcomes.stocks:
        if name in {n.lstrip("$").upper() for n in (stock.ticker, *stock.other_names)}:
            close = stock.end_price
            return None if close is None or close == price else (close > price) is (side in _UP)
    for prediction in outcomes.predictions:
        if market == prediction.market_id:
            resolved = {"YES": 1.0, "NO": 0.0}.get(prediction.outcome or "", prediction.final_probability)
            if resolved is None:
                return None
            worth = resolved if side in _UP else 1 - resolved  # a share of either side has a price of its own
            return None if worth == price else worth > price
    return None


def _find_side(action: Json) -> str | None:
    parts = [_kind(action)] + [
        str(p.get(k) or "").upper() for p in _parts(action) for k in ("side", "direction", "action")
    ]
    return next((p for p in parts if p in _UP | _DOWN), None)


def _find_number(action: Json, names: Sequence[str]) -> float | None:
    found = (parse_number(part.get(name)) for part in _parts(action) for name in names)
    return next((x for x in found if x is not None), None)


def _find_text(action: Json, names: Sequence[str]) -> str | None:
    return next((str(part[name]) for part in _parts(action) for name in names if part.get(name)), None)


def _parts(action: Json) -> list[dict[str, Any]]:
    """Where an action says what it did: its result first, which knows the price paid."""
    return [p for key in ("result", "parameters") if isinstance(p := action.get(key), dict)]
