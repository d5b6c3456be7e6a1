"""Migrations on a real server: complete, repeatable, and careful with tables that are not ours."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from babylon_rl.database import migrate, tables
from babylon_rl.database.connection import connect
from babylon_rl.database.embedded import ensure_database
from babylon_rl.errors import ConfigError
from babylon_rl.pipeline.workspace import open_workspace
from babylon_rl.settings import DatabaseSettings, Settings
from babylon_rl_tests.factories import GUIDE_SQL
from babylon_rl_tests.played import FIRST, hours, play_and_judge

GAME = {"trajectories", "llm_call_logs", "market_outcomes", "training_batches", "trained_models", "reward_judgments"}


def table_names(url: str, schema: str = "public") -> set[str]:
    with psycopg.connect(url) as conn:
        return {n for (n,) in conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,))}


def load(url: str, tmp_path: Path, **more: object) -> DatabaseSettings:
    return Settings.load(BABYLON_HOME=str(tmp_path), DATABASE_URL=url, **more).database


def test_a_migrated_database_is_exactly_what_tables_py_says(engine: sa.Engine) -> None:
    with engine.connect() as conn:
        assert migrate.differences(conn) == []


def test_a_missing_column_or_table_shows_as_a_difference(engine: sa.Engine) -> None:
    """Guards the comparison itself: it must not pass because it looks at nothing."""
    with engine.begin() as conn:
        conn.execute(sa.text("ALTER TABLE trajectories DROP COLUMN final_pnl"))
        conn.execute(sa.text("DROP TABLE babylon_rl.checkpoints"))
        conn.execute(sa.text("ALTER TABLE babylon_rl.judgments ALTER score TYPE integer"))
        kinds = {d[0][0] if isinstance(d, list) else d[0] for d in migrate.differences(conn)}
    assert kinds >= {"add_column", "add_table", "modify_type"}


def test_migrating_twice_changes_nothing(empty_database_url: str, tmp_path: Path) -> None:
    settings = load(empty_database_url, tmp_path)
    assert migrate.current(settings) == "base"
    migrate.upgrade(settings)
    migrate.upgrade(settings)
    assert migrate.current(settings) == migrate.latest() == "0016"
    assert table_names(empty_database_url) == GAME


def test_two_that_migrate_at_once_both_succeed(empty_database_url: str, tmp_path: Path) -> None:
    settings = load(empty_database_url, tmp_path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate.upgrade, [settings] * 4))
    assert migrate.current(settings) == migrate.latest()


def test_downgrade_removes_all_that_upgrade_created(empty_database_url: str, tmp_path: Path) -> None:
    settings = load(empty_database_url, tmp_path)
    migrate.upgrade(settings)
    migrate.downgrade(settings)
    assert table_names(empty_database_url) == set()
    assert table_names(empty_database_url, tables.OUR_SCHEMA) == {"alembic_version"}
    assert migrate.current(settings) == "base"
    migrate.upgrade(settings)
    engine = connect(empty_database_url)
    with engine.connect() as conn:
        assert migrate.differences(conn) == []
    engine.dispose()


def test_a_prisma_database_gets_our_schema_and_nothing_else(empty_database_url: str, tmp_path: Path) -> None:
    with psycopg.connect(empty_database_url) as conn:
        conn.execute('CREATE TABLE trajectories (id text PRIMARY KEY, "windowId" varchar(50), "stepsJson" text)')
        conn.execute("INSERT INTO trajectories VALUES ('1', '2025-01-15T10:00', '[]')")
    settings = load(empty_database_url, tmp_path)
    migrate.upgrade(settings)
    assert table_names(empty_database_url) == {"trajectories"}
    assert "checkpoints" in table_names(empty_database_url, tables.OUR_SCHEMA)
    migrate.downgrade(settings)
    with psycopg.connect(empty_database_url) as conn:
        assert conn.execute("SELECT count(*) FROM trajectories").fetchone() == (1,)


def test_game_tables_that_stood_before_us_survive_a_downgrade(empty_database_url: str, tmp_path: Path) -> None:
    with psycopg.connect(empty_database_url) as conn:
        conn.execute("CREATE TABLE trajectories (id text PRIMARY KEY, window_id varchar(50))")
    settings = load(empty_database_url, tmp_path)
    migrate.upgrade(settings)
    assert table_names(empty_database_url) == GAME
    migrate.downgrade(settings)
    assert table_names(empty_database_url) == {"trajectories"}


def test_a_platform_database_leaves_the_games_untouched(
    server_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    game = ensure_database(server_url, "babylon_untouched")
    try:
        migrate.upgrade(load(game, tmp_path, BABYLON_PLATFORM_URL=empty_database_url))
        assert table_names(game) | table_names(game, tables.OUR_SCHEMA) == set()
        assert table_names(empty_database_url) == set()
        assert "windows" in table_names(empty_database_url, tables.OUR_SCHEMA)
    finally:
        with psycopg.connect(server_url, autocommit=True) as conn:
            conn.execute("DROP DATABASE babylon_untouched WITH (FORCE)")


def test_a_database_of_a_newer_version_is_refused_in_words(database_url: str, tmp_path: Path) -> None:
    with psycopg.connect(database_url) as conn:
        conn.execute("UPDATE babylon_rl.alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match=r"9999.*install the newer"):
        migrate.upgrade(load(database_url, tmp_path))


def test_the_guides_sql_runs_as_printed(engine: sa.Engine) -> None:
    with engine.connect() as conn:
        rows = conn.exec_driver_sql(GUIDE_SQL)
        assert list(rows.keys()) == ["window_id", "agents", "avg_pnl"]


def test_long_values_are_never_compressed_by_pglz(engine: sa.Engine) -> None:
    """pglz takes several times as long as writing; lz4 where the server has it, looked up and not assumed."""
    columns = sa.text("""
        SELECT attname, attstorage::text, attcompression::text FROM pg_attribute
        WHERE attrelid IN (to_regclass('trajectories'), to_regclass('llm_call_logs'))
          AND attname IN ('steps_json', 'system_prompt', 'user_prompt', 'response')""")
    lz4 = sa.text("SELECT 'lz4' = ANY(enumvals) FROM pg_settings WHERE name = 'default_toast_compression'")
    with engine.connect() as conn:
        how = ("x", "l") if conn.scalar(lz4) else ("e", "")
        found = {name: (storage, compression) for name, storage, compression in conn.execute(columns)}
    assert found == dict.fromkeys(("steps_json", "system_prompt", "user_prompt", "response"), how)


def test_row_outcomes_get_their_words_and_give_them_back(empty_database_url: str, tmp_path: Path) -> None:
    settings = load(empty_database_url, tmp_path)
    migrate.upgrade(settings)
    new = [("grouped", "has_turn"), ("grouped", "no_turn"), ("ineligible", "no_turns"), ("quarantined", "bad_json")]
    old = [("grouped", "stitched"), ("stitched", "no_turns"), ("ineligible", "no_turns"), ("quarantined", "bad_json")]
    with psycopg.connect(empty_database_url) as conn:
        for i, (status, reason) in enumerate([*new, ("read", "has_turn"), ("read", "no_turn")]):
            row = (str(i), "w", "t", "a", status, reason)
            conn.execute("INSERT INTO babylon_rl.row_outcomes VALUES (%s, %s, %s, %s, %s, %s)", row)
    migrate.downgrade(settings, "0006")
    with psycopg.connect(empty_database_url) as conn:
        words = "SELECT disposition, reason FROM babylon_rl.row_dispositions ORDER BY source_id"
        assert conn.execute(words).fetchall() == [*old, ("ineligible", "too_few_agents"), ("ineligible", "no_turns")]
    migrate.upgrade(settings)
    with psycopg.connect(empty_database_url) as conn:
        words = "SELECT status, reason FROM babylon_rl.row_outcomes ORDER BY source_id"
        assert conn.execute(words).fetchall() == [*new, ("ineligible", "too_few_agents"), ("ineligible", "no_turns")]


def test_what_was_ready_before_the_states_stays_ready(settings: Settings) -> None:
    """Check results and plans of 0009 do not say what they are about: they are about what was current then."""
    with open_workspace(settings) as w:
        play_and_judge(w, hours(3))
        batch = w.ledger.plan(FIRST.next(), 2, learning_rate=None)
        assert batch is not None
        w.store.engine.dispose()
        migrate.downgrade(settings.database, "0009")
        migrate.upgrade(settings.database)
        assert [r.window_id for r in w.ledger.ready()] == [str(h) for h in hours(3)]
        assert w.ledger.plan(FIRST.next(), 2, learning_rate=None) == batch
        assert w.ledger.eligibility.unprepared(5) == []
