"""The names that a database gives the game's columns, looked up in its catalog.

What belongs here: which columns we read, as which types, and what they are called. The statements built from these
names are `ingest/queries.py`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import sqlalchemy as sa

from babylon_rl.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnNames:
    """How one database writes the game's columns: our name → the name in SQL, quoted where it must be.

    A column that a database does not have is a typed null; a table it does not have is an empty mapping.
    """

    trajectories: Mapping[str, str]
    llm_call_logs: Mapping[str, str]
    market_outcomes: Mapping[str, str]


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
        ConfigError: There is no table `trajectories` on the search path, or it lacks a required column.
    """
    catalog = conn.exec_driver_sql(
        # One value, because this runs once a window and sixty rows take four times as long to fetch.
        "SELECT coalesce(json_agg(json_build_array(c.relname, a.attname) "
        # The plain name comes last, so that it overwrites another one of the same letters.
        "ORDER BY a.attname = lower(a.attname), a.attname)::text, '[]') "
        "FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
        "WHERE c.oid = ANY(ARRAY[to_regclass('trajectories'), to_regclass('llm_call_logs'), "
        "to_regclass('market_outcomes')]::oid[]) AND a.attnum > 0 AND NOT a.attisdropped"
    ).scalar_one()
    return _map_catalog(catalog)


@lru_cache(maxsize=16)
def _map_catalog(catalog: str) -> ColumnNames:
    columns: dict[str, dict[str, str]] = {}
    for table, column in json.loads(catalog):
        columns.setdefault(table, {})[_without_case(column)] = column
    if "trajectories" not in columns:
        raise ConfigError(
            "the game's database has no table 'trajectories' on its search path; check DATABASE_URL (and its ?schema=), "
            "or run `babylon-rl migrate` when the database is ours"
        )
    mapped = {t: _map_columns(t, columns[t]) if t in columns else {} for t in COLUMN_TYPES}
    return ColumnNames(
        trajectories=mapped["trajectories"],
        llm_call_logs=mapped["llm_call_logs"],
        market_outcomes=mapped["market_outcomes"],
    )


def _without_case(column: str) -> str:
    return column.replace("_", "").lower()


def _map_columns(table: str, columns: Mapping[str, str]) -> dict[str, str]:
    mapped = {}
    for ours, kind in COLUMN_TYPES[table].items():
        column = columns.get(_without_case(ours))
        if column is None and kind.endswith("!"):
            raise ConfigError(
                f"table {table!r} of the game's database has no column {ours!r} in any spelling; found "
                f"{', '.join(sorted(columns.values()))[:400]}; expected the game's schema"
            )
        mapped[ours] = f"NULL::{kind}" if column is None else '"' + column.replace('"', '""') + '"'
    return mapped
