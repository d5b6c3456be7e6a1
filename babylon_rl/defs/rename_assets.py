"""Gives an asset another key in Dagster's own database, so that an older instance keeps its history.

Dagster has no command for this. In 1.13 a key is in columns (`asset_keys`, `event_logs`, `asset_event_tags`,
`asset_check_executions`) and inside serialized events and runs, always as `{"__class__": "AssetKey", "path": [...]}`;
and materializations downstream name it in two tags, from which Dagster tells whether they are stale.

What keeps the old key: step keys, job snapshots and the configuration of old runs, which record what those runs did.
Re-executing such a run with its old configuration is refused by Dagster; launch a new one. Rename while nothing runs
under the old key: a run or backfill in flight would go on writing it.
"""

import json
import logging

import sqlalchemy as sa

from babylon_rl.database.connection import connect

logger = logging.getLogger(__name__)

_INPUT_TAGS = ("dagster/input_data_version/", "dagster/input_event_pointer/")
_SERIALIZED = {  # table → the column with serialized objects
    "event_logs": "event",
    "asset_keys": "last_materialization",
    "asset_check_executions": "evaluation_event",
    "runs": "run_body",
}


def rename_asset(url: str, old: str, new: str) -> bool:
    """Rename an asset in one transaction; where the old key is unknown nothing happens.

    Args:
        url: Dagster's database.
        old: Name of the asset until now; a key of one component.
        new: Its name from now on. History under it, if there is any, stays and is joined.

    Returns:
        Whether anything was renamed.
    """
    engine = connect(url)
    try:
        with engine.begin() as conn:
            if conn.scalar(sa.text("SELECT to_regclass('asset_keys')")) is None:
                return False  # Dagster makes its tables when it first opens them
            keys = {"old": json.dumps([old]), "new": json.dumps([new])}
            # A second process waits here, and then finds the old key gone.
            if conn.scalar(sa.text("SELECT id FROM asset_keys WHERE asset_key = :old FOR UPDATE"), keys) is None:
                return False
            # Not silent: over a long history this takes a while, and nothing else shows on the screen.
            logger.warning("renaming asset in Dagster's database, once old=%s new=%s", old, new)
            _rename_serialized(conn, old, new)
            _rename_columns(conn, keys, old, new)
    finally:
        engine.dispose()
    logger.info("renamed asset old=%s new=%s", old, new)
    return True


def _rename_serialized(conn: sa.Connection, old: str, new: str) -> None:
    """Text as Dagster writes it. Inside a logged message its quotes are escaped, so messages stay as they are."""
    pairs = [(f'{{"__class__": "AssetKey", "path": ["{old}"]}}', f'{{"__class__": "AssetKey", "path": ["{new}"]}}')]
    pairs += [(f'"{tag}{old}": ', f'"{tag}{new}": ') for tag in _INPUT_TAGS]
    for table, column in _SERIALIZED.items():
        for before, after in pairs:
            statement = f"UPDATE {table} SET {column} = replace({column}, :a, :b) WHERE strpos({column}, :a) > 0"  # noqa: S608  constants
            conn.execute(sa.text(statement), {"a": before, "b": after})


def _rename_columns(conn: sa.Connection, keys: dict[str, str], old: str, new: str) -> None:
    for table in ("event_logs", "asset_event_tags", "asset_check_executions"):
        conn.execute(sa.text(f"UPDATE {table} SET asset_key = :new WHERE asset_key = :old"), keys)  # noqa: S608  constants
    for tag in _INPUT_TAGS:
        tags = {"a": tag + old, "b": tag + new}
        conn.execute(sa.text("UPDATE asset_event_tags SET key = :b WHERE key = :a"), tags)
    if conn.scalar(sa.text("SELECT id FROM asset_keys WHERE asset_key = :new"), keys) is None:
        conn.execute(sa.text("UPDATE asset_keys SET asset_key = :new WHERE asset_key = :old"), keys)
    else:
        conn.execute(sa.text("DELETE FROM asset_keys WHERE asset_key = :old"), keys)
    # Which partitions are materialized is cached here; Dagster counts anew what is missing.
    conn.execute(sa.text("UPDATE asset_keys SET cached_status_data = NULL WHERE asset_key = :new"), keys)
