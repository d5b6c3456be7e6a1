"""Which source of outcomes is believed, market by market.

1. What we computed from a closed hour's own facts (`ingest/game_facts.py`).
2. The simulator's facts, where it played the hour (`ingest/facts.py`).
3. The game's rows of `market_outcomes` that were written after the hour.
4. Nothing: the market has no outcome.

Rows that the game wrote while the hour was open are none of these: they hold the values of that moment.
"""

from collections.abc import Mapping
from dataclasses import replace

from babylon_rl.types import PredictionOutcome, StockOutcome, WindowOutcomes

_CENT = 0.005 + 1e-9  # the game rounds its prices to cents
_LAST_DIGIT = 0.00005 + 1e-9  # and its probabilities to four digits


def prefer_computed(computed: WindowOutcomes, other: WindowOutcomes) -> tuple[WindowOutcomes, tuple[str, ...]]:
    """Take each market from `computed`, where it is, else from `other`.

    Returns:
        The outcomes, and a sentence for each market that the two tell differently, with both values. News, which nobody
        computes, and questions are taken from `other` where `computed` has none.
    """
    stocks: dict[str, StockOutcome] = {s.ticker: s for s in other.stocks}
    predictions: dict[str, PredictionOutcome] = {p.market_id: p for p in other.predictions}
    disagreements = [
        *(_compare_stock(s, stocks[s.ticker]) for s in computed.stocks if s.ticker in stocks),
        *(_compare_prediction(p, predictions[p.market_id]) for p in computed.predictions if p.market_id in predictions),
    ]
    stocks |= {s.ticker: replace(s, news=s.news or _news(stocks, s.ticker)) for s in computed.stocks}
    for p in computed.predictions:
        told = predictions.get(p.market_id)
        predictions[p.market_id] = replace(p, question=p.question or (told.question if told is not None else ""))
    merged = replace(
        other,
        stocks=tuple(s for _, s in sorted(stocks.items())),
        predictions=tuple(p for _, p in sorted(predictions.items())),
    )
    return merged, tuple(d for d in disagreements if d is not None)


def _news(stocks: Mapping[str, StockOutcome], ticker: str) -> tuple[str, ...]:
    return stocks[ticker].news if ticker in stocks else ()


def _compare_stock(ours: StockOutcome, theirs: StockOutcome) -> str | None:
    if _are_close(ours.start_price, theirs.start_price, _CENT) and _are_close(ours.end_price, theirs.end_price, _CENT):
        return None
    return f"{ours.ticker}: computed {_describe_prices(ours)}, market_outcomes {_describe_prices(theirs)}"


def _compare_prediction(ours: PredictionOutcome, theirs: PredictionOutcome) -> str | None:
    if ours.outcome == theirs.outcome and _are_close(ours.final_probability, theirs.final_probability, _LAST_DIGIT):
        return None
    return f"{ours.market_id}: computed {_describe_market(ours)}, market_outcomes {_describe_market(theirs)}"


def _are_close(a: float | None, b: float | None, tolerance: float) -> bool:
    """Whether two values say the same; a value that one side does not know contradicts nothing."""
    return a is None or b is None or abs(a - b) <= tolerance


def _describe_prices(s: StockOutcome) -> str:
    return f"{_write(s.start_price)} to {_write(s.end_price)}"


def _describe_market(p: PredictionOutcome) -> str:
    return f"{p.outcome or 'unresolved'} at {_write(p.final_probability)}"


def _write(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.10g}"
