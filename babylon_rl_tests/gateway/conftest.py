"""One upstream and one database for the gateway's tests over HTTP."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from upstream_server import Upstream, running_upstream

from babylon_rl.database.connection import connect
from babylon_rl.database.embedded import ensure_database
from babylon_rl.database.migrate import upgrade
from babylon_rl.settings import Settings
from babylon_rl_tests.conftest import drop_database


@pytest.fixture(scope="module")
def shared_settings(
    tmp_path_factory: pytest.TempPathFactory, server_url: str, request: pytest.FixtureRequest
) -> Iterator[Settings]:
    """Settings of a home and a database that all tests of a module share."""
    home: Path = tmp_path_factory.mktemp("home")
    name = f"babylon_test_{os.getpid()}_{request.module.__name__.rpartition('.')[2]}"
    url = ensure_database(server_url, name)
    settings = Settings.load(BABYLON_HOME=home, DATABASE_URL=url, BABYLON_PLATFORM_URL=None)
    upgrade(settings.database)
    yield settings
    drop_database(server_url, name)


@pytest.fixture(scope="module")
def shared_engine(shared_settings: Settings) -> Iterator[sa.Engine]:
    assert shared_settings.database.url is not None
    engine = connect(shared_settings.database.url.get_secret_value())
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def one_upstream() -> Iterator[Upstream]:
    with running_upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(one_upstream: Upstream) -> Upstream:
    """The upstream, well-behaved and with nothing asked yet."""
    one_upstream.reset()
    return one_upstream
