"""Rows of hours that have not come are quarantined, stop nothing, and become normal when their hour is there."""

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from babylon_rl.database import game_tables
from babylon_rl.export.explain import explain
from babylon_rl.ingest.columns import ColumnNames, find_column_names
from babylon_rl.ingest.queries import fingerprint_future_rows, select_future_rows
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.pipeline.readiness import readiness, recorded_but_not_judged
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.row_outcomes import find_row_outcome
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import a_row, insert_row, insert_rows

FIRST = HourWindow.parse("2025-01-15T00:00")
WINDOWS = [FIRST.next(i) for i in range(3)]
NOW = WINDOWS[-1].end_at + timedelta(minutes=7)
FAR = "9999-12-31T23:00"
QUARANTINED = ("quarantined", "future_window")


@pytest.fixture
def w(either_workspace: Workspace, engine: sa.Engine) -> Workspace:
    """Three hours of five agents each, in our own database and in one that may only be read. `engine` writes them."""
    insert_rows(engine, [a_row(f"a{i}", window=h) for h in WINDOWS for i in range(5)])
    return replace(either_workspace, now=lambda: NOW)


def discover(w: Workspace) -> list[HourWindow]:
    return recorded_but_not_judged(w, min_agents=5)


def shown(w: Workspace) -> list[str]:
    return [x.window_id for x in readiness(w, min_agents=5, min_windows=1, now=w.now()).lines]


def outcome(w: Workspace, row: dict[str, object]) -> tuple[str, str] | None:
    found = find_row_outcome(w.store.engine, str(row["id"]))
    return None if found is None else (found.status.value, found.reason.value)


@pytest.mark.parametrize(
    ("window_id", "start"),
    [
        (FAR, "2025-01-15 00:00"),
        ("9999-12-31-23", "2025-01-15 00:00"),
        ("2031-03-04T05:00", "2025-01-15 00:00"),
        (None, "9999-12-31 23:30"),
        (None, "10001-05-05 10:00"),
        (None, "2031-03-04 05:06"),
    ],
)
def test_a_row_of_a_far_hour_stops_nothing_and_is_explained(
    w: Workspace, engine: sa.Engine, window_id: str | None, start: str
) -> None:
    discover(w)
    row = a_row("skewed")
    started = sa.cast(start, sa.Text).cast(sa.DateTime)  # Python holds no year 10001
    with engine.begin() as conn:
        conn.execute(sa.insert(game_tables.trajectories).values({**row, "window_id": window_id, "start_time": started}))
    assert discover(w) == WINDOWS
    insert_rows(engine, [a_row(f"a{i}", window=WINDOWS[-1].next()) for i in range(5)])
    assert discover(w) == [*WINDOWS, WINDOWS[-1].next()]
    assert shown(w) == [str(h) for h in [*WINDOWS, WINDOWS[-1].next()]]
    assert outcome(w, row) == QUARANTINED
    assert "quarantined (future_window)" in "\n".join(explain(w, row["id"]))


def test_the_first_look_at_a_game_with_a_far_row_works(w: Workspace, engine: sa.Engine) -> None:
    rows = [a_row("x", window_id=FAR), a_row("y", window_id="2031-03-04T05:00"), a_row("z", window_id=None)]
    insert_rows(engine, rows)
    with engine.begin() as conn:
        conn.execute(sa.text("UPDATE trajectories SET start_time = 'infinity' WHERE agent_id = 'z'"))
    assert shown(w) == [str(h) for h in WINDOWS]
    assert [outcome(w, r) for r in rows[:2]] == [QUARANTINED] * 2


def test_outcomes_of_a_far_hour_stop_nothing(w: Workspace, engine: sa.Engine) -> None:
    with engine.begin() as conn:
        conn.execute(
            sa.text(
                "INSERT INTO market_outcomes (id, window_id, stock_ticker) VALUES ('f', :f, 'BTC'), ('n', :n, 'BTC')"
            ),
            {"f": FAR, "n": str(FIRST)},
        )
    assert discover(w) == WINDOWS
    assert [x.outcomes for x in readiness(w, min_agents=5, min_windows=1, now=NOW).lines] == [True, False, False]


def test_a_row_of_a_fast_clock_counts_when_its_hour_comes(w: Workspace, engine: sa.Engine) -> None:
    ahead = WINDOWS[-1].next(3)
    rows = [a_row(f"a{i}", window=ahead) for i in range(5)]
    insert_rows(engine, rows)
    assert discover(w) == WINDOWS
    assert {outcome(w, r) for r in rows} == {QUARANTINED}
    later = replace(w, now=lambda: ahead.end_at)
    assert discover(later) == [*WINDOWS, ahead]
    assert ingest_window(ahead, w.game, w.store).facts["agents"] == 5
    assert {outcome(w, r) for r in rows} == {("read", "has_turn")}
    discover(later)
    assert {outcome(w, r) for r in rows} == {("read", "has_turn")}


def test_an_hour_that_starts_soon_is_no_future_one(w: Workspace, engine: sa.Engine) -> None:
    """A game's clock may be some minutes ahead of ours."""
    row = insert_row(engine, "soon", window=HourWindow.containing(NOW).next())
    discover(w)
    assert shown(w)[-1] == row["window_id"]
    assert outcome(w, row) is None


def test_an_outcome_leaves_with_its_row(w: Workspace, engine: sa.Engine) -> None:
    row, other = insert_row(engine, "x", window_id=FAR), insert_row(engine, "y", window_id=FAR)
    discover(w)
    with engine.begin() as conn:
        conn.execute(sa.text("DELETE FROM trajectories WHERE agent_id = 'x'"))
    discover(w)
    assert (outcome(w, row), outcome(w, other)) == (None, QUARANTINED)


def test_a_row_that_is_accounted_for_keeps_its_outcome(w: Workspace, engine: sa.Engine) -> None:
    """Its old window is read again first: then it has no other outcome."""
    row = insert_row(engine, "moves", window=FIRST)
    discover(w)
    ingest_window(FIRST, w.game, w.store)
    with engine.begin() as conn:
        conn.execute(sa.text("UPDATE trajectories SET window_id = :f WHERE agent_id = 'moves'"), {"f": FAR})
    assert FIRST in discover(w)
    assert outcome(w, row) == ("read", "has_turn")
    ingest_window(FIRST, w.game, w.store)
    discover(w)
    assert outcome(w, row) == QUARANTINED


@pytest.mark.parametrize("statement", [fingerprint_future_rows, select_future_rows])
def test_future_rows_are_found_by_the_games_indexes(engine: sa.Engine, statement: Callable[[ColumnNames], str]) -> None:
    """Guards against a condition that no index can answer: it would read every row twice a minute."""
    limits = {"newest": "2025-01-15T03:00", "end_at": datetime(2025, 1, 15, 4)}  # noqa: DTZ001  # as the column is
    with engine.connect() as conn:
        conn.exec_driver_sql("SET enable_seqscan = off")
        plan = conn.exec_driver_sql(f"EXPLAIN {statement(find_column_names(conn))}", limits).scalars().all()
    assert [line for line in plan if "Seq Scan" in line] == []


def test_future_windows_counted_before_are_shown_no_more(w: Workspace, engine: sa.Engine) -> None:
    """As an earlier version of this package left them behind."""
    discover(w)
    insert_rows(engine, [a_row(f"a{i}", window_id="2031-03-04T05:00") for i in range(5)])
    with w.store.engine.begin() as conn:
        conn.execute(sa.text("DELETE FROM babylon_rl.row_changes"))
        conn.execute(
            sa.text("""INSERT INTO babylon_rl.window_summary (window_id, rows, agents, outcomes, fingerprint, changes)
                       VALUES ('2031-03-04T05:00', 5, 5, false, 'x', 3)""")
        )
        conn.execute(sa.text("UPDATE babylon_rl.window_counts SET windows = windows + 1 WHERE agents = 5"))
    insert_rows(engine, [a_row(f"a{i}", window=WINDOWS[-1].next()) for i in range(5)])
    assert discover(w) == [*WINDOWS, WINDOWS[-1].next()]
    report = readiness(w, min_agents=5, min_windows=1, now=NOW)
    assert (len(report.lines), report.windows, report.unused) == (4, 4, 4)
    later = replace(w, now=lambda: datetime(2031, 3, 4, 6, tzinfo=UTC))
    assert discover(later)[-1] == HourWindow.parse("2031-03-04T05:00")


def test_every_row_has_one_outcome_whatever_the_clock_says(w: Workspace, engine: sa.Engine) -> None:
    rng = random.Random(7)
    hours = [FIRST.next(i) for i in range(12)]
    ids = [str(h) for h in hours] + [h.start_at.strftime("%Y-%m-%d-%H") for h in hours]
    ids += [FAR, "2031-01-01T00:00", "no hour", ""]
    for tick in range(12):
        now = NOW + timedelta(hours=tick)
        at = replace(w, now=lambda now=now: now)
        rows = [
            a_row(f"r{tick}-{i}", window=rng.choice(hours), window_id=rng.choice([*ids, None, None]))
            for i in range(rng.randint(0, 6))
        ]
        if rows:
            insert_rows(engine, rows)
        with engine.begin() as conn:
            some = "WHERE hashtext(id || :salt) % 9 = 0"
            conn.execute(sa.text(f"DELETE FROM trajectories {some}"), {"salt": f"d{tick}"})
            conn.execute(
                sa.text(f"UPDATE trajectories SET window_id = :w {some}"), {"salt": f"m{tick}", "w": rng.choice(ids)}
            )
        discover(at)
        with w.store.engine.connect() as conn:
            changed = conn.scalars(
                sa.text("SELECT window_id FROM babylon_rl.trainable_windows WHERE reason IN ('not_read', 'changed')")
            ).all()
        for h in HourWindow.parse_all(changed):
            ingest_window(h, w.game, w.store)
        discover(at)
        with engine.connect() as conn:
            in_game = set(conn.scalars(sa.text("SELECT id FROM trajectories")))
        with w.store.engine.connect() as conn:
            accounted = conn.execute(
                sa.text("SELECT source_id, window_id, reason = 'future_window' FROM babylon_rl.row_outcomes")
            ).all()
        assert {s for s, _, _ in accounted} == in_game
        limit = str(HourWindow.containing(now).next())
        assert [r for r in accounted if (r[1] > limit) != r[2]] == []
