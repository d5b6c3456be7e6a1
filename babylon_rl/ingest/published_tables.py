"""The game's tables that results are published into: what a database calls them, whether we may write, and how.

What belongs here: the look into the catalog and the statements. What the values mean is `pipeline/publish.py`.
Rows are given as JSON that PostgreSQL itself reads as rows of the table (`json_populate_recordset`): so each value has the
column's own type, whatever that is, and a value that was rounded when it was stored is equal when it is written again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from babylon_rl.common.canonical import to_json
from babylon_rl.database import game_tables
from babylon_rl.types import Json

REWARD_COLUMNS: Final = ("ai_judge_reward", "ai_judge_reasoning", "judged_at", "used_in_training", "trained_in_batch")
# Our name of a table → our names of the columns that we write, the required ones first.
_REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "training_batches": ("id", "batch_id", "base_model", "model_version", "trajectory_ids", "rewards_json", "status"),
    "trained_models": ("id", "model_id", "version", "base_model", "status", "storage_path"),
    "trajectories": ("id", "trajectory_id"),
    "reward_judgments": ("id", "trajectory_id", "judge_model", "judge_version", "overall_score", "reasoning"),
}
TABLES: Final = tuple(_REQUIRED)
_COLUMNS: Final = {
    name: ("id", "trajectory_id", *REWARD_COLUMNS)
    if name == "trajectories"
    else tuple(c.name for c in game_tables.game.tables[name].columns)
    for name in TABLES
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedTable:
    """One table of the game that we write.

    Attributes:
        sql: Its name with its schema, quoted.
        columns: Our name → its own.
        json_columns: Our names of columns of type json or jsonb, which are compared as text.
    """

    name: str
    sql: str
    columns: Mapping[str, str]
    json_columns: frozenset[str]

    def column(self, name: str, alias: str) -> str:
        return f"{alias}.{_quote(self.columns[name])}"

    def _text(self, name: str, alias: str) -> str:
        return self.column(name, alias) + ("::text" if name in self.json_columns else "")

    def _given(self) -> str:
        return f"json_populate_recordset(NULL::{self.sql}, %(rows)s::json) s"

    def _parameters(self, rows: Sequence[Json]) -> Json:
        own = [{self.columns[k]: v for k, v in row.items() if k in self.columns} for row in rows]
        return {"rows": to_json(own).decode()}

    def insert_missing(
        self, conn: sa.Connection, rows: Sequence[Json], *, key: str, only_if: str = "true", dry_run: bool
    ) -> int:
        """Insert the rows whose key is not there yet; in a dry run only count them.

        Args:
            conn: An open transaction; the caller commits.
            rows: By our names of the columns; what the table lacks is left out.
            key: Our name of the unique column.
            only_if: SQL condition on the row `s`.
            dry_run: Write nothing.
        """
        new = (
            f"FROM {self._given()} WHERE {only_if} AND NOT EXISTS "  # names from the catalog, quoted
            f"(SELECT FROM {self.sql} x WHERE {self.column(key, 'x')} = {self.column(key, 's')})"
        )
        if dry_run:
            return int(conn.exec_driver_sql(f"SELECT count(*) {new}", self._parameters(rows)).scalar_one())
        names = [n for n in rows[0] if n in self.columns]
        into = ", ".join(_quote(self.columns[n]) for n in names)
        values = ", ".join(self.column(n, "s") for n in names)
        statement = f"INSERT INTO {self.sql} ({into}) SELECT {values} {new}"
        return conn.exec_driver_sql(statement, self._parameters(rows)).rowcount

    def update_changed(
        self,
        conn: sa.Connection,
        rows: Sequence[Json],
        values: Mapping[str, str],
        *,
        key: str = "id",
        touch: Mapping[str, str] | None = None,
        more: Json | None = None,
        dry_run: bool,
    ) -> int:
        """Update the rows that hold other values; in a dry run only count them.

        Args:
            conn: An open transaction; the caller commits.
            rows: By our names of the columns.
            values: Our name of a column → SQL of its new value, of the table's row `x` and the given row `s`.
            key: Our name of the column that finds the row.
            touch: The same for columns whose new value is no reason to write.
            more: Parameters that the SQL names.
            dry_run: Write nothing.
        """
        compared = [n for n in values if n in self.columns]
        cast = {n: "::text" if n in self.json_columns else "" for n in compared}
        if not compared:
            return 0
        old = ", ".join(self._text(n, "x") for n in compared)
        new = ", ".join(f"({values[n]}){cast[n]}" for n in compared)
        where = f"{self.column(key, 'x')} = {self.column(key, 's')} AND ROW({old}) IS DISTINCT FROM ROW({new})"
        parameters = self._parameters(rows) | (more or {})
        if dry_run:
            count = f"SELECT count(*) FROM {self.sql} x, {self._given()} WHERE {where}"  # noqa: S608
            return int(conn.exec_driver_sql(count, parameters).scalar_one())
        written = {**values, **(touch or {})}
        sets = ", ".join(f"{_quote(self.columns[n])} = {v}" for n, v in written.items() if n in self.columns)
        statement = f"UPDATE {self.sql} x SET {sets} FROM {self._given()} WHERE {where}"  # noqa: S608
        return conn.exec_driver_sql(statement, parameters).rowcount

    def find_others(self, conn: sa.Connection, rows: Sequence[Json], *, key: str) -> list[str]:
        """Keys of given rows under which the table holds a row with another id: another writer's."""
        query = (
            f"SELECT {self.column(key, 's')}::text FROM {self._given()} JOIN {self.sql} x "  # noqa: S608
            f"ON {self.column(key, 'x')} = {self.column(key, 's')} WHERE {self.column('id', 'x')} <> {self.column('id', 's')}"
        )
        return list(conn.exec_driver_sql(query, self._parameters(rows)).scalars())

    def count_present(self, conn: sa.Connection, rows: Sequence[Json], *, key: str = "id") -> int:
        """How many of the given rows the table holds, by our name of a unique column."""
        query = f"SELECT count(*) FROM {self.sql} x WHERE {self.column(key, 'x')} = ANY(%(keys)s)"  # noqa: S608
        return int(conn.exec_driver_sql(query, {"keys": [r[key] for r in rows]}).scalar_one())


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedTables:
    """What can be published into one database.

    Attributes:
        tables: By our names.
        absent: A sentence for each table or column that the game does not have.
        denied: A sentence for each table that our role may not write, with the GRANT.
        is_read_only: Whether the connection may write nothing at all.
    """

    tables: Mapping[str, PublishedTable]
    absent: tuple[str, ...]
    denied: tuple[str, ...]
    is_read_only: bool


@dataclass(slots=True)
class _Found:
    """A table of the catalog."""

    sql: str
    types: dict[str, str] = field(default_factory=dict)
    required: set[str] = field(default_factory=set)
    denied: dict[str, set[str]] = field(default_factory=dict)


def find_published_tables(conn: sa.Connection) -> PublishedTables:
    """Look the tables up in the catalog, in any spelling: letters are compared without case and underscores.

    Needs no privilege but CONNECT.
    """
    role, read_only, catalog = conn.exec_driver_sql(_CATALOG, {"names": [_plain(n) for n in TABLES]}).one()
    spellings: dict[str, dict[str, _Found]] = {}
    for table, sql, column, kind, must_be_given, may in json.loads(catalog):
        found = spellings.setdefault(_plain(table), {}).setdefault(table, _Found(sql))
        found.types[column] = kind
        if must_be_given:
            found.required.add(column)
        for right, is_granted in may.items():
            if not is_granted:
                found.denied.setdefault(right, set()).add(column)
    tables: dict[str, PublishedTable] = {}
    absent, denied = [], []
    for name in TABLES:
        candidates = spellings.get(_plain(name), {})
        if not candidates:
            absent.append(f"the game has no table {name!r}, so nothing of it is written")
            continue
        own = candidates.get(name) or min(candidates.items())[1]
        table, sentences = _map_table(name, own)
        absent += sentences
        if table is not None:
            tables[name] = table
            denied += _explain_denial(table, own, role)
    return PublishedTables(tables=tables, absent=tuple(absent), denied=tuple(denied), is_read_only=read_only == "on")


_CATALOG: Final = (
    "SELECT current_user::text, current_setting('transaction_read_only'), coalesce(json_agg(json_build_array("
    "c.relname, c.oid::regclass::text, a.attname, format_type(a.atttypid, a.atttypmod), "
    "a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', json_build_object("
    "'SELECT', has_column_privilege(c.oid, a.attnum, 'SELECT'), "
    "'INSERT', has_column_privilege(c.oid, a.attnum, 'INSERT'), "
    # The plain name comes last, so that it overwrites another one of the same letters.
    "'UPDATE', has_column_privilege(c.oid, a.attnum, 'UPDATE'))) "
    "ORDER BY a.attname = lower(a.attname), a.attname)::text, '[]') "
    "FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
    "WHERE lower(replace(c.relname, '_', '')) = ANY(%(names)s) AND c.relkind IN ('r', 'p') "
    "AND pg_table_is_visible(c.oid) AND a.attnum > 0 AND NOT a.attisdropped"
)


def _map_table(name: str, found: _Found) -> tuple[PublishedTable | None, list[str]]:
    by_letters = {_plain(c): c for c in found.types}
    columns = {ours: by_letters[_plain(ours)] for ours in _COLUMNS[name] if _plain(ours) in by_letters}
    missing = [c for c in _COLUMNS[name] if c not in columns]
    kinds = ", ".join(repr(c) for c in missing)
    if required := [c for c in missing if c in _REQUIRED[name]]:
        return None, [
            f"the game's table {name!r} has no column {required[0]!r} in any spelling, so nothing of it is written"
        ]
    if name == "trajectories" and set(REWARD_COLUMNS) <= set(missing):
        return None, [f"the game's table {name!r} has none of the columns {kinds}, so no rewards are written into it"]
    if name != "trajectories" and (unknown := sorted(found.required - set(columns.values()))):
        return None, [
            f"the game's table {name!r} wants a value for column {unknown[0]!r}, which we do not know, so nothing of it is written"
        ]
    sentences = [f"the game's table {name!r} has no column {kinds}, so that is not written"] if missing else []
    table = PublishedTable(
        name=name,
        sql=found.sql,
        columns=columns,
        json_columns=frozenset(ours for ours, c in columns.items() if found.types[c] in ("json", "jsonb")),
    )
    return table, sentences


def _explain_denial(table: PublishedTable, found: _Found, role: str) -> list[str]:
    written = {"UPDATE": set(table.columns) - {"id", "trajectory_id"}}
    if table.name != "trajectories":
        written["INSERT"] = set(table.columns)
    written["SELECT"] = set(table.columns)
    lacking = [
        right for right, names in written.items() if {table.columns[n] for n in names} & found.denied.get(right, set())
    ]
    if not lacking:
        return []
    rights = ", ".join(_name_right(right, table) for right in sorted(lacking))
    return [f"GRANT {rights} ON {table.sql} TO {_quote(role)};"]


def _name_right(right: str, table: PublishedTable) -> str:
    if right != "UPDATE" or table.name != "trajectories":
        return right
    return f"UPDATE ({', '.join(_quote(c) for n, c in table.columns.items() if n in REWARD_COLUMNS)})"


def describe_row(table: PublishedTable, row: Json) -> Mapping[str, Any]:
    """A row as the table will hold it, by the table's own names."""
    return {table.columns[k]: v for k, v in row.items() if k in table.columns}


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
