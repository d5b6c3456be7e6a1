"""The truth about closed windows: `market_outcomes`, computed from facts, and read back as `WindowOutcomes`.

What belongs here: the arithmetic of outcomes, and the rule by which duplicates and conflicts are
resolved. The simulator's facts are written by `ingest/facts.py`; those of a real game are read by `ingest/game_facts.py`.
Which source is believed where they disagree is `ingest/order_of_trust.py`.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal

import sqlalchemy as sa

from babylon_rl.database import game_tables, tables
from babylon_rl.database.locks import Lock, lock_transaction
from babylon_rl.ingest.clock import find_outcome_clock
from babylon_rl.ingest.columns import find_column_names
from babylon_rl.ingest.market_names import MarketNames
from babylon_rl.ingest.order_of_trust import prefer_computed
from babylon_rl.ingest.queries import select_outcomes, window_parameters
from babylon_rl.ingest.steps import BadRowError, parse_json, replace_lone_surrogates
from babylon_rl.types import Json, PredictionOutcome, StockOutcome, WindowOutcomes
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

SyncStatus = Literal["written", "unchanged", "open", "no_facts"]

_CENT: Final = Decimal("0.01")
_MAX_CHANGE_PCT: Final = Decimal("999.99")  # numeric(5,2)
_MAX_PRICE: Final = Decimal("99999999.99")  # numeric(10,2)
_STOCK_FACTS: Final = ("start_price", "end_price", "change_percent")
_PREDICTION_FACTS: Final = ("outcome", "final_probability")
_LAST_SECOND: Final = timedelta(seconds=1)
_NO_NAMES: Final = MarketNames()


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """How many windows had which `SyncStatus`; together they are all windows that were looked at.

    Attributes:
        no_facts: Nothing could be computed for them.
        known: Of those, windows whose outcomes are known all the same: by the game's own rows, or from before.
    """

    written: int
    unchanged: int
    open: int
    no_facts: int
    known: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeFaults:
    """Faults among the rows of one window's outcomes, which the rule of `examine_outcomes` resolved.

    Attributes:
        written_before_close: Rows left out because their hour was still open when they were written.
        duplicates: Rows beyond the first of their market.
        conflicts: Tickers and market ids whose rows disagree.
        start_price_zero: Tickers without a change, because nothing is divided by 0.
        unresolved: Markets without YES or NO.
        doubtful: Markets stored as NO at a final probability above one half. They stay NO.
        disagreements: Markets that the game's rows and our computation tell differently, each with both; ours counts.
        starts_inside: Tickers without a price before the hour: their start is the first inside it.
        unknown_names: Tickers of `market_outcomes` that the game's catalog of organisations does not tell.
        created_at_off_utc_min: How far the game's clock for the rows' time of writing lies from UTC, which was made good.
        created_at_zone_unknown: That clock could not be found, and was taken for UTC.
        unreadable: What our role may not read of the game's database, and the cure.
    """

    written_before_close: int = 0
    duplicates: int = 0
    conflicts: tuple[str, ...] = ()
    start_price_zero: tuple[str, ...] = ()
    unresolved: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()
    disagreements: tuple[str, ...] = ()
    starts_inside: tuple[str, ...] = ()
    unknown_names: tuple[str, ...] = ()
    created_at_off_utc_min: int = 0
    created_at_zone_unknown: bool = False
    unreadable: tuple[str, ...] = ()

    def facts(self) -> Json:
        """The faults that occurred, for metadata."""
        return {f: list(v) if isinstance(v, tuple) else v for f in self.__slots__ if (v := getattr(self, f))}


def sync_window_outcomes(conn: sa.Connection, window: HourWindow, *, now: datetime) -> SyncStatus:
    """Write a closed window's outcomes from its facts. The caller commits.

    The same facts change nothing; changed facts replace the window's rows. Concurrent calls wait for each other.

    Args:
        conn: An open transaction on the database with the game's tables and schema `babylon_rl`.
        window: The hour.
        now: Aware; an hour that is not over at `now` has no outcomes yet, and nothing is written.

    Returns:
        `written`, `unchanged`, `open`, or `no_facts` (then the game's own rows stay as they are).
    """
    if not window.closed_at(now):
        return "open"
    if conn.scalar(sa.select(sa.func.to_regclass(f"{tables.OUR_SCHEMA}.price_facts"))) is None:
        return "no_facts"  # a game database that our schema does not live in
    lock_transaction(conn, Lock.OUTCOMES, str(window))
    wanted = _compute_stock_rows(conn, window) + _compute_prediction_rows(conn, window)
    if not wanted:
        return "no_facts"
    t = game_tables.market_outcomes
    stored = conn.execute(sa.select(t).where(t.c.window_id == str(window))).mappings().all()
    if sorted(map(_content, stored)) == sorted(map(_content, wanted)):
        return "unchanged"
    conn.execute(sa.delete(t).where(t.c.window_id == str(window)))
    created_at = now.astimezone(UTC).replace(tzinfo=None)
    conn.execute(sa.insert(t), [{**row, "created_at": created_at} for row in wanted])
    logger.info("wrote outcomes window=%s rows=%d replaced=%d", window, len(wanted), len(stored))
    return "written"


def examine_outcomes(
    conn: sa.Connection,
    window: HourWindow,
    *,
    computed: WindowOutcomes | None = None,
    names: MarketNames = _NO_NAMES,
) -> tuple[WindowOutcomes, OutcomeFaults]:
    """Read a window's outcomes, stocks by ticker, predictions by market id, each once, with the faults that were resolved.

    A row written before its hour was over is no outcome: it holds the values of an open hour. Of several rows for
    one market the one created last counts, and of equally late ones the greater id. `$BTC` and `BTC` are one
    ticker. A sentiment is the sign of its change, whatever was stored; a resolution other than YES or NO is none, and so
    is one of a foreign row at a probability of exactly one half, which one writer stores for markets that it did not ask.

    Args:
        conn: On the database with the game's tables.
        window: The hour.
        computed: What we computed for it, which counts before the game's rows.
        names: The game's catalog of organisations, by which names of one market are one ticker.
    """
    own = computed or WindowOutcomes(window_id=str(window))
    columns, clock = find_outcome_clock(conn, find_column_names(conn))
    rows: list[Json] = []
    if columns.market_outcomes:
        stored = conn.exec_driver_sql(select_outcomes(columns), window_parameters(window)).mappings()
        rows = [{k: _finite_or_none(v) if isinstance(v, Decimal) else v for k, v in r.items()} for r in stored]
    end_at = window.end_at.replace(tzinfo=None)
    closed = [r for r in rows if r["created_at"] is None or r["created_at"] >= end_at]
    facts_of: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    stocks: dict[str, Any] = {}
    predictions: dict[str, Any] = {}
    for row in closed:  # oldest first: later ones overwrite
        if row["stock_ticker"]:
            ticker = names.find_ticker(row["stock_ticker"])
            stocks[ticker] = row
            facts_of.setdefault(("stock", ticker), []).append(tuple(row[c] for c in _STOCK_FACTS))
        if market_id := row["prediction_market_id"]:
            predictions[market_id] = row
            facts_of.setdefault(("prediction", market_id), []).append(tuple(row[c] for c in _PREDICTION_FACTS))
    by_the_game = WindowOutcomes(
        window_id=str(window),
        stocks=tuple(_parse_stock(ticker, row, names) for ticker, row in sorted(stocks.items())),
        predictions=tuple(_parse_prediction(m, row, window) for m, row in sorted(predictions.items())),
    )
    outcomes, disagreements = prefer_computed(own, by_the_game)
    faults = OutcomeFaults(
        written_before_close=len(rows) - len(closed),
        duplicates=sum(len(facts) - 1 for facts in facts_of.values()),
        conflicts=tuple(name for (_, name), facts in sorted(facts_of.items()) if len(set(facts)) > 1),
        start_price_zero=tuple(s.ticker for s in outcomes.stocks if s.start_price == 0),
        unresolved=tuple(p.market_id for p in outcomes.predictions if p.outcome is None),
        doubtful=tuple(p.market_id for p in outcomes.predictions if _is_doubtful(p)),
        disagreements=disagreements,
        starts_inside=tuple(s.ticker for s in outcomes.stocks if s.starts_inside),
        unknown_names=tuple(
            sorted({r["stock_ticker"] for r in closed if r["stock_ticker"] and names.is_unknown(r["stock_ticker"])})
        ),
        created_at_off_utc_min=round((clock.offset_at(end_at) or timedelta()).total_seconds() / 60),
        created_at_zone_unknown=bool(rows) and not clock.offsets,
        unreadable=() if columns.market_outcomes else columns.unreadable,
    )
    return outcomes, faults


def compute_from_simulator(conn: sa.Connection, window: HourWindow) -> WindowOutcomes:
    """Outcomes from the simulator's facts, for a database whose `market_outcomes` are not ours to write.

    Args:
        conn: On the database with schema `babylon_rl`.
        window: A closed hour.
    """
    stocks = _compute_stock_rows(conn, window)
    return WindowOutcomes(
        window_id=str(window),
        stocks=tuple(_parse_stock(r["stock_ticker"], r, _NO_NAMES) for r in stocks),
        predictions=tuple(
            _parse_prediction(r["prediction_market_id"], r, window) for r in _compute_prediction_rows(conn, window)
        ),
    )


def _is_doubtful(p: PredictionOutcome) -> bool:
    """Whether the market itself held its NO for improbable: one writer stored open markets as NO."""
    return p.outcome == "NO" and p.final_probability is not None and p.final_probability > 0.5


def change_pct(start: float, end: float) -> Decimal | None:
    """Change in percent, rounded to and clipped at what `numeric(5,2)` holds; None when it started at 0."""
    if start == 0:
        return None
    change = (end / start - 1) * 100
    if not math.isfinite(change):
        return None
    clipped = min(max(Decimal(repr(change)), -_MAX_CHANGE_PCT), _MAX_CHANGE_PCT)
    return clipped.quantize(_CENT) + 0  # +0 turns -0.00 into 0.00


def sentiment(change: Decimal | float | None) -> str | None:
    """BULLISH above 0 %, BEARISH below, NEUTRAL at 0; unknown stays unknown."""
    if change is None:
        return None
    return "BULLISH" if change > 0 else "BEARISH" if change < 0 else "NEUTRAL"


def _compute_stock_rows(conn: sa.Connection, window: HourWindow) -> list[Json]:
    """One row per ticker with a price inside the hour.

    The start is its first price in `[start, end)`, the end its last. A price at exactly `end` also
    closes the hour, unless there is another in the last second: then it only opens the next hour.
    """
    p, n = tables.price_facts.c, tables.news_facts.c
    facts = conn.execute(
        sa.select(p.ticker, p.at, p.price)
        .where(p.at >= window.start_at, p.at <= window.end_at)
        .order_by(p.ticker, p.at)
    ).all()
    prices: dict[str, list[tuple[datetime, float]]] = {}
    for ticker, at, price in facts:
        if math.isfinite(price):
            prices.setdefault(ticker, []).append((at, price))
    news: dict[str, list[Json]] = {}
    for at, headline, ticker in conn.execute(
        sa.select(n.at, n.headline, n.ticker)
        .where(n.at >= window.start_at, n.at < window.end_at, n.ticker.is_not(None))
        .order_by(n.at, n.headline.collate("C"))
    ):
        news.setdefault(ticker, []).append({"at": at.astimezone(UTC).isoformat(), "headline": headline})
    rows = []
    for ticker, series in sorted(prices.items()):
        inside = [(at, price) for at, price in series if at in window]
        if not inside:
            continue
        closes_itself = window.end_at - inside[-1][0] <= _LAST_SECOND
        start, end = inside[0][1], (inside if closes_itself else series)[-1][1]
        change = change_pct(start, end)
        rows.append(
            _make_row(
                window,
                f"stock:{ticker}",
                stock_ticker=ticker[:20],
                start_price=_to_price(start),
                end_price=_to_price(end),
                change_percent=change,
                sentiment=sentiment(change),
                news_events=news.get(ticker, []),
            )
        )
    return rows


def _compute_prediction_rows(conn: sa.Connection, window: HourWindow) -> list[Json]:
    f = tables.prediction_facts
    facts = conn.execute(sa.select(f).where(f.c.window_id == str(window)).order_by(f.c.market_id)).mappings()
    return [
        _make_row(
            window,
            f"prediction:{r['market_id']}",
            prediction_market_id=r["market_id"],
            question=r["question"],
            outcome=_parse_yes_no(r["outcome"]),
            final_probability=_to_probability(r["final_probability"]),
        )
        for r in facts
    ]


def _make_row(window: HourWindow, key: str, **known: Any) -> Json:
    """A whole row of `market_outcomes` but for `created_at`; columns not in `known` are null."""
    row: Json = {c.name: None for c in game_tables.market_outcomes.c if c.name != "created_at"}
    return row | {"id": f"{window}/{key}", "window_id": str(window)} | known


def _content(row: Any) -> tuple[str, ...]:
    """What two rows are compared by: all but the time of writing."""
    return tuple(repr(row[c.name]) for c in game_tables.market_outcomes.c if c.name != "created_at")


def _parse_prediction(market_id: str, row: Any, window: HourWindow) -> PredictionOutcome:
    outcome, probability = _parse_yes_no(row["outcome"]), row["final_probability"]
    if probability == Decimal("0.5") and row["id"] != f"{window}/prediction:{market_id}":
        outcome = None  # not one of our own rows, whose resolution is known
    return PredictionOutcome(
        market_id=market_id,
        question=row["question"] or "",
        outcome=outcome,
        final_probability=None if probability is None else float(probability),
    )


def _parse_stock(ticker: str, row: Any, names: MarketNames) -> StockOutcome:
    start, end = row["start_price"], row["end_price"]
    # A price rounded to 0.00 has no change: the one stored with it (999.99) comes from a division by zero.
    change = None if start is None or start == 0 else row["change_percent"]
    if change is None and start and end is not None:
        change = change_pct(float(start), float(end))
    return StockOutcome(
        ticker=ticker,
        start_price=None if start is None else float(start),
        end_price=None if end is None else float(end),
        change_pct=None if change is None else float(change),
        sentiment=sentiment(change) if change is not None else None,
        news=tuple(_parse_headlines(row["news_events"])),
        other_names=names.list_other_names(ticker),
    )


def _parse_headlines(text: str | list[Any] | None) -> Iterable[str]:
    try:
        events = replace_lone_surrogates(parse_json(text)) if isinstance(text, str) else text
    except BadRowError:
        return
    for event in events if isinstance(events, list) else []:
        if isinstance(event, str):
            yield event
        elif isinstance(event, dict):
            texts: Sequence[object] = [event.get(k) for k in ("headline", "title", "content", "text", "description")]
            yield from [t for t in texts if isinstance(t, str) and t][:1]


def _finite_or_none(value: Decimal) -> Decimal | None:
    """PostgreSQL's numeric holds NaN, which is no price."""
    return value if value.is_finite() else None


def _to_price(value: float) -> Decimal:
    return min(max(Decimal(repr(value)), -_MAX_PRICE), _MAX_PRICE).quantize(_CENT) + 0


def _to_probability(value: float | None) -> Decimal | None:
    if value is None or not math.isfinite(value):
        return None
    return min(max(Decimal(repr(value)), Decimal(0)), Decimal(1)).quantize(Decimal("0.0001"))


def _parse_yes_no(value: str | None) -> str | None:
    """`YES` or `NO` in any case; everything else is unresolved."""
    answer = (value or "").strip().upper()
    return answer if answer in ("YES", "NO") else None
