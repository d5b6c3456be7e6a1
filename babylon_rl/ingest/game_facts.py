"""What each market did in a closed hour, computed from the facts that the game itself keeps: prices and resolutions.

What belongs here: the arithmetic, and the queries that read the facts. They go by organisation or market and by time, as
the game's own indexes do, and never write. Where the result is kept is `ingest/computed_outcomes.py`.

A stock's start is its last price before the hour, else the first inside it (`starts_inside`); its end the last inside
`[start, end)`. Without a price inside there is no outcome: an old price says nothing about this hour. A daily snapshot is a
price only for an organisation that has no other in the hour, and its high and low, of a day, are not the hour's.

A prediction market is in the hour when its price moved or it was resolved there. A resolution is its outcome only if it
happened before the hour's end, whenever this is computed: so the outcomes of an hour do not change when a question is
resolved days later, and no judgment is paid again. What such a question resolves to is hindsight that a judge may have:
`resolves_later_to`, from the answer that the game fixes when it asks (`Question.outcome`), which is there from the start.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

import sqlalchemy as sa

from babylon_rl.ingest.clock import find_clock
from babylon_rl.ingest.columns import find_column_names
from babylon_rl.ingest.fact_tables import FactTable, FactTables, find_fact_tables
from babylon_rl.ingest.market_names import MarketNames, read_market_names
from babylon_rl.types import Json, PredictionOutcome, StockOutcome, WindowOutcomes
from babylon_rl.windows import HourWindow

_FINITE: Final = (
    "{0}::float8 < 'Infinity'::float8 AND {0}::float8 > '-Infinity'::float8"  # NaN is greater than infinity
)
_NEWEST_RESOLVED: Final = 20
_YES: Final = ("true", "t", "yes", "1")
_NO: Final = ("false", "f", "no", "0")


CreatedAtOffset = Callable[[datetime], timedelta | None]
"""How far `createdAt` lies after UTC at an instant (naive, UTC), in tables where the database's own `now()` wrote it."""


def assume_utc(at: datetime) -> timedelta:
    """The offset of a database whose server is in UTC."""
    return timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GameFacts:
    """The facts of one game's database, looked up once and then asked for many windows.

    Attributes:
        created_at_offset: Of `PredictionPriceHistory`.
    """

    tables: FactTables
    names: MarketNames
    created_at_offset: CreatedAtOffset = assume_utc


def find_game_facts(game: sa.Engine, *, created_at_offset: CreatedAtOffset | None = None) -> GameFacts:
    """Look up which facts a game's database has, and by which clock it wrote them.

    Args:
        game: Only read.
        created_at_offset: Of the database's clock; None: found by its rows (`ingest/clock.py`). Price histories whose
            resolutions agree with the instants that the game itself wrote (`Market.updatedAt`) are in UTC whatever it says.
    """
    with game.connect() as conn:
        _make_read_only(conn)
        tables = find_fact_tables(conn)
        if created_at_offset is None:
            created_at_offset = _find_offset(conn, tables)
        is_utc = created_at_offset is assume_utc or _is_history_in_utc(conn, tables, created_at_offset)
        return GameFacts(
            tables=tables,
            names=read_market_names(conn, tables),
            created_at_offset=assume_utc if is_utc else created_at_offset,
        )


def _find_offset(conn: sa.Connection, tables: FactTables) -> CreatedAtOffset:
    if "PredictionPriceHistory" not in tables.tables:
        return assume_utc
    names = find_column_names(conn)
    if names.outcomes_in_utc:
        return assume_utc  # a game in our own tables
    clock = find_clock(conn, names)
    return clock.offset_at if any(offset for _, offset in clock.offsets) else assume_utc


def _is_history_in_utc(conn: sa.Connection, tables: FactTables, created_at_offset: CreatedAtOffset) -> bool:
    """Whether more of the newest resolutions lie at the instant the game wrote than at that instant plus the offset."""
    m, h = tables.tables.get("Market"), tables.tables.get("PredictionPriceHistory")
    if m is None or h is None:
        return False
    query = (
        f"SELECT {m.columns['id']}::text, {m.columns['updated_at']}::timestamp FROM {m.sql} "  # noqa: S608
        f"WHERE {m.columns['resolved']} AND {m.columns['updated_at']} > '0001-01-01' "
        f"AND {m.columns['updated_at']} < '9999-01-01' ORDER BY {m.columns['updated_at']} DESC LIMIT {_NEWEST_RESOLVED}"
    )
    written: dict[str, datetime] = dict(conn.exec_driver_sql(query).tuples().all())
    votes = 0
    for market, event_at in _read_resolution_events(conn, h, list(written)).items():
        gap, offset = event_at - written[market], created_at_offset(written[market]) or timedelta(0)
        votes += (abs(gap) < abs(gap - offset)) - (abs(gap) > abs(gap - offset))
    return votes > 0


def compute_outcomes(game: sa.Engine, facts: GameFacts, window: HourWindow) -> WindowOutcomes:
    """Compute a closed window's outcomes, in a transaction that only reads and sees one instant; empty without facts."""
    if not facts.tables.has_sources:
        return WindowOutcomes(window_id=str(window))
    with game.connect() as conn:
        _make_read_only(conn)
        return WindowOutcomes(
            window_id=str(window),
            stocks=tuple(_compute_stocks(conn, facts, window)),
            predictions=tuple(_compute_predictions(conn, facts, window)),
        )


def _make_read_only(conn: sa.Connection) -> None:
    conn.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


# ── stocks ─────────────────────────────────────────────────────────────────────────────────────────
def _compute_stocks(conn: sa.Connection, facts: GameFacts, window: HourWindow) -> list[StockOutcome]:
    table = facts.tables.tables.get("StockPrice")
    if table is None:
        return []
    inside: dict[str, list[Json]] = {}
    for row in _read_prices_inside(conn, table, facts.names, window):
        inside.setdefault(row["organization_id"], []).append(row)
    series: dict[str, list[float]] = {}
    for organization, rows in inside.items():
        live = [r["price"] for r in rows if not r["is_snapshot"]]
        series[organization] = live or [r["price"] for r in rows]
    has_only_snapshots = [all(r["is_snapshot"] for r in inside[o]) for o in series]
    before = _read_prices_before(conn, table, window, list(series), has_only_snapshots)
    stocks = [
        _describe_stock(facts.names, organization, before.get(organization), prices)
        for organization, prices in series.items()
    ]
    return sorted(stocks, key=lambda s: s.ticker)


def _read_prices_inside(conn: sa.Connection, p: FactTable, names: MarketNames, window: HourWindow) -> Sequence[Any]:
    c = p.columns
    columns = ", ".join(p.select(n) for n in ("organization_id", "price", "is_snapshot"))
    # By organisation too, for the index that leads with it; the planner takes the one over time alone if that is better.
    mine = f"{c['organization_id']} = ANY(%(organizations)s) AND " if names.organizations else ""
    query = (
        f"SELECT {columns} FROM {p.sql} "  # noqa: S608  # names from the catalog
        f"WHERE {mine}{c['timestamp']} >= %(start)s AND {c['timestamp']} < %(end)s AND {_FINITE.format(c['price'])} "
        f'ORDER BY {c["timestamp"]}, {c["id"]}::text COLLATE "C"'
    )
    parameters = {
        "organizations": list(names.organizations),
        "start": window.start_at.replace(tzinfo=None),
        "end": window.end_at.replace(tzinfo=None),
    }
    return conn.exec_driver_sql(query, parameters).mappings().all()


def _read_prices_before(
    conn: sa.Connection, p: FactTable, window: HourWindow, organizations: list[str], snapshots: list[bool]
) -> dict[str, float]:
    c = p.columns
    query = (
        "SELECT o.id, b.price FROM unnest(%(organizations)s::text[], %(snapshots)s::boolean[]) AS o(id, snapshots) "  # noqa: S608
        f"CROSS JOIN LATERAL (SELECT {c['price']}::float8 AS price FROM {p.sql} "
        f"WHERE {c['organization_id']} = o.id AND {c['timestamp']} < %(start)s AND {_FINITE.format(c['price'])} "
        f"AND (o.snapshots OR NOT coalesce({c['is_snapshot']}, false)) "
        f'ORDER BY {c["timestamp"]} DESC, {c["id"]}::text COLLATE "C" DESC LIMIT 1) b'
    )
    start = window.start_at.replace(tzinfo=None)
    parameters = {"organizations": organizations, "snapshots": snapshots, "start": start}
    return dict(conn.exec_driver_sql(query, parameters).tuples().all())


def _describe_stock(
    names: MarketNames, organization: str, before: float | None, inside: Sequence[float]
) -> StockOutcome:
    prices = [*([] if before is None else [before]), *inside]
    start, end = prices[0], prices[-1]
    change = None if start == 0 else _round((end / start - 1) * 100)
    ticker = names.organizations.get(organization, organization)
    return StockOutcome(
        ticker=ticker,
        start_price=start,
        end_price=end,
        change_pct=change,
        sentiment=None if change is None else "BULLISH" if change > 0 else "BEARISH" if change < 0 else "NEUTRAL",
        high_price=max(prices),
        low_price=min(prices),
        volatility_pct=_compute_volatility_pct(prices),
        starts_inside=before is None,
        other_names=names.list_other_names(ticker),
    )


def _compute_volatility_pct(prices: Sequence[float]) -> float | None:
    """Realized volatility: the root of the summed squared returns from price to price, in percent."""
    if len(prices) < 2 or 0 in prices[:-1]:
        return None
    returns = [b / a - 1 for a, b in pairwise(prices)]
    return _round(math.hypot(*returns) * 100)


def _round(value: float) -> float | None:
    """To four decimals, so that the last bit of a float makes no other version; None where it is not finite."""
    return round(value, 4) + 0.0 if math.isfinite(value) else None


# ── predictions ────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True, kw_only=True)
class _Market:
    question: str
    is_resolved: bool
    resolution: str | None
    resolved_at: datetime | None


def _compute_predictions(conn: sa.Connection, facts: GameFacts, window: HourWindow) -> list[PredictionOutcome]:
    history = facts.tables.tables.get("PredictionPriceHistory")
    start, end = window.start_at.replace(tzinfo=None), window.end_at.replace(tzinfo=None)
    markets = _read_markets(conn, facts, start)
    offset = facts.created_at_offset(start) or timedelta(0)
    inside: dict[str, float] = {}
    if history is not None:
        inside = _read_last_probabilities(conn, history, markets, start + offset, end + offset)
    resolved_here = {
        m
        for m, known in markets.items()
        if known.is_resolved and known.resolved_at and start <= known.resolved_at < end
    }
    active = sorted(inside.keys() | resolved_here)
    before: dict[str, float] = {}
    events: dict[str, datetime] = {}
    if history is not None:
        before = _read_probabilities_before(conn, history, active, start + offset)
        events = _read_resolution_events(conn, history, [m for m in active if m in markets and markets[m].is_resolved])
    answers = _read_answers(conn, facts, {m: markets[m].question for m in active if m in markets})
    outcomes = []
    for market_id in active:
        market = markets.get(market_id, _Market(question="", is_resolved=False, resolution=None, resolved_at=None))
        event_at = events[market_id] - offset if market_id in events else None
        later, resolved, resolved_at = answers.get(market_id, (None, None, None))
        if market.is_resolved and market.resolution is not None:
            resolved, resolved_at = market.resolution, event_at or market.resolved_at
        is_known = resolved is not None and resolved_at is not None and resolved_at < end
        outcomes.append(
            PredictionOutcome(
                market_id=market_id,
                question=market.question,
                outcome=resolved if is_known else None,
                final_probability=inside.get(market_id, before.get(market_id)),
                start_probability=before.get(market_id),
                resolves_later_to=None if is_known else later,
            )
        )
    return outcomes


def _read_markets(conn: sa.Connection, facts: GameFacts, start: datetime) -> dict[str, _Market]:
    """Markets that may have been open in the hour: a resolved one was last written when it was resolved, or later."""
    m = facts.tables.tables.get("Market")
    if m is None:
        return {}
    c = m.columns
    columns = ", ".join(m.select(n) for n in m.columns)
    query = (
        f"SELECT {columns} FROM {m.sql} WHERE NOT coalesce({c['resolved']}, false) "  # noqa: S608
        f"OR coalesce({c['updated_at']} >= %(start)s, true)"
    )
    return {
        r["id"]: _Market(
            question=r["question"] or "",
            is_resolved=bool(r["resolved"]),
            resolution=_parse_answer(r["resolution"]),
            resolved_at=r["updated_at"],
        )
        for r in conn.exec_driver_sql(query, {"start": start}).mappings()
    }


def _read_last_probabilities(
    conn: sa.Connection, h: FactTable, markets: dict[str, _Market], start: datetime, end: datetime
) -> dict[str, float]:
    """The last price of YES inside the hour, by market."""
    c = h.columns
    mine = f"{c['market_id']} = ANY(%(markets)s) AND " if markets else ""
    query = (
        f"SELECT {c['market_id']}::text, {c['yes_price']}::float8 FROM {h.sql} "  # noqa: S608
        f"WHERE {mine}{c['created_at']} >= %(start)s AND {c['created_at']} < %(end)s "
        f"AND {c['yes_price']}::float8 BETWEEN 0 AND 1 "
        f'ORDER BY {c["created_at"]}, {c["id"]}::text COLLATE "C"'
    )
    parameters = {"markets": list(markets), "start": start, "end": end}
    return dict(conn.exec_driver_sql(query, parameters).tuples().all())  # later ones overwrite


def _read_probabilities_before(
    conn: sa.Connection, h: FactTable, markets: list[str], start: datetime
) -> dict[str, float]:
    c = h.columns
    query = (
        "SELECT m.id, b.yes FROM unnest(%(markets)s::text[]) AS m(id) "  # noqa: S608
        f"CROSS JOIN LATERAL (SELECT {c['yes_price']}::float8 AS yes FROM {h.sql} "
        f"WHERE {c['market_id']} = m.id AND {c['created_at']} < %(start)s AND {c['yes_price']}::float8 BETWEEN 0 AND 1 "
        f'ORDER BY {c["created_at"]} DESC, {c["id"]}::text COLLATE "C" DESC LIMIT 1) b'
    )
    return dict(conn.exec_driver_sql(query, {"markets": markets, "start": start}).tuples().all())


def _read_resolution_events(conn: sa.Connection, h: FactTable, markets: list[str]) -> dict[str, datetime]:
    """When resolved markets were resolved, as their price histories say; as stored, with the offset of `createdAt`."""
    c = h.columns
    query = (
        "SELECT m.id, b.at FROM unnest(%(markets)s::text[]) AS m(id) "  # noqa: S608
        f"CROSS JOIN LATERAL (SELECT {c['created_at']}::timestamp AS at FROM {h.sql} "
        f"WHERE {c['market_id']} = m.id AND lower({c['event_type']}) LIKE 'resol%%' "
        f"ORDER BY {c['created_at']} DESC LIMIT 1) b"  # from the end, where it stands
    )
    return dict(conn.exec_driver_sql(query, {"markets": markets}).tuples().all())


def _read_answers(
    conn: sa.Connection, facts: GameFacts, questions: dict[str, str]
) -> dict[str, tuple[str | None, str | None, datetime | None]]:
    """Market id → (answer fixed beforehand, resolved answer, when), by the question's text or number."""
    q = facts.tables.tables.get("Question")
    if q is None or not questions:
        return {}
    c = q.columns
    columns = ", ".join(q.select(n) for n in q.columns)
    query = (
        f"SELECT {columns} FROM {q.sql} WHERE {c['text']} = ANY(%(texts)s) "  # noqa: S608
        f"OR {c['question_number']}::text = ANY(%(ids)s)"
    )
    parameters = {"texts": list(questions.values()), "ids": list(questions)}
    found: dict[str, tuple[str | None, str | None, datetime | None]] = {}
    for r in conn.exec_driver_sql(query, parameters).mappings():
        resolved = _parse_answer(r["resolved_outcome"]) if (r["status"] or "").lower() == "resolved" else None
        answer = (_parse_answer(r["outcome"]), resolved, r["resolution_date"])
        for market_id, text in questions.items():
            if r["text"] == text or (r["question_number"] == market_id and market_id not in found):
                found[market_id] = answer
    return found


def _parse_answer(value: str | None) -> str | None:
    """`YES` or `NO` of a boolean in any spelling; anything else is no answer."""
    word = (value or "").strip().lower()
    return "YES" if word in _YES else "NO" if word in _NO else None
