"""Outcomes that come or change after a window was prepared raise its version; the same outcomes written again do not."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.pipeline.outcomes import snapshot_outcomes
from babylon_rl.pipeline.readiness import recorded_but_not_judged
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.window_lock import lock_window
from babylon_rl.store.windows import Store
from babylon_rl.types import StockOutcome, WindowOutcomes
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import a_row, a_trajectory, insert_rows

WINDOW = HourWindow.parse("2025-01-15T10:00")
NOW = WINDOW.end_at + timedelta(minutes=30)
INSERT = sa.text("""INSERT INTO market_outcomes (id, window_id, stock_ticker, start_price, end_price, created_at)
                    VALUES (:id, '2025-01-15T10:00', 'BTC', 100, :price, :at)""")


@pytest.fixture
def w(either_workspace: Workspace, engine: sa.Engine) -> Workspace:
    """An hour of five agents, in our own database and in one that may only be read. `engine` writes them."""
    insert_rows(engine, [a_row(f"a{i}", window=WINDOW) for i in range(5)])
    return replace(either_workspace, now=lambda: NOW)


def write(engine: sa.Engine, id_: str, price: float, *, minutes: int = 5) -> None:
    with engine.begin() as conn:
        at = (WINDOW.end_at + timedelta(minutes=minutes)).replace(tzinfo=None)
        conn.execute(INSERT, {"id": id_, "price": price, "at": at})


def prepare(w: Workspace) -> None:
    ingest_window(WINDOW, w.game, w.store)
    snapshot_outcomes(WINDOW, w.game, w.store, now=NOW, sync=w.owns_game)
    group_window(WINDOW, w.store, min_agents=5)


def ask(w: Workspace) -> tuple[str | None, int]:
    """The window's reason, and how often its outcomes were seen to change."""
    recorded_but_not_judged(w, min_agents=5)
    query = sa.text("""SELECT x.reason, s.outcome_changes FROM babylon_rl.trainable_windows x
                       JOIN babylon_rl.window_summary s USING (window_id)""")
    with w.store.engine.connect() as conn:
        reason, changes = conn.execute(query).one()
    return reason, changes


def test_outcomes_after_preparation_change_the_window(w: Workspace, engine: sa.Engine) -> None:
    prepare(w)
    assert ask(w) == ("not_judged", 0)
    write(engine, "1", 110)
    assert ask(w) == ("changed", 1)
    prepare(w)
    assert ask(w) == ("not_judged", 1)


def test_a_corrected_outcome_changes_the_window(w: Workspace, engine: sa.Engine) -> None:
    write(engine, "1", 110)
    prepare(w)
    assert ask(w) == ("not_judged", 1)
    with engine.begin() as conn:
        conn.execute(sa.text("UPDATE market_outcomes SET end_price = 111"))
    assert ask(w) == ("changed", 2)
    prepare(w)
    write(engine, "2", 112, minutes=6)  # a second row for the same market, created last
    assert ask(w) == ("changed", 3)
    prepare(w)
    with engine.begin() as conn:  # now the other row is the last one: the same rows, another truth
        conn.execute(
            sa.text("UPDATE market_outcomes SET created_at = created_at - interval '4 minutes' WHERE id = '2'")
        )
    assert ask(w) == ("changed", 4)
    with engine.begin() as conn:
        conn.execute(sa.text("DELETE FROM market_outcomes"))
    assert ask(w) == ("changed", 5)


def test_the_same_outcomes_written_again_are_no_change(w: Workspace, engine: sa.Engine) -> None:
    write(engine, "1", 110)
    prepare(w)
    with engine.begin() as conn:
        conn.execute(sa.text("DELETE FROM market_outcomes"))
    write(engine, "another", 110, minutes=9)
    assert ask(w) == ("not_judged", 1)


def test_a_row_written_in_the_open_hour_is_no_outcome(w: Workspace, engine: sa.Engine) -> None:
    prepare(w)
    write(engine, "1", 110, minutes=-5)
    assert ask(w) == ("not_judged", 0)


def test_outcomes_counted_before_there_was_a_count_are_kept(w: Workspace, engine: sa.Engine) -> None:
    write(engine, "1", 110)
    prepare(w)
    with w.store.engine.begin() as conn:
        conn.execute(sa.text("UPDATE babylon_rl.window_summary SET outcome_fingerprint = NULL, outcome_changes = 0"))
        conn.execute(sa.text("UPDATE babylon_rl.window_outcomes SET changes_seen = NULL"))
    with engine.begin() as conn:
        conn.execute(sa.text("UPDATE market_outcomes SET created_at = created_at"))
    assert ask(w) == ("not_judged", 0)
    with engine.begin() as conn:
        conn.execute(sa.text("UPDATE market_outcomes SET end_price = 1"))
    ask(w)
    prepare(w)
    assert ask(w) == ("not_judged", 1)


def test_outcomes_of_an_hour_that_was_open_change_it_later(w: Workspace, engine: sa.Engine) -> None:
    ingest_window(WINDOW, w.game, w.store)
    snapshot_outcomes(WINDOW, w.game, w.store, now=WINDOW.start_at, sync=False)
    group_window(WINDOW, w.store, min_agents=5)
    assert ask(w) == ("not_judged", 0)
    write(engine, "1", 110)
    assert ask(w) == ("changed", 1)


def test_outcomes_that_come_while_others_are_stored_are_seen(w: Workspace, engine: sa.Engine) -> None:
    """The count is taken before the reading, so what the reading lacks raises it above what was seen."""
    write(engine, "1", 110)
    ingest_window(WINDOW, w.game, w.store)
    with ThreadPoolExecutor() as pool, w.store.engine.connect() as watcher:
        with lock_window(w.store.engine, WINDOW):  # the reading is done, and waits to be stored
            stored = pool.submit(snapshot_outcomes, WINDOW, w.game, w.store, now=NOW, sync=False)
            waiting = sa.text("""SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
                                 WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()""")
            while not watcher.scalar(waiting) and not stored.done():
                watcher.rollback()
            write(engine, "2", 120, minutes=6)
        assert stored.result().changed
    group_window(WINDOW, w.store, min_agents=5)
    assert ask(w) == ("changed", 2)
    prepare(w)
    assert ask(w) == ("not_judged", 2)


def test_an_older_reading_never_replaces_a_newer_one(engine: sa.Engine) -> None:
    store = Store(engine)
    older, newer = (
        WindowOutcomes(
            window_id=str(WINDOW), stocks=(StockOutcome(ticker=t, start_price=1, end_price=2, change_pct=100),)
        )
        for t in ("OLD", "NEW")
    )
    version, changed = store.write_outcomes(newer, changes_seen=2)
    assert changed
    assert store.write_outcomes(older, changes_seen=1) == (version, False)
    assert store.outcomes(WINDOW) == newer
    assert store.write_outcomes(older, changes_seen=2)[1]
    assert store.write_outcomes(older, changes_seen=3) == (store.write_outcomes(older, changes_seen=3)[0], False)
    assert not store.write_outcomes(newer, changes_seen=2)[1]  # 3 was kept, although nothing else had changed
    assert store.outcomes(WINDOW) == older

    version, _ = store.write_ingest(WINDOW, [a_trajectory("new")], [], rows=1, changes_seen=5)
    assert store.write_ingest(WINDOW, [a_trajectory("old")], [], rows=1, changes_seen=4) == (version, False)
    assert [x.agent_id for x in store.trajectories(WINDOW)] == ["new"]
    assert store.write_ingest(WINDOW, [a_trajectory("next")], [], rows=1, changes_seen=6)[1]
