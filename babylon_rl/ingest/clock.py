"""The clock by which a database writes `created_at`: `now()` there is in the session's time zone, not always in UTC.

What belongs here: finding how far such an instant lies from UTC, by rows whose true time is known, and reading the
outcomes' instants right. Nothing is decided by `created_at` where it can be decided by `start_time` or `end_time`.

A row of `trajectories` is written within moments of its `end_time`, which the game writes in UTC. So `created_at - end_time`
is about 0 where `created_at` is in UTC too, and else about the zone's offset: a multiple of a quarter of an hour.
"""

import logging
import time
from collections import Counter
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

import sqlalchemy as sa

from babylon_rl.ingest.columns import ColumnNames

logger = logging.getLogger(__name__)

QUARTER_S: Final = 900
MIN_ROWS: Final = 5  # fewer that agree say nothing
_NEWEST: Final = 200
_PROMPT_S: Final = 300  # a row that was written later than this after its end does not count
_FARTHEST_S: Final = 14 * 3600  # no zone lies farther from UTC
_KEPT_S: Final = 600  # how long an open connection believes what was found: zones have summer time
_CACHE: Final = "babylon_rl_clock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """How far a database's `created_at` lies from UTC.

    Attributes:
        offset: `created_at` less this is UTC; None: it cannot be known, and UTC is assumed.
        rows: How many rows of `trajectories` agree on it; 0 where the server writes UTC by itself.
    """

    offset: timedelta | None
    rows: int = 0


def find_clock(conn: sa.Connection, names: ColumnNames) -> Clock:
    """Find the offset of this database's `created_at`, from the newest rows of `trajectories`.

    Args:
        conn: On the game's database, with schema and rights as usual.
        names: Of `find_column_names`.

    Returns:
        The offset on which at least `MIN_ROWS` of the 200 newest rows, and half of them, agree.
    """
    known: tuple[float, Clock] | None = conn.info.get(_CACHE)
    if known is not None and time.monotonic() - known[0] < _KEPT_S:
        return known[1]
    clock = _compute_clock(conn, names)
    conn.info[_CACHE] = (time.monotonic(), clock)
    if clock.offset is None:
        logger.info("the time zone of created_at is unknown; UTC is assumed rows=%d", clock.rows)
    elif clock.offset:
        logger.info("created_at lies off UTC minutes=%d rows=%d", clock.offset.total_seconds() // 60, clock.rows)
    return clock


def _compute_clock(conn: sa.Connection, names: ColumnNames) -> Clock:
    end, created_at = names.trajectories["end_time"], names.trajectory_created_at
    if created_at is None or end.startswith("NULL"):
        return Clock(offset=None)
    start = names.trajectories["start_time"]
    query = (
        f"SELECT extract(epoch FROM {created_at}::timestamp - {end}::timestamp)::float8 FROM trajectories "  # noqa: S608
        # A row of the year 9999 would else be among the newest for ever.
        f"WHERE {start} < (now() AT TIME ZONE 'UTC') + interval '1 day' AND isfinite({end}::timestamp) "
        f"AND isfinite({created_at}::timestamp) ORDER BY {start} DESC LIMIT {_NEWEST}"
    )
    delays_s = [float(d) for d in conn.exec_driver_sql(query).scalars()]
    offsets = Counter(
        round(d / QUARTER_S) * QUARTER_S for d in delays_s if abs(d) <= _FARTHEST_S + _PROMPT_S and _is_prompt(d)
    )
    if not offsets:
        return Clock(offset=None)
    offset_s, rows = max(offsets.items(), key=lambda x: (x[1], -abs(x[0])))
    if rows < MIN_ROWS or rows * 2 < len(delays_s):
        return Clock(offset=None, rows=rows)
    return Clock(offset=timedelta(seconds=offset_s), rows=rows)


def _is_prompt(delay_s: float) -> bool:
    """Whether a row can have been written just after its end, in some zone."""
    return abs(delay_s - round(delay_s / QUARTER_S) * QUARTER_S) <= _PROMPT_S


def find_outcome_clock(conn: sa.Connection, names: ColumnNames) -> tuple[ColumnNames, Clock]:
    """The names with `created_at` of `market_outcomes` as an expression in UTC, and the clock that it was read by."""
    if not names.market_outcomes or names.outcomes_in_utc:
        return names, Clock(offset=timedelta())
    clock = find_clock(conn, names)
    if not clock.offset:
        return names, clock
    column = names.market_outcomes["created_at"]
    in_utc = f"({column}::timestamp - interval '{clock.offset.total_seconds():.0f} seconds')"
    return replace(names, market_outcomes={**names.market_outcomes, "created_at": in_utc}), clock
