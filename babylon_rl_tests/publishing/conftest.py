"""Databases with a short lineage, made once and copied for each test: the simulator's, and another game's beside ours."""

import itertools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from published import OpenForeign, record_step

from babylon_rl.database.embedded import ensure_database
from babylon_rl.database.migrate import upgrade
from babylon_rl.ingest.window_summary import refresh
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl_tests.another_game import another_game
from babylon_rl_tests.conftest import drop_database
from babylon_rl_tests.played import FIRST, hours, judge, play_and_judge, prepare
from babylon_rl_tests.prisma_tables import PUBLISHED

_serial = itertools.count(1)
_OWN_ROWS = """
INSERT INTO training_batches (id, "batchId", "baseModel", "modelVersion", "trajectoryIds", "rewardsJson")
VALUES ('own', 'own', 'qwen', 'v1.0.0', '[]', '[]');
INSERT INTO trained_models (id, "modelId", version, "baseModel", "storagePath", "updatedAt")
VALUES ('own', 'babylon-agent-v1.0.0', 'v1.0.0', 'qwen', 'x', '2025-01-01');
INSERT INTO reward_judgments (id, "trajectoryId", "judgeModel", "judgeVersion", "overallScore", reasoning, "criteriaJson")
VALUES ('own', 't000000', 'feed-deterministic', 'trust-v1', 0.61, 'steady', '{}');
"""


def _name(what: str) -> str:
    return f"babylon_test_{os.getpid()}_publish_{what}_{next(_serial)}"


def _copy(server_url: str, template: str) -> Iterator[str]:
    name = _name("copy")
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy'.encode())
    yield ensure_database(server_url, name)
    drop_database(server_url, name)


@pytest.fixture(scope="session")
def played_database(server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a database with three judged hours of the simulator, of which step 1 used two."""
    name, home = _name("played"), str(tmp_path_factory.mktemp("home"))
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template_database}" STRATEGY file_copy'.encode())
    settings = Settings.load(
        BABYLON_HOME=home, DATABASE_URL=ensure_database(server_url, name), BABYLON_PLATFORM_URL=None
    )
    with open_workspace(settings) as workspace:
        play_and_judge(workspace, hours(3), agents=5)
        refresh(workspace.game, workspace.store.engine, now=datetime.now(UTC))
        record_step(workspace, FIRST.next(2), 2)
    yield name
    drop_database(server_url, name)


@pytest.fixture(scope="session")
def foreign_databases(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Names of another game's database with trainings of its own, and of ours beside it."""
    game, platform, home = _name("game"), _name("platform"), str(tmp_path_factory.mktemp("home"))
    with another_game(server_url, game, windows=3) as url:
        with psycopg.connect(url) as conn:
            conn.execute(PUBLISHED.encode() + _OWN_ROWS.encode())
        settings = Settings.load(
            BABYLON_HOME=home, DATABASE_URL=url, BABYLON_PLATFORM_URL=ensure_database(server_url, platform)
        )
        upgrade(settings.database)
        with open_workspace(settings) as workspace:
            refresh(workspace.game, workspace.store.engine, now=datetime.now(UTC), full=True)
            for w in hours(3):
                prepare(workspace, w)
            judge(workspace, hours(3))
            record_step(workspace, FIRST.next(2), 2)
        yield game, platform
        drop_database(server_url, platform)


@pytest.fixture
def database_url(server_url: str, played_database: str) -> Iterator[str]:
    """The test's own copy of the simulator's database."""
    yield from _copy(server_url, played_database)


@pytest.fixture
def ours(settings: Settings) -> Iterator[Workspace]:
    """Three judged hours of the simulator, of which step 1 used two."""
    with open_workspace(settings) as workspace:
        yield workspace


@pytest.fixture
def game_url(server_url: str, foreign_databases: tuple[str, str]) -> Iterator[str]:
    """Another game, in Prisma's spelling, with trainings of its own."""
    yield from _copy(server_url, foreign_databases[0])


@pytest.fixture
def platform_url(server_url: str, foreign_databases: tuple[str, str]) -> Iterator[str]:
    """Our schema for that game."""
    yield from _copy(server_url, foreign_databases[1])


@pytest.fixture
def open_foreign(platform_url: str, tmp_path: Path) -> OpenForeign:
    """Opens a workspace over a game's database; our schema lives in another one."""

    def open_(url: str) -> AbstractContextManager[Workspace]:
        return open_workspace(
            Settings.load(BABYLON_HOME=str(tmp_path), DATABASE_URL=url, BABYLON_PLATFORM_URL=platform_url)
        )

    return open_


@pytest.fixture
def foreign(game_url: str, open_foreign: OpenForeign) -> Iterator[Workspace]:
    """Three judged hours of the other game, of which step 1 used two."""
    with open_foreign(game_url) as workspace:
        yield workspace
