"""A server in another time zone: `createdAt` lies hours off UTC, and its outcomes are read right."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from babylon_rl.database.connection import connect
from babylon_rl.ingest.clock import MIN_ROWS, UTC_CLOCK, Clock, find_clock, find_outcome_clock
from babylon_rl.ingest.columns import find_column_names
from babylon_rl.ingest.outcomes import examine_outcomes
from babylon_rl.pipeline.outcomes import snapshot_outcomes
from babylon_rl.pipeline.readiness import readiness
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import WINDOW
from babylon_rl_tests.postgres.games import G1, G2, Game, a_game, a_game_call, a_game_row, a_game_step, open_read_only

STEPS = [a_game_step(WINDOW.start_at, a_game_call("HOLD"))]


def clock_of(game: Game) -> Clock:
    engine = connect(game.reader_url)
    with engine.connect() as conn:
        clock = find_clock(conn, find_column_names(conn))
    engine.dispose()
    return clock


def offsets_of(game: Game) -> list[timedelta]:
    return [offset for _, offset in clock_of(game).offsets]


@pytest.mark.parametrize(
    ("zone", "minutes"),
    [
        ("UTC", 0),
        ("America/New_York", -300),
        ("Asia/Kathmandu", 345),
        ("Pacific/Kiritimati", 840),
        ("America/Adak", -600),
    ],
)
def test_the_servers_offset_is_found_from_its_rows(server_url: str, zone: str, minutes: int) -> None:
    with a_game(server_url, G2, zone=zone) as game:
        rows = [
            a_game_row(game, f"a{i}", WINDOW.start_at + timedelta(minutes=i), json.dumps(STEPS))
            for i in range(MIN_ROWS)
        ]
        game.insert("trajectories", *rows)
        assert offsets_of(game) == [timedelta(minutes=minutes)]
        game.run("""DELETE FROM trajectories WHERE "agentId" = 'a0'""")
        assert offsets_of(game) == []  # fewer rows say nothing


def test_now_as_the_server_itself_writes_it_is_read_right(server_url: str) -> None:
    """Nothing here computes a zone: `createdAt` is the column's own default."""
    now = datetime.now(UTC)
    window = HourWindow.containing(now).next(-1)
    with a_game(server_url, G2, zone="America/Los_Angeles") as game:
        for i in range(6):
            row = a_game_row(game, f"a{i}", now - timedelta(seconds=30), STEPS, end=now)
            game.insert("trajectories", {k: v for k, v in row.items() if k != "createdAt"})
        game.insert(
            "market_outcomes",
            {"id": "1", "windowId": str(window), "stockTicker": "BTC", "startPrice": 1, "endPrice": 2},
        )
        engine = connect(game.reader_url)
        with engine.connect() as conn:
            outcomes, faults = examine_outcomes(conn, window)
        engine.dispose()
    assert [s.ticker for s in outcomes.stocks] == ["BTC"]
    assert faults.written_before_close == 0
    assert faults.created_at_off_utc_min in (-480, -420)  # standard or summer time


def test_check_windows_sees_the_outcomes_of_a_server_elsewhere(
    server_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    with a_game(server_url, G2, zone="America/New_York") as game:
        game.insert("trajectories", *[a_game_row(game, f"a{i}", WINDOW.start_at, STEPS) for i in range(6)])
        for i, written in enumerate((WINDOW.end_at + timedelta(minutes=5), WINDOW.end_at - timedelta(minutes=5))):
            known = {"windowId": str(WINDOW.next(-i)), "stockTicker": "BTC", "startPrice": 1, "endPrice": 2}
            game.insert("market_outcomes", {"id": str(i), **known, "createdAt": game.now_at(written)})
        with open_read_only(game, empty_database_url, tmp_path) as w:
            line = readiness(w, min_agents=5, min_windows=1, now=WINDOW.end_at + timedelta(hours=2)).lines[-1]
            assert (line.window_id, line.outcomes) == (str(WINDOW), True)
            facts = snapshot_outcomes(WINDOW, w.game, w.store, now=WINDOW.next(9).start_at, sync=False).facts
    assert facts["created_at_off_utc_min"] == -300


def test_late_and_few_rows_say_nothing_and_that_is_said(server_url: str) -> None:
    with a_game(server_url, G2, zone="America/New_York") as game:
        written = {"createdAt": game.now_at(WINDOW.end_at + timedelta(minutes=5))}
        game.insert("market_outcomes", {"id": "1", "windowId": str(WINDOW), "stockTicker": "BTC", **written})
        late = [timedelta(minutes=7 + 61 * i) for i in range(8)]  # imported one by one, hours later
        rows = [a_game_row(game, f"a{i}", WINDOW.start_at, STEPS) for i in range(8)]
        game.insert(
            "trajectories",
            *[{**r, "createdAt": game.now_at(WINDOW.start_at + d)} for r, d in zip(rows, late, strict=True)],
        )
        assert offsets_of(game) == []
        engine = connect(game.reader_url)
        with engine.connect() as conn:
            _, faults = examine_outcomes(conn, WINDOW)
        engine.dispose()
    assert faults.created_at_zone_unknown
    assert faults.facts()["created_at_zone_unknown"] is True


def test_a_row_of_the_year_9999_hides_no_offset(server_url: str) -> None:
    with a_game(server_url, G1) as game:
        rows = [a_game_row(game, f"a{i}", WINDOW.start_at, STEPS) for i in range(6)]
        game.insert("trajectories", *rows)
        game.run(
            """UPDATE trajectories SET "startTime" = '9999-12-31', "endTime" = 'infinity' WHERE "agentId" = 'a0'"""
        )
        assert offsets_of(game) == [timedelta()]


def test_our_own_tables_need_no_rows_to_know_the_clock(engine: sa.Engine) -> None:
    with engine.connect() as conn:
        names = find_column_names(conn)
        assert names.outcomes_in_utc
        assert find_outcome_clock(conn, names) == (names, UTC_CLOCK)


def test_an_open_connection_does_not_look_again_at_once(server_url: str) -> None:
    with a_game(server_url, G2) as game:
        game.insert("trajectories", *[a_game_row(game, f"a{i}", WINDOW.start_at, STEPS) for i in range(6)])
        engine = connect(game.reader_url)
        with engine.connect() as conn:
            names = find_column_names(conn)
            first = find_clock(conn, names)
            with psycopg.connect(game.owner_url) as owner:
                owner.execute("DELETE FROM trajectories")
            assert find_clock(conn, names) == first
            assert first.offset_at(WINDOW.start_at.replace(tzinfo=None)) == timedelta()
        engine.dispose()


def test_summer_time_is_read_by_the_hour(server_url: str) -> None:
    """2025-03-09 07:00 UTC: New York goes from UTC-5 to UTC-4. Outcomes of both sides are read as they were written."""
    change = HourWindow.parse("2025-03-09T07:00")
    with a_game(server_url, G2, zone="America/New_York") as game:
        windows = [change.next(h) for h in range(-40, 30)]
        for w in windows:
            game.insert("trajectories", a_game_row(game, "a", w.start_at + timedelta(minutes=20), STEPS))
            for name, minutes in (("late", 10), ("early", -10)):
                written = {"createdAt": game.now_at(w.end_at + timedelta(minutes=minutes))}
                known = {"id": f"{w}{name}", "windowId": str(w), "stockTicker": name, "startPrice": 1, "endPrice": 2}
                game.insert("market_outcomes", known | written)
        # All rows of three hours came 60 minutes late: an outage of the game, no change of its clock.
        for h in (-20, -19, -18):
            row = a_game_row(game, "late", change.next(h).start_at + timedelta(minutes=20), STEPS)
            rows = [{**row, "id": f"{h}{i}", "trajectoryId": f"{h}{i}"} for i in range(4)]
            game.insert("trajectories", *[{**r, "createdAt": r["createdAt"] + timedelta(hours=1)} for r in rows])
        assert offsets_of(game) == [timedelta(hours=-5), timedelta(hours=-4)]
        engine = connect(game.reader_url)
        with engine.connect() as conn:
            read = {str(w): examine_outcomes(conn, w) for w in windows}
        engine.dispose()
    assert {w: [s.ticker for s in outcomes.stocks] for w, (outcomes, _) in read.items()} == {
        str(w): ["late"] for w in windows
    }
    assert [read[str(change.next(h))][1].created_at_off_utc_min for h in (-9, 9)] == [-300, -240]


def test_the_hour_that_comes_twice_costs_no_outcome(server_url: str) -> None:
    """2025-11-02 06:00 UTC: New York's 01:00 to 02:00 comes again."""
    change = HourWindow.parse("2025-11-02T06:00")
    with a_game(server_url, G2, zone="America/New_York") as game:
        windows = [change.next(h) for h in range(-30, 6)]
        for w in windows:
            game.insert("trajectories", a_game_row(game, "a", w.start_at + timedelta(minutes=20), STEPS))
            written = {"createdAt": game.now_at(w.end_at + timedelta(minutes=10))}
            game.insert("market_outcomes", {"id": str(w), "windowId": str(w), "stockTicker": "BTC", **written})
        engine = connect(game.reader_url)
        with engine.connect() as conn:
            assert all(examine_outcomes(conn, w)[0].known for w in windows)
        engine.dispose()
