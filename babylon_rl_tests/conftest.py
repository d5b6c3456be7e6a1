"""Fixtures that all tests share: one PostgreSQL for the session, one migrated database for each test.

`BABYLON_RL_TEST_DSN` names another server (its user must be allowed to create databases); if unset, the
embedded one is started in a temporary directory and stopped at the end. No test is skipped for lack of a server.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from babylon_rl.database.connection import connect, normalise
from babylon_rl.database.embedded import ensure_database, ensure_server, stop_server
from babylon_rl.database.migrate import upgrade
from babylon_rl.settings import Settings

_serial = itertools.count(1)
# Variables that would make a test use the network, or read the developer's settings.
_FOREIGN = ("OPENAI_", "WANDB_", "JUDGE_", "BABYLON_", "DATABASE_URL", "LITELLM_", "DAGSTER_", "ANTHROPIC_", "HF_TOKEN")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(_FOREIGN) and not name.startswith("BABYLON_RL_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The maintenance database of the test server."""
    if dsn := os.environ.get("BABYLON_RL_TEST_DSN"):
        yield normalise(dsn, "BABYLON_RL_TEST_DSN")
        return
    # Not below pytest's own directory: it is not readable for the system user that PostgreSQL runs as under root.
    home = Path(tempfile.mkdtemp(prefix="babylon-test-"))
    url = ensure_server(home)
    with psycopg.connect(url, autocommit=True) as conn:
        # Tests need no durability.
        for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
            conn.execute(f"ALTER SYSTEM SET {setting}")
        conn.execute("SELECT pg_reload_conf()")
    yield url
    stop_server(home)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def template_database(server_url: str) -> Iterator[str]:
    """Name of a database with all our tables, which tests copy."""
    name = f"babylon_test_{os.getpid()}_template"
    upgrade(Settings.load(DATABASE_URL=ensure_database(server_url, name), BABYLON_PLATFORM_URL=None).database)
    yield name
    drop_database(server_url, name)


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """A fresh database without any table."""
    name = f"babylon_test_{os.getpid()}_{next(_serial)}"
    yield ensure_database(server_url, name)
    drop_database(server_url, name)


@pytest.fixture
def database_url(server_url: str, template_database: str) -> Iterator[str]:
    """A fresh, migrated, empty database."""
    name = f"babylon_test_{os.getpid()}_{next(_serial)}"
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template_database}" STRATEGY file_copy')
    yield ensure_database(server_url, name)
    drop_database(server_url, name)


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """An engine on the test's own migrated database."""
    engine = connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """Settings with their home in `tmp_path` and the test's own database."""
    return Settings.load(BABYLON_HOME=str(tmp_path), DATABASE_URL=database_url, BABYLON_PLATFORM_URL=None)


@pytest.fixture
def environment(settings: Settings, server_url: str) -> Iterator[dict[str, str]]:
    """Environment variables of a command that runs on this test's database."""
    assert settings.database.url is not None
    database = f"babylon_test_{os.getpid()}_{next(_serial)}_dagster"
    yield {
        "PATH": os.environ["PATH"],
        "BABYLON_HOME": str(settings.home),
        "DATABASE_URL": settings.database.url.get_secret_value(),
        "BABYLON_DAGSTER_URL": ensure_database(server_url, database, options={"synchronous_commit": "off"}),
    }
    drop_database(server_url, database)


def drop_database(server_url: str, name: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
