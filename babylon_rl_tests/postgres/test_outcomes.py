"""Outcomes are the truth about closed hours, written once and read by one rule."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from babylon_rl.database import game_tables, tables
from babylon_rl.errors import DataError
from babylon_rl.ingest.facts import write_facts
from babylon_rl.ingest.outcomes import SyncReport, examine_outcomes, sync_window_outcomes
from babylon_rl.pipeline.outcomes import OutcomesSync, sync_hours
from babylon_rl.types import StockOutcome, WindowOutcomes
from babylon_rl_tests.factories import WINDOW, a_workspace

START, END = WINDOW.start_at, WINDOW.end_at
NOW = END + timedelta(minutes=5)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def facts(engine: sa.Engine, **known: Any) -> None:
    with engine.begin() as conn:
        write_facts(conn, **known)


def sync(engine: sa.Engine, now: datetime = NOW) -> str:
    with engine.begin() as conn:
        return sync_window_outcomes(conn, WINDOW, now=now)


def stored(engine: sa.Engine) -> list[Any]:
    t = game_tables.market_outcomes
    with engine.connect() as conn:
        return list(conn.execute(sa.select(t).order_by(t.c.id)).mappings())


def outcomes(engine: sa.Engine) -> WindowOutcomes:
    with engine.connect() as conn:
        return examine_outcomes(conn, WINDOW)[0]


def only_stock(engine: sa.Engine) -> StockOutcome:
    (stock,) = outcomes(engine).stocks
    return stock


def test_outcomes_are_computed_from_the_hours_own_facts(engine: sa.Engine) -> None:
    facts(
        engine,
        prices=[("BTC", at(-1), 1.0), ("BTC", at(0), 100.0), ("BTC", at(40), 90.0), ("BTC", at(60), 84.0)],
        predictions=[("q1", str(WINDOW), "Will it?", "yes", 0.91234), ("q2", str(WINDOW), "Open?", None, None)],
        news=[(at(5), "SEC investigates", "BTC"), (at(60), "too late", "BTC"), (at(6), "of nobody", None)],
    )
    assert sync(engine) == "written"
    found = outcomes(engine)
    assert found.stocks == (
        StockOutcome(
            ticker="BTC",
            start_price=100.0,
            end_price=84.0,
            change_pct=-16.0,
            sentiment="BEARISH",
            news=("SEC investigates",),
        ),
    )
    assert [(p.market_id, p.outcome, p.final_probability) for p in found.predictions] == [
        ("q1", "YES", 0.9123),
        ("q2", None, None),
    ]


def test_a_late_close_is_not_taken_for_the_next_hours_opening(engine: sa.Engine) -> None:
    facts(engine, prices=[("BTC", at(0), 100.0), ("BTC", END - timedelta(milliseconds=1), 110.0), ("BTC", END, 55.0)])
    sync(engine)
    assert only_stock(engine).end_price == 110.0


def test_a_ticker_that_opens_the_next_hour_has_no_outcome_yet(engine: sa.Engine) -> None:
    facts(engine, prices=[("BTC", END, 55.0)])
    assert sync(engine) == "no_facts"


def test_an_open_hour_has_no_outcomes_until_it_closes(engine: sa.Engine) -> None:
    facts(engine, prices=[("BTC", at(0), 100.0), ("BTC", at(20), 110.0)])
    assert sync(engine, END - timedelta(microseconds=1)) == "open"
    assert stored(engine) == []
    assert sync(engine, END) == "written"


def test_the_same_facts_change_nothing_and_changed_facts_replace(engine: sa.Engine) -> None:
    facts(engine, prices=[("BTC", at(0), 100.0), ("BTC", at(60), 110.0)], news=[(at(1), "hello", "BTC")])
    assert sync(engine) == "written"
    before = stored(engine)
    assert sync(engine, NOW + timedelta(hours=3)) == "unchanged"
    assert stored(engine) == before
    facts(engine, prices=[("BTC", at(60), 120.0), ("ETH", at(0), 5.0)])
    assert sync(engine) == "written"
    assert [s.ticker for s in outcomes(engine).stocks] == ["BTC", "ETH"]
    assert outcomes(engine).stocks[0].change_pct == 20.0
    assert len(stored(engine)) == 2


def test_two_syncs_at_once_write_each_market_once(engine: sa.Engine) -> None:
    facts(engine, prices=[(f"T{i}", at(m), 10.0 + m) for i in range(20) for m in (0, 60)])
    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(lambda _: sync(engine), range(4)))
    assert sorted(ended) == ["unchanged"] * 3 + ["written"]
    assert len(stored(engine)) == 20


@pytest.mark.parametrize(
    ("start", "end", "change", "sentiment"),
    [
        (100.0, 100.0, 0.0, "NEUTRAL"),
        (100.0, 100.001, 0.0, "NEUTRAL"),
        (100.0, 101.0, 1.0, "BULLISH"),
        (0.0, 50.0, None, None),  # never divided by
        (0.01, 9000.0, 999.99, "BULLISH"),  # numeric(5,2) holds no more
        (1e-300, 1e300, None, None),
        (5e12, 1.0, -100.0, "BEARISH"),  # a price that numeric(10,2) cannot hold
    ],
)
def test_changes_that_the_columns_cannot_hold_never_raise(
    engine: sa.Engine, start: float, end: float, change: float | None, sentiment: str | None
) -> None:
    facts(engine, prices=[("BTC", at(0), start), ("BTC", at(60), end)])
    assert sync(engine) == "written"
    (row,) = stored(engine)
    stored_change = row["change_percent"]
    assert (None if stored_change is None else float(stored_change), row["sentiment"]) == (change, sentiment)
    assert sync(engine) == "unchanged"


def test_of_several_rows_the_latest_then_the_greatest_id_counts(engine: sa.Engine) -> None:
    def row(id_: str, created_min: int, **known: Any) -> dict[str, Any]:
        created_at = at(created_min).replace(tzinfo=None)
        return {"id": id_, "window_id": str(WINDOW), "created_at": created_at} | known

    with engine.begin() as conn:
        for r in [
            row("9", 61, stock_ticker="$BTC", start_price=100, end_price=90, change_percent=-10, sentiment="BULLISH"),
            row("1", 62, stock_ticker="BTC", start_price=100, end_price=110, change_percent=10, sentiment="BULLISH"),
            row("2", 62, stock_ticker="BTC", start_price=100, end_price=100, change_percent=0, sentiment="BEARISH"),
            row("3", 61, stock_ticker="PENNY", start_price=0, end_price=1, change_percent=999.99, sentiment="BULLISH"),
            row("4", 61, prediction_market_id="q", question="?", outcome="no", news_events=["x"]),
            row("5", 62, prediction_market_id="q", question="?", outcome="PENDING"),
        ]:
            conn.execute(sa.insert(game_tables.market_outcomes), [r])
    found = outcomes(engine)
    assert [(s.ticker, s.change_pct, s.sentiment) for s in found.stocks] == [
        ("BTC", 0.0, "NEUTRAL"),  # 0 % is neutral, whatever was stored
        ("PENNY", None, None),  # it started at 0: 999.99 is no change
    ]
    assert [(p.market_id, p.outcome) for p in found.predictions] == [("q", None)]


def test_without_facts_the_games_own_rows_stay_as_they_are(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        own = {"id": "1", "window_id": str(WINDOW), "stock_ticker": "BTC", "start_price": 1, "end_price": 2}
        conn.execute(sa.insert(game_tables.market_outcomes), [own])
    assert sync(engine) == "no_facts"
    assert len(stored(engine)) == 1
    assert only_stock(engine).change_pct == 100.0


def test_recent_windows_are_all_accounted_for(engine: sa.Engine) -> None:
    facts(engine, prices=[("BTC", at(0), 1.0), ("BTC", at(70), 2.0), ("BTC", at(-60 * 30), 3.0)])
    workspace = replace(a_workspace(engine), now=lambda: at(65))
    assert workspace.owns_game
    for written in (1, 0):
        report = SyncReport(written=written, unchanged=1 - written, open=1, no_facts=23)
        assert sync_hours(workspace, hours=24) == OutcomesSync(report=report, advice=None)


def test_a_fact_written_again_replaces_itself(engine: sa.Engine) -> None:
    facts(engine, prices=[("BTC", at(0), 1.0), ("BTC", at(0), 2.0)])
    facts(engine, prices=[("BTC", at(0), 3.0)])
    with engine.connect() as conn:
        assert [tuple(r)[2] for r in conn.execute(sa.select(tables.price_facts))] == [3.0]
    with pytest.raises(DataError, match="'BTC'"):
        facts(engine, prices=[("BTC", at(0), float("nan"))])
    with pytest.raises(DataError, match="aware"):
        facts(engine, prices=[("BTC", at(0).replace(tzinfo=None), 1.0)])


def test_faulty_outcome_rows_are_reported(engine: sa.Engine) -> None:
    def row(id_: str, created_min: int, **known: Any) -> dict[str, Any]:
        created_at = at(created_min).replace(tzinfo=None)
        return {"id": id_, "window_id": str(WINDOW), "created_at": created_at} | known

    with engine.begin() as conn:
        for r in [
            row("1", 61, stock_ticker="BTC", start_price=100, end_price=90, change_percent=-10),
            row("2", 62, stock_ticker="$BTC", start_price=100, end_price=120, change_percent=20),
            row("3", 62, stock_ticker="ETH", start_price=100, end_price=90, change_percent=-10),
            row("4", 62, stock_ticker="PENNY", start_price=0, end_price=1, change_percent=999.99),
            row("5", 62, prediction_market_id="q", question="?", outcome=None),
            row("6", 62, prediction_market_id="n", question="?", outcome="NO", final_probability=0.9),
            row("7", 59, stock_ticker="FROZEN", start_price=1, end_price=2, change_percent=100),
            row("8", 63, stock_ticker="NAN", start_price=Decimal("NaN"), end_price=2, change_percent=None),
        ]:
            conn.execute(sa.insert(game_tables.market_outcomes), [r])
    with engine.connect() as conn:
        found, faults = examine_outcomes(conn, WINDOW)
    assert [s.ticker for s in found.stocks] == ["BTC", "ETH", "NAN", "PENNY"]
    assert faults.facts() == {
        "written_before_close": 1,
        "duplicates": 1,
        "conflicts": ["BTC"],
        "start_price_zero": ["PENNY"],
        "unresolved": ["q"],
        "doubtful": ["n"],
    }
    assert (found.overall_trend, found.volatility_pct) == ("BULLISH", pytest.approx(250**0.5))


def test_the_trend_of_unknown_changes_is_unknown() -> None:
    def window(*changes: float | None) -> WindowOutcomes:
        stocks = [
            StockOutcome(ticker=str(i), start_price=None, end_price=None, change_pct=c) for i, c in enumerate(changes)
        ]
        return WindowOutcomes(window_id=str(WINDOW), stocks=tuple(stocks))

    assert (window().overall_trend, window(None).volatility_pct) == (None, None)
    assert (window(0.0).overall_trend, window(0.0, None).volatility_pct) == ("NEUTRAL", 0.0)
    assert window(-2.0, 1.0).overall_trend == "BEARISH"
