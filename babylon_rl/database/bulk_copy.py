"""Many rows at once, by COPY: straight into the table, or around those rows that are there already."""

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
    """Write the rows whose unique keys are not in `table` yet.

    Args:
        conn: An open transaction; the caller commits.
        table: Target; columns that the rows lack keep their defaults.
        rows: N dicts with the same keys in the same order.
        key: The unique column that says whether a row is there already.
        must_agree: Columns in which a row that is there must say the same: it is then the same row written
            again, and not another one that this would lose.

    Returns:
        How many were written.

    Raises:
        DataError: A row is there already and says something else.
    """
    if not rows:
        return 0
    raw: Any = conn.connection.driver_connection
    cursor: psycopg.Cursor[Any]
    with raw.cursor() as cursor:
        if not _any_there(cursor, table, rows, key):
            try:
                with raw.transaction():  # a savepoint: another writer may be quicker with the same keys
                    _copy(cursor, _name(table), rows)
                return len(rows)
            except psycopg.errors.UniqueViolation:
                pass
        return _copy_around(cursor, table, rows, key, must_agree)


def _any_there(cursor: "psycopg.Cursor[Any]", table: sa.Table, rows: Sequence[Json], key: str) -> bool:
    query = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {} = ANY(%s))").format(_name(table), sql.Identifier(key))
    found = cursor.execute(query, [[r[key] for r in rows]]).fetchone()
    return bool(found and found[0])


def _copy(cursor: "psycopg.Cursor[Any]", target: sql.Identifier, rows: Sequence[Json]) -> None:
    """COPY, in the binary format: text would have every backslash of the JSON doubled, and halved again."""
    columns = list(rows[0])
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    cursor.execute(sql.SQL("SELECT {} FROM {} LIMIT 0").format(names, target))
    types = [c.type_code for c in cursor.description or ()]
    with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(target, names)) as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row([row[c] for c in columns])


def _copy_around(
    cursor: "psycopg.Cursor[Any]", table: sa.Table, rows: Sequence[Json], key: str, must_agree: Sequence[str]
) -> int:
    """Some are there: COPY into a temporary table, then one INSERT that leaves those alone."""
    columns = list(rows[0])
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    target, stage = _name(table), sql.Identifier(f"stage_{table.name}")
    cursor.execute(sql.SQL("DROP TABLE IF EXISTS pg_temp.{}").format(stage))
    cursor.execute(
        sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {} FROM {} LIMIT 0").format(stage, names, target)
    )
    # What only passes through is not compressed on the way in and decompressed on the way out.
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
