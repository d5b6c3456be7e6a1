"""A game database in Prisma's spelling is read as it is, by a role that may not write, into the same groups."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.types.json import Json as AsJson

from babylon_rl.database.embedded import ensure_database
from babylon_rl.database.migrate import upgrade
from babylon_rl.errors import ConfigError
from babylon_rl.ingest.columns import find_column_names
from babylon_rl.ingest.outcomes import examine_outcomes
from babylon_rl.ingest.window_summary import refresh
from babylon_rl.pipeline import checks
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.pipeline.outcomes import snapshot_outcomes
from babylon_rl.pipeline.readiness import readiness
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl.store.row_outcomes import row_outcomes_of
from babylon_rl.windows import HourWindow
from babylon_rl_tests.conftest import drop_database
from babylon_rl_tests.factories import WINDOW, a_json_step, a_row, insert_call_log, insert_rows, read_rows
from babylon_rl_tests.prisma_tables import PRISMA

NOW = datetime(2025, 1, 16, tzinfo=UTC)


def camel(column: str) -> str:
    if column == "final_pnl":
        return "finalPnL"
    first, *rest = column.split("_")
    return first + "".join(w.capitalize() for w in rest)


def copied(table: str, source: str, target: str) -> None:
    """Copy the columns that Prisma's table has, value by value, under their other names."""
    with psycopg.connect(source) as a, psycopg.connect(target) as b:
        theirs = {
            c
            for (c,) in b.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0", (table,)
            )
        }
        found = a.execute(f"SELECT * FROM {table}")
        assert found.description is not None
        columns = [c.name for c in found.description]
        kept = [i for i, c in enumerate(columns) if camel(c) in theirs]
        assert len(kept) == len(theirs)
        names = ", ".join(f'"{camel(columns[i])}"' for i in kept)
        for row in found:
            values = [AsJson(v) if isinstance(v := row[i], list) else v for i in kept]
            b.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join(['%s'] * len(kept))})", values)


@pytest.fixture
def prisma(server_url: str, database_url: str, engine: sa.Engine) -> Iterator[str]:
    """The rows of this test's snake_case database in a Prisma one, through a role that may only read."""
    rows = [
        a_row(f"agent-{i}", tick=t, final_pnl=[None, 0.0, 12.5][t], steps_json=[a_json_step(t)])
        for i in range(6)
        for t in range(3)
    ]
    rows += [
        a_row("agent-0", tick=2, window_id=None),
        a_row("agent-1", tick=1, window_id="2025-01-15-10", steps_json=[a_json_step(1, llmCalls=[], stepId="step-0")]),
        a_row("crashed", steps_json=[]),
        a_row("benchmark", scenario_id="benchmark-1"),
        a_row("evaluation", is_evaluation=True),
        a_row("next hour", window_id=str(WINDOW.next())),
    ]
    insert_rows(engine, rows)
    insert_call_log(engine, rows[19]["trajectory_id"])
    with engine.begin() as conn:
        conn.execute(
            sa.text("""INSERT INTO market_outcomes (id, window_id, stock_ticker, start_price, end_price, change_percent,
                news_events, created_at) VALUES ('1', '2025-01-15T10:00', '$BTC', 100, 110, 10, '["up"]', '2025-01-15 11:05'),
                ('2', '2025-01-15T10:00', 'BTC', 100, 120, 20, null, '2025-01-15 11:06')""")
        )
    name, role = f"babylon_prisma_{os.getpid()}", f"reader_{os.getpid()}"
    url = ensure_database(server_url, name)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(PRISMA)
        conn.execute(f"DROP ROLE IF EXISTS {role}")
        conn.execute(f"CREATE ROLE {role} LOGIN")
        conn.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        conn.execute(f"GRANT {role} TO CURRENT_USER")
    for table in ("trajectories", "llm_call_logs", "market_outcomes"):
        copied(table, database_url, url)
    # Every session of this URL is the reader, whatever the server's rules for logging in are.
    yield sa.make_url(url).update_query_dict({"options": f"-crole={role}"}).render_as_string(hide_password=False)
    drop_database(server_url, name)
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f"DROP ROLE {role}")


@pytest.fixture
def over_prisma(prisma: str, empty_database_url: str, tmp_path: Any) -> Iterator[Workspace]:
    settings = Settings.load(BABYLON_HOME=str(tmp_path), DATABASE_URL=prisma, BABYLON_PLATFORM_URL=empty_database_url)
    upgrade(settings.database)
    with open_workspace(settings) as w:
        yield w


def made(w: Workspace) -> list[str]:
    """Data versions of everything made from one window, and its group's id."""
    ingested = ingest_window(WINDOW, w.game, w.store)
    outcomes = snapshot_outcomes(WINDOW, w.game, w.store, now=NOW, sync=w.owns_game)
    grouped = group_window(WINDOW, w.store, min_agents=5)
    assert grouped.facts["group_id"] is not None
    return [ingested.data_version, outcomes.data_version, grouped.data_version, grouped.facts["group_id"]]


def test_both_spellings_of_the_same_rows_give_identical_groups(settings: Settings, over_prisma: Workspace) -> None:
    with open_workspace(settings) as ours:
        snake = made(ours)
        assert made(over_prisma) == snake
        assert row_outcomes_of(over_prisma.store.engine, WINDOW) == row_outcomes_of(ours.store.engine, WINDOW)
        assert over_prisma.store.group(WINDOW) == ours.store.group(WINDOW)
        with ours.game.connect() as a, over_prisma.game.connect() as b:
            found = [find_column_names(conn).trajectories["agent_id"] for conn in (a, b)]
        assert found == ['"agent_id"', '"agentId"']
        shown = [readiness(w, min_agents=5, min_windows=1, now=NOW).lines[-1 - 1] for w in (ours, over_prisma)]
        assert shown[0] == shown[1]
        assert (shown[0].rows, shown[0].agents, shown[0].outcomes) == (21, 6, True)  # of 7 one only crashed


def test_checks_read_prismas_tables_and_write_nothing_there(over_prisma: Workspace) -> None:
    made(over_prisma)
    store = over_prisma.store
    assert not over_prisma.owns_game
    with over_prisma.game.connect() as conn:
        logged = checks.only_what_was_logged(conn, WINDOW, store.group(WINDOW), store.hindsight(WINDOW))
        balance = checks.every_row_accounted(
            conn, WINDOW, store.rows_read(WINDOW), row_outcomes_of(store.engine, WINDOW)
        )
        assert conn.exec_driver_sql("SELECT nspname FROM pg_namespace WHERE nspname = 'babylon_rl'").all() == []
        with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
            conn.exec_driver_sql("DELETE FROM trajectories")
    assert logged.passed
    assert balance.passed
    assert balance.facts["rows"] == 23


def test_a_polled_database_shows_late_and_rewritten_rows(over_prisma: Workspace, server_url: str) -> None:
    made(over_prisma)
    game, ours = over_prisma.game, over_prisma.store.engine
    refresh(game, ours, now=NOW)
    writer = sa.make_url(str(over_prisma.settings.database.url.get_secret_value())).set(query={})  # type: ignore[union-attr]
    base = sa.make_url(server_url)
    with psycopg.connect(base.set(database=writer.database).render_as_string(hide_password=False)) as conn:
        conn.execute("""UPDATE trajectories SET "finalPnL" = 99 WHERE "agentId" = 'agent-2'""")
        conn.execute("""DELETE FROM trajectories WHERE "agentId" = 'next hour'""")
    refresh(game, ours, now=NOW)
    lines = {x.window_id: x for x in readiness(over_prisma, min_agents=5, min_windows=1, now=NOW).lines}
    assert lines.keys() == {str(WINDOW)}
    assert lines[str(WINDOW)].state.startswith("changed")


def test_late_outcomes_and_far_rows_of_prisma_are_noticed(over_prisma: Workspace, prisma: str, server_url: str) -> None:
    made(over_prisma)
    assert ask(over_prisma) == ("not_judged", 1)
    url = sa.make_url(server_url).set(database=sa.make_url(prisma).database)
    with psycopg.connect(url.render_as_string(hide_password=False)) as conn:
        again = """INSERT INTO market_outcomes SELECT id || 'x', "windowId", "stockTicker", "startPrice", "endPrice",
                   "changePercent", sentiment, "newsEvents", null, null, null, null, "createdAt" FROM market_outcomes"""
        conn.execute(again)
        conn.execute("DELETE FROM market_outcomes WHERE id NOT LIKE '%x'")
        conn.commit()
        assert ask(over_prisma) == ("not_judged", 1)
        conn.execute("""UPDATE market_outcomes SET "endPrice" = 130 WHERE id = '2x'""")
        conn.execute("""UPDATE trajectories SET "windowId" = '9999-12-31-23' WHERE "agentId" = 'next hour'""")
        conn.commit()
        assert ask(over_prisma) == ("changed", 2)
    far = row_outcomes_of(over_prisma.store.engine, HourWindow.parse("9999-12-31T23:00"))
    assert [(o.agent_id, o.reason.value) for o in far] == [("next hour", "future_window")]


def ask(w: Workspace) -> tuple[str | None, int]:
    readiness(w, min_agents=5, min_windows=1, now=NOW)
    query = sa.text("""SELECT x.reason, s.outcome_changes FROM babylon_rl.trainable_windows x
                       JOIN babylon_rl.window_summary s USING (window_id) WHERE window_id = :w""")
    with w.store.engine.connect() as conn:
        reason, changes = conn.execute(query, {"w": str(WINDOW)}).one()
    return reason, changes


def test_a_database_without_the_games_tables_is_refused_in_words(empty_database_url: str) -> None:
    engine = sa.create_engine(sa.make_url(empty_database_url).set(drivername="postgresql+psycopg"))
    with engine.connect() as conn:
        with pytest.raises(ConfigError, match="no table 'trajectories'"):
            find_column_names(conn)
        conn.exec_driver_sql("CREATE TABLE trajectories (id text)")
        with pytest.raises(ConfigError, match="no column 'trajectory_id' in any spelling"):
            find_column_names(conn)
    engine.dispose()


def test_a_window_without_outcomes_table_or_flags_is_still_read(empty_database_url: str) -> None:
    """Columns that a database does not have are unknown, and a table it does not have is empty."""

    engine = sa.create_engine(sa.make_url(empty_database_url).set(drivername="postgresql+psycopg"))
    with engine.connect() as conn:
        conn.exec_driver_sql(
            'CREATE TABLE trajectories (id text, "trajectoryId" text, "agentId" text, "startTime" timestamp, "stepsJson" jsonb)'
        )
        row = a_row("a")
        at = WINDOW.start_at.replace(tzinfo=None) + timedelta(minutes=1)
        conn.exec_driver_sql("INSERT INTO trajectories VALUES ('1', 't', 'a', %s, %s)", (at, row["steps_json"]))
        rows, aside = read_rows(conn, WINDOW)
        assert (len(rows), aside, rows[0].final_pnl) == (1, [], None)
        assert not examine_outcomes(conn, WINDOW)[0].known
    engine.dispose()
