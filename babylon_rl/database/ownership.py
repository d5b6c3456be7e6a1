"""Which of the game's tables our migrations created: those are ours to write, and no others."""

from typing import Final

import sqlalchemy as sa

from babylon_rl.database import game_tables
from babylon_rl.database.tables import CREATED_GAME_TABLES, OUR_SCHEMA
from babylon_rl.errors import ConfigError

PLAY: Final = ("trajectories", "llm_call_logs")  # what playing agents write


def created_by_us(conn: sa.Connection, *names: str) -> bool:
    """Whether these tables of the game were all created by our migrations; False in a database that was never migrated."""
    mark = f"{OUR_SCHEMA}.{CREATED_GAME_TABLES}"
    if conn.scalar(sa.select(sa.func.to_regclass(mark))) is None:
        return False
    query = sa.text(f"SELECT count(*) FROM {mark} WHERE table_name = ANY(:names)")  # noqa: S608  # a constant
    return bool(conn.scalar(query, {"names": list(names)}) == len(names))


def refuse_foreign_game(conn: sa.Connection, what: str, *, into_foreign_game: bool = False) -> None:
    """Refuse to write played rows into a game that is not ours, or, asked to, into tables that cannot take them.

    Args:
        conn: On the database with the game's tables; only read.
        what: Who would write, for the message.
        into_foreign_game: Write all the same, where our role may and the tables are in snake_case.

    Raises:
        ConfigError: Nothing may be written there.
    """
    if created_by_us(conn, *PLAY):
        return
    if not into_foreign_game:
        raise ConfigError(
            f"{what} writes played rows into the game's tables, and those of DATABASE_URL are another game's: our "
            "migrations did not create them, so nothing was written; let that game play, whose agents record their hours, and "
            "run `babylon-rl check-windows`; or unset DATABASE_URL to play in the embedded database"
        )
    for name in PLAY:
        missing = _find_missing_columns(conn, name)
        if missing:
            raise ConfigError(
                f"{what} cannot write into table {name!r} of this game: it has no column {missing[0]!r} in that spelling "
                "(Prisma writes others); only snake_case tables can be written to; unset DATABASE_URL to play in the "
                "embedded database"
            )
        if not conn.scalar(sa.text("SELECT has_table_privilege(to_regclass(:name), 'INSERT')"), {"name": name}):
            raise ConfigError(
                f"{what} cannot write into table {name!r} of this game: the role of DATABASE_URL may not INSERT there; "
                "grant that, or unset DATABASE_URL to play in the embedded database"
            )


def _find_missing_columns(conn: sa.Connection, name: str) -> list[str]:
    query = sa.text("SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(:name) AND NOT attisdropped")
    found = set(conn.scalars(query, {"name": name}))
    return [c.name for c in game_tables.game.tables[name].columns if c.name not in found]
