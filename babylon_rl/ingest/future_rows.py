"""The rows of hours that have not come, found without parsing any of them.

What belongs here: reading them from the game's tables. That they are quarantined is `pipeline/discover.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from babylon_rl.ingest.columns import find_column_names
from babylon_rl.ingest.queries import fingerprint_future_rows, select_future_rows
from babylon_rl.types import RowOutcome, RowReason, RowStatus
from babylon_rl.windows import HourWindow

_CHUNK: Final = 2_000


def fingerprint(conn: sa.Connection, newest: HourWindow) -> str:
    """One text that stands for all rows of hours after `newest` and the hours they name: `0:0` when there are none.

    `store.row_outcomes.fingerprint_outcomes_after` says the same of the outcomes that are kept.
    """
    statement = fingerprint_future_rows(find_column_names(conn))
    return str(conn.exec_driver_sql(statement, _parameters(newest)).scalar_one())


def stream_future_rows(conn: sa.Connection, newest: HourWindow) -> Iterator[list[RowOutcome]]:
    """The outcome of every row of an hour after `newest`, in lists of at most 2,000."""
    statement = select_future_rows(find_column_names(conn))
    found = conn.execution_options(stream_results=True).exec_driver_sql(statement, _parameters(newest))
    for rows in found.mappings().partitions(_CHUNK):
        yield [_quarantine(r) for r in rows]


def windows_of_future_rows(conn: sa.Connection, newest: HourWindow, ids: Sequence[str]) -> dict[str, str]:
    """Source id → window id of those of `ids` that are rows of an hour after `newest`."""
    statement = select_future_rows(find_column_names(conn), of_ids=True)
    rows = conn.exec_driver_sql(statement, {**_parameters(newest), "ids": list(ids)}).mappings()
    return {r["id"]: r["window_id"] for r in rows}


def _parameters(newest: HourWindow) -> dict[str, object]:
    return {"newest": str(newest), "end_at": newest.end_at.replace(tzinfo=None)}


def _quarantine(row: Mapping[Any, Any]) -> RowOutcome:
    return RowOutcome(
        source_id=row["id"],
        trajectory_id=row["trajectory_id"],
        agent_id=row["agent_id"],
        window_id=row["window_id"],
        status=RowStatus.QUARANTINED,
        reason=RowReason.FUTURE_WINDOW,
    )
