"""Bulk inserts by COPY: straight into the table, or through a temporary one when some of the rows exist already."""

from collections.abc import Sequence
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql

from babylon_rl.errors import DataError
from babylon_rl.types import Json


def insert_new(
    conn: sa.Connection, table: sa.Table, rows: Sequence[Json], *, key: str, must_agree: Sequence[str] = ()
) -> int:
    """Write the rows whose unique keys are not in `table` yet; existing rows stay as they are.

    Args:
        conn: An open transaction; the caller commits.
        table: Target; columns that the rows lack keep their defaults.
        rows: N dicts with the same keys in the same order.
        key: The unique column by which an existing row is recognised.
        must_agree: Columns in which an existing row must equal the new one. Where they differ, the new row is another
            one under the same key, and skipping it would lose it.

    Returns:
        How many rows were written.

    Raises:
        DataError: An existing row differs in a column of `must_agree`.
    """
    if not rows:
        return 0
    raw: Any = conn.connection.driver_connection
    cursor: psycopg.Cursor[Any]
    with raw.cursor() as cursor:
        if not _any_exists(cursor, table, rows, key):
            try:
                with raw.transaction():  # a savepoint: another writer may be quicker with the same keys
                    _copy(cursor, _name(table), rows)
                return len(rows)
            except psycopg.errors.UniqueViolation:
                pass
        return _copy_missing(cursor, table, rows, key, must_agree)


def _any_exists(cursor: "psycopg.Cursor[Any]", table: sa.Table, rows: Sequence[Json], key: str) -> bool:
    query = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {} = ANY(%s))").format(_name(table), sql.Identifier(key))
    row = cursor.execute(query, [[r[key] for r in rows]]).fetchone()
    return bool(row and row[0])


def _copy(cursor: "psycopg.Cursor[Any]", target: sql.Identifier, rows: Sequence[Json]) -> None:
    """COPY, in the binary format: in text every backslash of the JSON would be escaped and unescaped."""
    columns = list(rows[0])
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    cursor.execute(sql.SQL("SELECT {} FROM {} LIMIT 0").format(names, target))
    types = [c.type_code for c in cursor.description or ()]
    with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(target, names)) as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row([row[c] for c in columns])


def _copy_missing(
    cursor: "psycopg.Cursor[Any]", table: sa.Table, rows: Sequence[Json], key: str, must_agree: Sequence[str]
) -> int:
    """Some rows exist: COPY into a temporary table, then one INSERT that skips those."""
    columns = list(rows[0])
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    target, stage = _name(table), sql.Identifier(f"stage_{table.name}")
    cursor.execute(sql.SQL("DROP TABLE IF EXISTS pg_temp.{}").format(stage))
    cursor.execute(
        sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {} FROM {} LIMIT 0").format(stage, names, target)
    )
    # The temporary table holds its texts uncompressed: they are read once and dropped.
    texts = [c for c in columns if isinstance(table.c[c].type, sa.String)]
    if texts:
        plain = sql.SQL(", ").join(
            sql.SQL("ALTER COLUMN {} SET STORAGE EXTERNAL").format(sql.Identifier(c)) for c in texts
        )
        cursor.execute(sql.SQL("ALTER TABLE {} {}").format(stage, plain))
    _copy(cursor, stage, rows)
    cursor.execute(
        sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT DO NOTHING").format(target, names, names, stage)
    )
    written = cursor.rowcount
    if written < len(rows) and must_agree:
        differs = sql.SQL(" OR ").join(
            sql.SQL("t.{0} IS DISTINCT FROM s.{0}").format(sql.Identifier(c)) for c in must_agree
        )
        other = cursor.execute(
            sql.SQL("SELECT s.{0} FROM {1} s LEFT JOIN {2} t ON t.{0} = s.{0} WHERE {3} LIMIT 1").format(
                sql.Identifier(key), stage, target, differs
            )
        ).fetchone()
        if other is not None:
            raise DataError(
                f"{table.name} holds another row under {key} {other[0]!r} or its id; expected new ids, or the same "
                "row again; give writers that share a clock different ids. Nothing was written",
                facts={key: other[0]},
            )
    return written


def _name(table: sa.Table) -> sql.Identifier:
    return sql.Identifier(*([table.schema] if table.schema else []), table.name)
