"""Bring a database's tables up to date, or remove ours again.

What belongs here: running Alembic with our rules. Each version is a file in `migrations/versions/` that is never
changed; `tables.py` is the current state, and a test compares the two.

The rules: everything happens in one transaction under one advisory lock, so two processes at once are
safe and a killed one leaves nothing. The game's tables are created only where they are missing, and
not at all in a database that has them as Prisma spells them; those that we created are listed
in `babylon_rl.created_game_tables`, and a downgrade drops no others.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from babylon_rl.database import game_tables, tables
from babylon_rl.database.connection import connect, game_url, platform_url
from babylon_rl.database.locks import Lock, lock_transaction
from babylon_rl.errors import ConfigError
from babylon_rl.settings import DatabaseSettings

logger = logging.getLogger(__name__)

_VERSION_TABLE: Final = "alembic_version"
_SCRIPTS: Final = Path(__file__).parent / "migrations"


def upgrade(settings: DatabaseSettings) -> None:
    """Create or update what is missing; does nothing when all is up to date.

    With `BABYLON_PLATFORM_URL` set, the game's database is not touched at all.

    Raises:
        ConfigError: The server cannot be reached, refuses, or was migrated by a newer version of this package.
    """
    with _open_config(settings) as config:
        _run(config, "upgrade", "head")


def downgrade(settings: DatabaseSettings, revision: str = "base") -> None:
    """Go back to `revision`, dropping what later versions created, with its rows.

    Raises:
        ConfigError: The server cannot be reached or refuses.
    """
    with _open_config(settings) as config:
        _run(config, "downgrade", revision)


def current(settings: DatabaseSettings) -> str:
    """The database's revision: `0002`, or `base` when it was never migrated."""
    engine = connect(platform_url(settings))
    try:
        with engine.connect() as conn:
            return MigrationContext.configure(conn, opts=configure_options()).get_current_revision() or "base"
    finally:
        engine.dispose()


def latest() -> str:
    """The newest revision that this package knows."""
    return ScriptDirectory(str(_SCRIPTS)).get_current_head() or "base"


def differences(conn: sa.Connection, *, game: bool = True) -> list[Any]:
    """How the database differs from `tables.py`, as Alembic reports it; empty when it does not.

    Args:
        conn: An open connection.
        game: Also compare the game's tables.
    """
    options: dict[str, Any] = {**configure_options(), "compare_type": True, "include_schemas": True}
    wanted = [tables.platform, game_tables.game] if game else [tables.platform]
    names = {t.name for m in wanted for t in m.tables.values()}
    own = {None, tables.OUR_SCHEMA} if game else {tables.OUR_SCHEMA}
    options["include_name"] = lambda name, kind, parents: (
        name in own if kind == "schema" else kind != "table" or parents["schema_name"] is not None or name in names
    )
    options["include_object"] = lambda _o, name, kind, reflected, _c: (
        not (kind == "table" and reflected and name in (tables.CREATED_GAME_TABLES, _VERSION_TABLE))
    )
    merged = sa.MetaData()
    for metadata in wanted:
        for table in metadata.tables.values():
            table.to_metadata(merged)
    return list(compare_metadata(MigrationContext.configure(conn, opts=options), merged))


def configure_options() -> dict[str, Any]:
    """What every Alembic context of ours is configured with."""
    return {"version_table": _VERSION_TABLE, "version_table_schema": tables.OUR_SCHEMA}


@contextmanager
def _open_config(settings: DatabaseSettings) -> Generator[Config]:
    """Open a transaction that holds the migration lock; gives Alembic's configuration."""
    url = platform_url(settings)
    engine = connect(url)
    try:
        with engine.begin() as conn:
            lock_transaction(conn, Lock.MIGRATION, tables.OUR_SCHEMA)
            conn.execute(sa.schema.CreateSchema(tables.OUR_SCHEMA, if_not_exists=True))
            config = Config()
            config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
            config.attributes["connection"] = conn
            config.attributes["game"] = settings.platform_url is None or url == game_url(settings)
            yield config
    except sa.exc.ProgrammingError as e:
        reason = str(e.orig).splitlines()[0]
        raise ConfigError(
            f"the database refused a migration: {reason}; expected a user that may create schema {tables.OUR_SCHEMA!r} "
            "and its tables; grant that, or name another database in BABYLON_PLATFORM_URL"
        ) from None
    finally:
        engine.dispose()


def _run(config: Config, direction: str, revision: str) -> None:
    before = _read_revision(config)
    known = {s.revision for s in ScriptDirectory(str(_SCRIPTS)).walk_revisions()}
    if before not in known | {"base"}:
        raise ConfigError(
            f"the database is at revision {before!r}, which this version does not know (newest: {latest()!r}); "
            "install the newer babylon_rl that migrated it"
        )
    (command.upgrade if direction == "upgrade" else command.downgrade)(config, revision)
    if (after := _read_revision(config)) != before:
        logger.info("migrated from=%s to=%s", before, after)


def _read_revision(config: Config) -> str:
    conn: sa.Connection = config.attributes["connection"]
    return MigrationContext.configure(conn, opts=configure_options()).get_current_revision() or "base"
