"""Finding what the game recorded: windows are counted, and rows of hours that have not come are quarantined."""

import logging
from datetime import datetime

import sqlalchemy as sa

from babylon_rl.ingest import future_rows
from babylon_rl.ingest.window_summary import may_have_future_rows, newest_window, refresh
from babylon_rl.store.row_outcomes import (
    delete_future_outcomes,
    fingerprint_outcomes_after,
    stream_future_outcomes,
    write_missing_outcomes,
)

logger = logging.getLogger(__name__)


def discover(game: sa.Engine, ours: sa.Engine, *, now: datetime, full: bool = False) -> int:
    """Bring the counts of recorded windows up to date, and account for the rows of hours that have not come.

    Args:
        game: The game's tables; only read.
        ours: Schema `babylon_rl`; the same engine where they share a database.
        now: Aware; hours up to the one of `now` + 1 h have come.
        full: As in `refresh`.

    Returns:
        How many windows were counted again.
    """
    counted = refresh(game, ours, now=now, full=full)
    quarantine_future_rows(game, ours, now=now)
    return counted


def quarantine_future_rows(game: sa.Engine, ours: sa.Engine, *, now: datetime) -> None:
    """Give every row of an hour after `now` + 1 h its outcome, and take it from rows that are gone or have moved.

    A row that has another outcome keeps it: the window that it came from is read again, and then it has none. When
    its hour has come, reading the window replaces what is written here. Costs two lookups where there is no such row.
    """
    newest = newest_window(now)
    accounted = fingerprint_outcomes_after(ours, newest)
    if accounted == "0:0" and not may_have_future_rows(game, ours, newest):
        return
    with game.connect() as conn:
        if future_rows.fingerprint(conn, newest) == accounted:
            return
        for outcomes in stream_future_outcomes(ours, newest):
            present = future_rows.windows_of_future_rows(conn, newest, list(outcomes))
            delete_future_outcomes(ours, [i for i, window_id in outcomes.items() if present.get(i) != window_id])
        written = 0
        for rows in future_rows.stream_future_rows(conn, newest):
            written += write_missing_outcomes(ours, rows)
    if written:
        logger.warning("quarantined rows of hours after %s: %d", newest, written)
