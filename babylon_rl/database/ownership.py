"""Which of the game's tables our migrations created: those are ours to write."""

import sqlalchemy as sa

from babylon_rl.database.tables import CREATED_GAME_TABLES, OUR_SCHEMA


def created_by_us(conn: sa.Connection, game_table: str) -> bool:
    """Whether one of the game's tables was created by our migrations; False in a database that was never migrated."""
    name = f"{OUR_SCHEMA}.{CREATED_GAME_TABLES}"
    if conn.scalar(sa.select(sa.func.to_regclass(name))) is None:
        return False
    query = sa.text(f"SELECT EXISTS (SELECT FROM {name} WHERE table_name = :name)")  # noqa: S608  # a constant
    return bool(conn.scalar(query, {"name": game_table}))
