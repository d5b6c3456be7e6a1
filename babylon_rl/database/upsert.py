"""Rows that may be there already: written over, or left alone. Many at once by COPY are `database/bulk_copy.py`."""

from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from babylon_rl.types import Json


def upsert(conn: sa.Connection, table: sa.Table, rows: Sequence[Json], *, add: Collection[str] = ()) -> None:
    """Write rows; one whose primary key is there already takes the place of the old one.

    Args:
        conn: An open transaction; the caller commits.
        table: Target.
        rows: N dicts with the same keys, in order: the last of equal primary keys stands.
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
    """Write those rows whose keys are not there yet; the others stay as they are. The caller commits."""
    if rows:
        conn.execute(insert(table).on_conflict_do_nothing(), rows)
