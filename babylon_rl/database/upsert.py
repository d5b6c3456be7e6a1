"""Inserts of rows that may exist already: replace the old row, or keep it. For bulk inserts see `database/bulk_copy.py`."""

from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from babylon_rl.types import Json


def upsert(conn: sa.Connection, table: sa.Table, rows: Sequence[Json], *, add: Collection[str] = ()) -> None:
    """Write rows; each replaces the row that has its primary key, if there is one.

    Args:
        conn: An open transaction; the caller commits.
        table: Target.
        rows: N dicts with the same keys, in order: of equal primary keys the last is kept.
        add: Number columns whose new value is added to the old one, instead of replacing it.
    """
    if not rows:
        return
    statement = insert(table)
    keys = [c.name for c in table.primary_key]
    changed = {
        name: table.c[name] + statement.excluded[name] if name in add else statement.excluded[name]
        for name in rows[0]
        if name not in keys
    }
    conn.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), rows)


def insert_missing(conn: sa.Connection, table: sa.Table, rows: Sequence[Json]) -> None:
    """Write those rows whose keys do not exist yet; existing rows stay as they are. The caller commits."""
    if rows:
        conn.execute(insert(table).on_conflict_do_nothing(), rows)
