"""The names that a database gives the game's columns, looked up in its catalog.

What belongs here: which columns we read, as which types, and what they are called. The statements built from these
names are `ingest/queries.py`.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import sqlalchemy as sa

from babylon_rl.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnNames:
    """How one database writes the game's columns: our name → the name in SQL, quoted where it must be.

    A column that a database does not have is a typed null; a table it does not have is an empty mapping. So is what our
    role may not read: `unreadable` says so, in a sentence for each table.

    Attributes:
        trajectory_created_at: When a row of `trajectories` was written, by a clock that need not be UTC; None: no such column.
        outcomes_in_utc: Whether the server itself writes `market_outcomes.created_at` in UTC.
    """

    trajectories: Mapping[str, str]
    llm_call_logs: Mapping[str, str]
    market_outcomes: Mapping[str, str]
    trajectory_created_at: str | None = None
    outcomes_in_utc: bool = True
    unreadable: tuple[str, ...] = ()


# Our name → the type it is read as, whatever the database declares; a `!` marks a required column.
_TRAJECTORY_COLUMNS: Final = {
    "id": "text!",
    "trajectory_id": "text!",
    "agent_id": "text!",
    "start_time": "timestamp!",
    "end_time": "timestamp",
    "window_id": "text",
    "scenario_id": "text",
    "steps_json": "text!",
    "metadata_json": "text",
    "final_balance": "float8",
    "final_pnl": "float8",
    "is_training_data": "boolean",
    "is_evaluation": "boolean",
    "archetype": "text",
}
_CALL_COLUMNS: Final = {
    "trajectory_id": "text!",
    "step_id": "text",
    "call_id": "text",
    "timestamp": "timestamp!",
    "purpose": "text",
    "system_prompt": "text!",
    "user_prompt": "text!",
    "response": "text!",
    "temperature": "float8",
    "max_tokens": "float8",
    "completion_tokens": "float8",
    "metadata": "text",
}
_OUTCOME_COLUMNS: Final = {
    "id": "text!",
    "window_id": "text!",
    "stock_ticker": "text",
    "start_price": "numeric",
    "end_price": "numeric",
    "change_percent": "numeric",
    "sentiment": "text",
    "news_events": "text",
    "prediction_market_id": "text",
    "question": "text",
    "outcome": "text",
    "final_probability": "numeric",
    "created_at": "timestamp",
}
COLUMN_TYPES: Final = {
    "trajectories": _TRAJECTORY_COLUMNS,
    "llm_call_logs": _CALL_COLUMNS,
    "market_outcomes": _OUTCOME_COLUMNS,
}


def find_column_names(conn: sa.Connection) -> ColumnNames:
    """Look up in the catalog how this database writes the game's columns; no setting is needed.

    `finalPnL`, `final_pnl` and `finalPnl` are one column: letters are compared without case and underscores, and a
    name written exactly as ours wins. Needs no privilege but CONNECT.

    Raises:
        ConfigError: There is no table `trajectories` on the search path, it lacks a required column, or our role may not
            read it.
    """
    return _map_catalog(conn.exec_driver_sql(_CATALOG).scalar_one())


# One value, because this runs once a window and sixty rows take four times as long to fetch.
_CATALOG: Final = (
    "SELECT json_build_object('role', current_user, 'columns', coalesce(json_agg(json_build_array("
    "c.relname, a.attname, has_column_privilege(c.oid, a.attnum, 'SELECT'), c.oid::regclass::text, "
    "a.atttypid = 'timestamptz'::regtype OR coalesce(pg_get_expr(d.adbin, d.adrelid) ~* 'utc', false)) "
    # The plain name comes last, so that it overwrites another one of the same letters.
    "ORDER BY a.attname = lower(a.attname), a.attname), '[]'))::text "
    "FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
    "LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum "
    "WHERE c.oid = ANY(ARRAY[to_regclass('trajectories'), to_regclass('llm_call_logs'), "
    "to_regclass('market_outcomes')]::oid[]) AND a.attnum > 0 AND NOT a.attisdropped"
)


@lru_cache(maxsize=16)
def _map_catalog(catalog: str) -> ColumnNames:
    found = json.loads(catalog)
    columns: dict[str, dict[str, str]] = {}
    denied: dict[str, list[str]] = {}
    names_in_sql: dict[str, str] = {}
    in_utc: set[str] = set()
    for table, column, is_readable, name_in_sql, is_in_utc in found["columns"]:
        names_in_sql[table] = name_in_sql
        readable = columns.setdefault(table, {})
        if not is_readable:
            denied.setdefault(table, []).append(column)
            continue
        readable[ignore_case(column)] = column
        if table == "market_outcomes" and is_in_utc:
            in_utc.add(ignore_case(column))
    if "trajectories" not in columns:
        raise ConfigError(
            "the game's database has no table 'trajectories' on its search path; check DATABASE_URL (and its ?schema=), "
            "or run `babylon-rl migrate` when the database is ours"
        )
    mapped, unreadable = {}, []
    for table in COLUMN_TYPES:
        sentence = _explain_denial(table, denied.get(table, ()), names_in_sql.get(table, table), found["role"])
        if sentence is not None:
            if table == "trajectories":
                raise ConfigError(sentence)
            unreadable.append(sentence)
            logger.warning("%s", sentence)
        mapped[table] = {} if sentence is not None or table not in columns else _map_columns(table, columns[table])
    created_at = columns["trajectories"].get(ignore_case("created_at"))
    return ColumnNames(
        trajectories=mapped["trajectories"],
        llm_call_logs=mapped["llm_call_logs"],
        market_outcomes=mapped["market_outcomes"],
        trajectory_created_at=None if created_at is None else _quote(created_at),
        outcomes_in_utc=ignore_case("created_at") in in_utc,
        unreadable=tuple(unreadable),
    )


def _explain_denial(table: str, denied: Sequence[str], name_in_sql: str, role: str) -> str | None:
    """Why a table cannot be read by `role`, and the cure; None where all that we read of it is readable."""
    wanted = {ignore_case(c) for c in COLUMN_TYPES[table]}
    missing = [c for c in denied if ignore_case(c) in wanted]
    if not missing:
        return None
    return (
        f"role {role!r} may not read table {table!r} of the game's database (column {missing[0]!r}"
        f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}); as its owner run: "
        f"GRANT SELECT ON {name_in_sql} TO {_quote(role)};"
    )


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def ignore_case(column: str) -> str:
    """A column's name as it is compared: every spelling of one name gives the same."""
    return column.replace("_", "").lower()


def _map_columns(table: str, columns: Mapping[str, str]) -> dict[str, str]:
    mapped = {}
    for ours, kind in COLUMN_TYPES[table].items():
        column = columns.get(ignore_case(ours))
        if column is None and kind.endswith("!"):
            raise ConfigError(
                f"table {table!r} of the game's database has no column {ours!r} in any spelling; found "
                f"{', '.join(sorted(columns.values()))[:400]}; expected the game's schema"
            )
        mapped[ours] = f"NULL::{kind}" if column is None else _quote(column)
    return mapped
