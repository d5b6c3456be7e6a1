"""Which tables with facts about markets a game's database has, and what it calls their columns.

What belongs here: the look into the catalog. A table that is missing, or that our role may not read, is absent with a
sentence and never an error: a game may keep any part of them. What is computed from them is `ingest/game_facts.py`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

# Table as both generations of the game call it → our name of a column → its type; a `!` marks one that we cannot do without.
_WANTED: Final[Mapping[str, Mapping[str, str]]] = {
    "StockPrice": {
        "id": "text",
        "organization_id": "text!",
        "price": "float8!",
        "timestamp": "timestamp!",
        "is_snapshot": "boolean",
    },
    "Organization": {"id": "text!", "name": "text", "ticker": "text"},
    "PerpMarketSnapshot": {"ticker": "text!", "organization_id": "text!", "name": "text"},
    "PredictionPriceHistory": {
        "id": "text",
        "market_id": "text!",
        "yes_price": "float8!",
        "event_type": "text",
        "created_at": "timestamp!",
    },
    "Market": {
        "id": "text!",
        "question": "text!",
        "resolved": "boolean",
        "resolution": "text",
        "updated_at": "timestamp",
    },
    "Question": {
        "question_number": "text",
        "text": "text!",
        "outcome": "text",
        "resolved_outcome": "text",
        "resolution_date": "timestamp",
        "status": "text",
    },
}
# Any of these alone gives outcomes; the others only name or resolve markets.
SOURCES: Final = ("StockPrice", "PredictionPriceHistory", "Market")


@dataclass(frozen=True, slots=True, kw_only=True)
class FactTable:
    """One table in SQL.

    Attributes:
        sql: Its name with its schema, quoted.
        columns: Our name → the column, quoted and without a cast, so that an index can be used; a typed null where it has none.
    """

    sql: str
    columns: Mapping[str, str]

    def select(self, name: str) -> str:
        """A column as the type that we read, under our name. An instant that Python cannot hold is null."""
        column, kind = self.columns[name], self._kinds[name].rstrip("!")
        if kind == "timestamp":
            at = f"{column}::timestamp"
            return f"CASE WHEN {at} >= '0001-01-01' AND {at} < '10000-01-01' THEN {at} END AS \"{name}\""
        return f'{column}::{kind} AS "{name}"'

    @property
    def _kinds(self) -> Mapping[str, str]:
        return next(kinds for kinds in _WANTED.values() if kinds.keys() == self.columns.keys())


@dataclass(frozen=True, slots=True, kw_only=True)
class FactTables:
    """The tables that can be read, by the game's name, and why each of the others cannot.

    Attributes:
        absent: The game's name of a table → a sentence part, such as `there is no table "StockPrice"`.
    """

    tables: Mapping[str, FactTable]
    absent: Mapping[str, str]

    @property
    def has_sources(self) -> bool:
        """Whether any outcome can be computed."""
        return any(name in self.tables for name in SOURCES)

    def explain_absence(self) -> str:
        """Why no outcome can be computed: what was looked for, and what was found of it."""
        return "; ".join(self.absent[name] for name in SOURCES if name in self.absent)


def find_fact_tables(conn: sa.Connection) -> FactTables:
    """Look the tables up in the catalog, in any spelling: letters are compared without case and underscores.

    Needs no privilege but CONNECT.
    """
    role, catalog = conn.exec_driver_sql(
        "SELECT current_user::text, coalesce(json_agg(json_build_array(n.nspname, c.relname, a.attname, "
        "has_column_privilege(c.oid, a.attnum, 'SELECT')) ORDER BY a.attnum)::text, '[]') "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid "
        "WHERE lower(replace(c.relname, '_', '')) = ANY(%(names)s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f') "
        "AND pg_table_is_visible(c.oid) AND a.attnum > 0 AND NOT a.attisdropped",
        {"names": [_plain(name) for name in _WANTED]},
    ).one()
    found: dict[str, dict[tuple[str, str], dict[str, tuple[str, bool]]]] = {}
    for schema, table, column, readable in json.loads(catalog):
        columns = found.setdefault(_plain(table), {}).setdefault((schema, table), {})
        columns[_plain(column)] = (column, readable)
    tables, absent = {}, {}
    for name, kinds in _WANTED.items():
        spellings = found.get(_plain(name), {})
        if not spellings:
            absent[name] = f"there is no table {_quote(name)}"
            continue
        # The game's own spelling wins over another table of the same letters.
        (schema, table), columns = min(spellings.items(), key=lambda item: (item[0][1] != name, item[0]))
        problem = _find_problem(f"{_quote(schema)}.{_quote(table)}", role, kinds, columns)
        if problem is not None:
            absent[name] = problem
            continue
        tables[name] = FactTable(
            sql=f"{_quote(schema)}.{_quote(table)}",
            columns={
                ours: _quote(own[0]) if (own := columns.get(_plain(ours))) and own[1] else f"NULL::{kind.rstrip('!')}"
                for ours, kind in kinds.items()
            },
        )
    return FactTables(tables=tables, absent=absent)


def _find_problem(
    table: str, role: str, kinds: Mapping[str, str], columns: Mapping[str, tuple[str, bool]]
) -> str | None:
    required = [ours for ours, kind in kinds.items() if kind.endswith("!")]
    if missing := [ours for ours in required if _plain(ours) not in columns]:
        found = ", ".join(sorted(c for c, _ in columns.values()))[:200]
        return f"table {table} has no column {missing[0]!r} in any spelling (it has {found})"
    if not all(columns[_plain(ours)][1] for ours in required):
        return f"role {role!r} may not read {table}: GRANT SELECT ON {table} TO {_quote(role)}"
    return None


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
