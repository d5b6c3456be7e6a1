"""Outcomes computed from the facts of both generations of the game, against arithmetic of the tests' own."""

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from babylon_rl.database.connection import connect
from babylon_rl.database.migrate import upgrade
from babylon_rl.ingest.game_facts import compute_outcomes, find_game_facts
from babylon_rl.ingest.market_names import name_markets
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.pipeline.outcomes import snapshot_outcomes, sync_hours
from babylon_rl.pipeline.readiness import readiness, recorded_but_not_judged
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl.types import StockOutcome, WindowOutcomes
from babylon_rl.windows import HourWindow
from babylon_rl_tests.foreign_games import NAMES, ODDS, PRICES, RESOLVED_AFTER_MIN, ForeignGame, foreign_game

FIRST = HourWindow.parse("2025-01-15T10:00")
NOW = datetime(2025, 1, 15, 14, 30, tzinfo=UTC)


@pytest.fixture(params=["G1", "G2"])
def game(request: pytest.FixtureRequest, server_url: str) -> Iterator[ForeignGame]:
    with foreign_game(server_url, request.param, FIRST) as g:
        yield g


@pytest.fixture
def reader(game: ForeignGame) -> Iterator[sa.Engine]:
    """The game's database through a role that may only read."""
    engine = connect(game.reader_url)
    yield engine
    engine.dispose()


@pytest.fixture
def w(game: ForeignGame, empty_database_url: str, tmp_path: Path) -> Iterator[Workspace]:
    settings = Settings.load(
        BABYLON_HOME=str(tmp_path), DATABASE_URL=game.reader_url, BABYLON_PLATFORM_URL=empty_database_url
    )
    upgrade(settings.database)
    with open_workspace(settings) as workspace:
        yield replace(workspace, now=lambda: NOW)


def compute(engine: sa.Engine, window: HourWindow = FIRST, **options: Any) -> WindowOutcomes:
    return compute_outcomes(engine, find_game_facts(engine, **options), window)


def expected_stock(organization: str, hour: int) -> dict[str, float] | None:
    """An hour of one organisation by the rule of the documentation, in plain arithmetic."""
    own = [(m, p) for o, m, p in PRICES if o == organization and not math.isnan(p)]
    inside = [p for m, p in own if 60 * hour <= m < 60 * (hour + 1)]
    if not inside:
        return None
    before = [p for m, p in own if m < 60 * hour]
    path = before[-1:] + inside
    squares = sum((path[i + 1] / path[i] - 1) ** 2 for i in range(len(path) - 1))
    return {
        "start": path[0],
        "end": path[-1],
        "change": round(100 * (path[-1] - path[0]) / path[0], 4),
        "high": max(path),
        "low": min(path),
        "volatility": round(100 * squares**0.5, 4),
    }


def named(game: ForeignGame, organization: str) -> str:
    return NAMES[organization][1] if game.generation == "G2" else organization


@pytest.mark.parametrize("hour", [0, 1, 2])
def test_stocks_are_computed_from_the_games_prices(game: ForeignGame, reader: sa.Engine, hour: int) -> None:
    stocks = {s.ticker: s for s in compute(reader, FIRST.next(hour)).stocks}
    wanted = {named(game, o): e for o in NAMES if (e := expected_stock(o, hour)) is not None}
    assert stocks.keys() == wanted.keys()
    for ticker, e in wanted.items():
        s = stocks[ticker]
        found = (s.start_price, s.end_price, s.change_pct, s.high_price, s.low_price, s.volatility_pct)
        assert found == (e["start"], e["end"], e["change"], e["high"], e["low"], e["volatility"])
        assert s.sentiment == ("BULLISH" if e["change"] > 0 else "BEARISH" if e["change"] < 0 else "NEUTRAL")
    assert [s.ticker for s in stocks.values() if s.starts_inside] == ([named(game, "open-agi")] if hour == 0 else [])


@pytest.mark.parametrize("offset", [timedelta(0), timedelta(hours=2), timedelta(hours=-9, minutes=-30)])
def test_predictions_are_known_as_far_as_their_hour_knew(
    game: ForeignGame, reader: sa.Engine, offset: timedelta
) -> None:
    """Resolved inside: the outcome. Resolved later: open at that price, and the judge may see what it became."""
    game.run('DELETE FROM "PredictionPriceHistory"')
    game.insert_odds(offset=offset)
    for hour in range(3):
        computed = compute(reader, FIRST.next(hour), created_at_offset=lambda _: offset)
        found = {p.market_id: p for p in computed.predictions}
        for market in ("7001", "7002"):
            inside = [y for m, t, y, _ in ODDS if m == market and 60 * hour <= t < 60 * (hour + 1)]
            before = [y for m, t, y, _ in ODDS if m == market and t < 60 * hour]
            if not inside:
                assert market not in found
                continue
            p = found[market]
            assert p.final_probability == inside[-1]
            assert p.start_probability == (before[-1] if before else None)
            is_over = market == "7001" and 60 * (hour + 1) > RESOLVED_AFTER_MIN
            assert p.outcome == ("YES" if is_over else None)
            assert p.resolves_later_to == ("YES" if market == "7001" and not is_over else None)


def test_histories_written_in_utc_are_read_as_such(game: ForeignGame, reader: sa.Engine) -> None:
    """The game's code may pass `createdAt` itself, on a server whose own clock is in another zone."""
    assert compute(reader, created_at_offset=lambda _: timedelta(hours=2)) == compute(reader)
    game.run("""UPDATE "Market" SET resolved = false""")  # nothing speaks against the clock
    assert compute(reader, created_at_offset=lambda _: timedelta(hours=2)) != compute(reader)


def test_a_server_in_another_zone_is_found_by_its_rows(game: ForeignGame, reader: sa.Engine) -> None:
    hours = [FIRST.next(h) for h in range(3)]
    before = [compute(reader, h) for h in hours]
    game.run("""UPDATE trajectories SET "createdAt" = "endTime" + interval '2 hours'""")
    game.run('DELETE FROM "PredictionPriceHistory"')
    game.insert_odds(offset=timedelta(hours=2))
    reader.dispose()  # what is known of the clock is kept with a connection
    assert [compute(reader, h) for h in hours] == before


def test_a_resolution_that_comes_later_changes_no_earlier_hour(game: ForeignGame, reader: sa.Engine) -> None:
    """Tempting: take the final resolution. Then every hour of a question would be judged and paid again on that day."""
    before = compute(reader)
    game.run("""UPDATE "Market" SET resolved = false, resolution = null""")
    game.run("""UPDATE "Question" SET "resolvedOutcome" = null, status = 'active'""")
    game.run("""DELETE FROM "PredictionPriceHistory" WHERE "eventType" = 'resolution'""")
    assert compute(reader) == before


def test_a_snapshot_of_the_day_is_no_price_beside_others(game: ForeignGame, reader: sa.Engine) -> None:
    before = compute(reader)
    for i, organization in enumerate(("btc-corp", "quiet")):
        game.run(
            """INSERT INTO "StockPrice" (id, "organizationId", price, timestamp, "isSnapshot", "highPrice", "lowPrice")
               VALUES (%s, %s, 14.0, %s, true, 1e6, 0.1)""",
            f"snapshot-{i}",
            organization,
            game.at(30),
        )
    after = compute(reader)
    (quiet,) = [s for s in after.stocks if s not in before.stocks]
    assert (quiet.start_price, quiet.end_price, quiet.change_pct, quiet.high_price) == (7.0, 14.0, 100.0, 14.0)
    assert set(before.stocks) < set(after.stocks)


def test_an_outcome_is_independent_of_the_order_of_rows(game: ForeignGame, reader: sa.Engine) -> None:
    before = compute(reader)
    game.run('CREATE TABLE shuffled AS SELECT * FROM "StockPrice" ORDER BY md5(id)')
    game.run('TRUNCATE "StockPrice"')
    game.run('INSERT INTO "StockPrice" SELECT * FROM shuffled')
    assert compute(reader) == before


def test_facts_are_found_by_index(game: ForeignGame, reader: sa.Engine) -> None:
    game.run("""INSERT INTO "StockPrice" (id, "organizationId", price, timestamp)
                SELECT 'old' || n, 'btc-corp', 1, timestamp '2024-01-01' + n * interval '1 minute'
                FROM generate_series(1, 60000) n""")
    game.run("""INSERT INTO "PredictionPriceHistory" (id, "marketId", "yesPrice", "noPrice", "eventType", "createdAt")
                SELECT 'old' || n, '7001', 0.5, 0.5, 'trade', timestamp '2024-01-01' + n * interval '1 minute'
                FROM generate_series(1, 60000) n""")
    game.run('ANALYZE "StockPrice"')
    game.run('ANALYZE "PredictionPriceHistory"')
    scans: list[tuple[int, int]] = []

    @sa.event.listens_for(reader, "rollback")  # at the end of each transaction, before its counters are gone
    def read_counters(conn: sa.Connection) -> None:
        counters = """SELECT coalesce(sum(seq_scan), 0)::int, coalesce(sum(idx_scan), 0)::int FROM pg_stat_xact_user_tables
                      WHERE relname IN ('StockPrice', 'PredictionPriceHistory')"""
        scans.append(tuple(conn.exec_driver_sql(counters).one()))

    assert compute(reader).known
    assert sum(sequential for sequential, _ in scans) == 0
    assert sum(by_index for _, by_index in scans) > 0


@pytest.mark.parametrize("letters", ["upper", "snake"])
def test_tables_are_found_in_any_spelling(game: ForeignGame, reader: sa.Engine, letters: str) -> None:
    before = compute(reader)
    name = "STOCK_PRICE" if letters == "upper" else "stock_price"
    game.run(f'ALTER TABLE "StockPrice" RENAME TO "{name}"')
    game.run(f'ALTER TABLE "{name}" RENAME "organizationId" TO organization_id')
    game.run(f"ALTER TABLE \"{name}\" ALTER timestamp TYPE timestamptz USING timestamp AT TIME ZONE 'UTC'")
    assert compute(reader) == before


def test_what_may_not_be_read_is_absent_with_a_sentence(game: ForeignGame, reader: sa.Engine) -> None:
    game.run(f'REVOKE SELECT ON "StockPrice" FROM {game.role}')
    game.run('DROP TABLE "Question", "Organization"')
    game.run('ALTER TABLE "PredictionPriceHistory" DROP COLUMN "yesPrice"')
    facts = find_game_facts(reader)
    assert facts.tables.absent["StockPrice"] == (
        f'role \'{game.role}\' may not read "public"."StockPrice": '
        f'GRANT SELECT ON "public"."StockPrice" TO "{game.role}"'
    )
    assert facts.tables.absent["Question"] == 'there is no table "Question"'
    assert "has no column 'yes_price' in any spelling" in facts.tables.absent["PredictionPriceHistory"]
    hours = [compute(reader, FIRST.next(h)) for h in range(3)]
    assert [[(p.market_id, p.outcome) for p in h.predictions] for h in hours] == [[], [], [("7001", "YES")]]
    assert not any(h.stocks for h in hours)
    game.run('DROP TABLE "Market"')
    assert not compute(reader, FIRST.next(2)).known
    assert not find_game_facts(reader).tables.has_sources


def test_a_price_of_zero_divides_nothing(game: ForeignGame, reader: sa.Engine) -> None:
    game.run('DELETE FROM "StockPrice"')
    game.insert_prices([("btc-corp", -5, 0.0), ("btc-corp", 5, 2.0), ("open-agi", 5, math.inf), ("open-agi", 6, 1e-9)])
    game.insert_prices([("open-agi", 7, 5e4)])
    by = {s.ticker: s for s in compute(reader).stocks}
    assert (by[named(game, "btc-corp")].change_pct, by[named(game, "btc-corp")].volatility_pct) == (None, None)
    # numeric(5,2) would hold no change above 999.99; ours is not kept there.
    assert by[named(game, "open-agi")].change_pct == pytest.approx(5e15, rel=1e-9)


def test_names_of_one_market_are_one_ticker() -> None:
    names = name_markets(
        [("open-agi", "OAGI", "OpenAGI"), ("btc", "$BTC", "Bit Corp"), ("x1", "DUP", "A"), ("x2", "DUP", "B")]
    )
    one = ["$BTC", "BTC", "btc", "Bit Corp", "bit-corp"]
    assert {names.find_ticker(n) for n in one} == {"BTC"}
    assert {names.find_ticker(n) for n in ("open-agi", "OPENAGI", "$oagi")} == {"OAGI"}
    assert names.list_other_names("OAGI") == ("open-agi", "OpenAGI")
    assert [names.find_ticker(n) for n in ("DUP", "A", "x2")] == ["DUP", "x1", "x2"]  # a shared ticker is nobody's
    assert [n for n in ("DUP", "$NOBODY", "BTC") if names.is_unknown(n)] == ["DUP", "$NOBODY"]
    nothing = name_markets([])
    assert (nothing.find_ticker("$BTC"), nothing.is_unknown("$BTC")) == ("BTC", False)


# ── kept in our schema ─────────────────────────────────────────────────────────────────────────────
def state(w: Workspace, window: HourWindow = FIRST) -> tuple[str | None, int, bool]:
    """Why the window may not train, how often its outcomes were seen to change, and whether they are known."""
    recorded_but_not_judged(w, min_agents=5)
    query = sa.text("""SELECT x.reason, s.outcome_changes, s.outcomes FROM babylon_rl.trainable_windows x
                       JOIN babylon_rl.window_summary s USING (window_id) WHERE window_id = :w""")
    with w.store.engine.connect() as conn:
        reason, changes, known = conn.execute(query, {"w": str(window)}).one()
    return reason, changes, known


def prepare(w: Workspace, window: HourWindow = FIRST) -> dict[str, Any]:
    ingest_window(window, w.game, w.store)
    facts = snapshot_outcomes(window, w.game, w.store, now=NOW, sync=w.owns_game).facts
    group_window(window, w.store, min_agents=5)
    return facts


def test_computed_outcomes_are_counted_and_kept(w: Workspace, game: ForeignGame) -> None:
    before = game.digests()
    assert state(w) == ("not_read", 0, False)
    facts = prepare(w)
    assert (facts["stocks"], facts["predictions"], facts["computed"]) == (2, 2, 4)
    assert facts["starts_inside"] == [named(game, "open-agi")]
    assert facts["unresolved"] == ["7001", "7002"]
    assert state(w) == ("not_judged", 1, True)
    assert prepare(w) == facts
    assert state(w) == ("not_judged", 1, True)
    assert game.digests() == before


def test_a_corrected_price_changes_the_window(w: Workspace, game: ForeignGame) -> None:
    prepare(w)
    game.run("""UPDATE "StockPrice" SET price = 111 WHERE price = 110""")
    # That hour and the six others around it, which were not computed yet.
    assert sync_hours(w, hours=24).report.written == 7
    assert state(w) == ("changed", 2, True)
    prepare(w)
    assert state(w) == ("not_judged", 2, True)
    assert sync_hours(w, hours=24).report.unchanged == 7


def test_facts_that_the_game_deletes_stay_known(w: Workspace, game: ForeignGame) -> None:
    prepare(w)
    kept = w.store.outcomes(FIRST)
    for table in ("StockPrice", "PredictionPriceHistory", "Market"):
        game.run(f'TRUNCATE "{table}"')
    prepare(w)
    assert w.store.outcomes(FIRST) == kept


def test_an_old_window_computed_late_is_counted_too(w: Workspace, game: ForeignGame) -> None:
    """The poll looks back two days; what we computed is queued, so a kill between computing and counting loses nothing."""
    game.run("""UPDATE trajectories SET "windowId" = '2025-02-01T10:00' WHERE "agentId" = 'player-0'""")
    later = replace(w, now=lambda: datetime(2025, 2, 1, 12, tzinfo=UTC))
    assert state(later)[2] is False
    hours = (later.now() - FIRST.start_at) // timedelta(hours=1)
    sync_hours(later, hours=hours)
    assert state(later)[2] is True


def insert_game_row(game: ForeignGame, id_: str, minutes: float, ticker: str | None = None, **known: Any) -> None:
    values = {"id": id_, "windowId": str(FIRST), "stockTicker": ticker, "createdAt": game.at(minutes), **known}
    columns = ", ".join(f'"{c}"' for c in values)
    places = ", ".join(["%s"] * len(values))
    game.run(f"INSERT INTO market_outcomes ({columns}) VALUES ({places})", *values.values())


def test_ours_counts_before_the_games_rows_and_they_are_compared(w: Workspace, game: ForeignGame) -> None:
    """Frozen in the open hour: replaced. Written after it: compared. Of a market that we cannot compute: taken."""
    insert_game_row(game, "1", 30, "$BTC", startPrice=1, endPrice=2, changePercent=100)
    insert_game_row(game, "2", 61, "Bit Corp", startPrice=100, endPrice=107, changePercent=7, newsEvents='["SEC sues"]')
    insert_game_row(game, "3", 61, "open-agi", startPrice=40, endPrice=50, changePercent=25)
    insert_game_row(game, "4", 61, "$GONE", startPrice=1, endPrice=3, changePercent=200)
    insert_game_row(game, "5", 61, predictionMarketId="7001", question="?", outcome="NO", finalProbability=0.7)
    insert_game_row(game, "6", 61, predictionMarketId="7009", question="Half?", outcome="NO", finalProbability=0.5)
    facts = prepare(w)
    btc, oagi = named(game, "btc-corp"), named(game, "open-agi")
    assert facts["written_before_close"] == 1
    assert facts["disagreements"] == [
        f"{btc}: computed 100 to 110, market_outcomes 100 to 107",
        "7001: computed unresolved at 0.7, market_outcomes NO at 0.7",
    ]
    assert facts["unknown_names"] == ["$GONE"]
    found = w.store.outcomes(FIRST)
    by = {s.ticker: s for s in found.stocks}
    assert by.keys() == {btc, oagi, "GONE"}
    assert (by[btc].end_price, by[btc].news) == (110.0, ("SEC sues",))
    assert by["GONE"].change_pct == 200.0
    assert {p.market_id: p.outcome for p in found.predictions} == {"7001": None, "7002": None, "7009": None}


def test_without_facts_the_games_rows_are_the_truth(w: Workspace, game: ForeignGame) -> None:
    for table in ("StockPrice", "PredictionPriceHistory", "Market"):
        game.run(f'TRUNCATE "{table}"')
    insert_game_row(game, "1", 61, "$BTC", startPrice=100, endPrice=107, changePercent=7)
    facts = prepare(w)
    assert "computed" not in facts
    (stock,) = w.store.outcomes(FIRST).stocks
    names = NAMES["btc-corp"][0]
    if game.generation == "G2":
        assert stock == StockOutcome(
            ticker="BTC",
            start_price=100,
            end_price=107,
            change_pct=7,
            sentiment="BULLISH",
            other_names=("btc-corp", names),
        )
    else:  # this generation's catalog has no tickers: nothing says whose `$BTC` is
        assert (stock.ticker, facts["unknown_names"]) == ("BTC", ["$BTC"])
    report = sync_hours(w, hours=24).report
    assert (report.no_facts, report.known) == (24, 1)


def test_one_hour_without_facts_does_not_hold_up_the_others(w: Workspace, game: ForeignGame) -> None:
    sync_hours(w, hours=24)
    game.run("""UPDATE trajectories SET "windowId" = '2025-01-15T03:00', "startTime" = "startTime" - interval '9 hours'
                WHERE "windowId" = '2025-01-15T12:00'""")
    for need, next_step in ((2, None), (3, "the game holds no price and no resolution of 2025-01-15T03:00")):
        found = readiness(w, min_agents=5, min_windows=need, now=NOW).next_step
        assert (found is None) if next_step is None else (found is not None and next_step in found)
