"""Fixtures of tests that read a game's database in both ways: ours, with triggers, and another's, by polling."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from babylon_rl.database.migrate import upgrade
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings


@pytest.fixture(params=["triggers", "polled"])
def either_workspace(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Iterator[Workspace]:
    """A workspace over the tables that `engine` writes: in our own database, or in one that may only be read."""
    if request.param == "polled":
        assert settings.database.url is not None
        url = sa.make_url(settings.database.url.get_secret_value())
        url = url.update_query_dict({"options": "-cdefault_transaction_read_only=on"})
        settings = Settings.load(
            BABYLON_HOME=str(tmp_path),
            DATABASE_URL=url.render_as_string(hide_password=False),
            BABYLON_PLATFORM_URL=request.getfixturevalue("empty_database_url"),
        )
        upgrade(settings.database)
    with open_workspace(settings) as workspace:
        yield workspace
