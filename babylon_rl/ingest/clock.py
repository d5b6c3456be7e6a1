"""The clock by which a database writes `created_at`: `now()` there is in the session's time zone, not always in UTC.

What belongs here: finding how far such an instant lies from UTC, by rows whose true time is known, and reading the
outcomes' instants right. Nothing is decided by `created_at` where it can be decided by `start_time` or `end_time`.

A row of `trajectories` is written within moments of its `end_time`, which the game writes in UTC. So `created_at - end_time`
is about 0 where `created_at` is in UTC too, and else about the zone's offset: a multiple of a quarter of an hour. A zone
with summer time has one offset before a change and another after it, so each hour of rows speaks for itself.
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from babylon_rl.ingest.columns import ColumnNames

logger = logging.getLogger(__name__)

QUARTER_S: Final = 900
MIN_ROWS: Final = 5  # fewer that agree say nothing
_PROMPT_S: Final = 300  # a row that was written later than this after its end does not count
_FARTHEST_S: Final = 14 * 3600  # no zone lies farther from UTC
_SHORTEST: Final = timedelta(hours=24)  # hours whose rows were all written late are no change of the clock
_KEPT_S: Final = 600  # how long an open connection believes what was found
_CACHE: Final = "babylon_rl_clock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """How far a database's `created_at` lies from UTC.

    Attributes:
        offsets: From an instant on (naive, UTC) `created_at` less this is UTC, in time order; the first holds for all that
            was before it too. Empty: it cannot be known, and UTC is assumed.
    """

    offsets: tuple[tuple[datetime, timedelta], ...]

    def offset_at(self, at: datetime) -> timedelta | None:
        """The offset at an instant (naive, UTC); None where it is unknown."""
        known = [offset for since, offset in self.offsets if since <= at] or [o for _, o in self.offsets[:1]]
        return known[-1] if known else None

    def in_utc(self, column: str) -> str:
        """SQL of `created_at`, a column's name, in UTC. The hour that summer time repeats is read as its second pass."""
        if not any(offset for _, offset in self.offsets):
            return column
        (_, first), *later = self.offsets
        cases = " ".join(
            f"WHEN {column}::timestamp >= '{since + offset}' THEN {_less(column, offset)}"
            for since, offset in later[::-1]
        )
        return f"(CASE {cases} ELSE {_less(column, first)} END)" if later else f"({_less(column, first)})"


UTC_CLOCK: Final = Clock(offsets=((datetime(1970, 1, 1), timedelta()),))  # noqa: DTZ001  # naive, as the columns are


def _less(column: str, offset: timedelta) -> str:
    return f"{column}::timestamp - interval '{offset.total_seconds():.0f} seconds'"


def find_clock(conn: sa.Connection, names: ColumnNames) -> Clock:
    """Find the offset of this database's `created_at` from the rows of `trajectories`; their steps are not read.

    An hour's rows have the offset on which half of them agree. It counts where at least `MIN_ROWS` rows of hours in
    succession have it, and these hours span a day or are the newest.

    Args:
        conn: On the game's database. An open connection keeps what was found for ten minutes.
        names: Of `find_column_names`.
    """
    known: tuple[float, Clock] | None = conn.info.get(_CACHE)
    if known is not None and time.monotonic() - known[0] < _KEPT_S:
        return known[1]
    clock = _compute_clock(conn, names)
    conn.info[_CACHE] = (time.monotonic(), clock)
    if not clock.offsets:
        logger.info("the time zone of created_at is unknown, and UTC is assumed")
    elif clock.offsets[-1][1]:
        logger.info("created_at lies off UTC minutes=%d", clock.offsets[-1][1].total_seconds() // 60)
    return clock


def _compute_clock(conn: sa.Connection, names: ColumnNames) -> Clock:
    end, created_at = names.trajectories["end_time"], names.trajectory_created_at
    if created_at is None or end.startswith("NULL"):
        return Clock(offsets=())
    query = (
        # By whole minutes, because an interval is cut faster than its seconds are computed.
        f"SELECT date_trunc('hour', {end}::timestamp), date_trunc('minute', {created_at}::timestamp - {end}::timestamp), "  # noqa: S608
        "count(*)::int FROM trajectories "
        # A row of the year 9999 would else be the newest for ever.
        f"WHERE {end} < (now() AT TIME ZONE 'UTC') + interval '1 day' AND {end} >= '1970-01-01' "
        f"AND {created_at} >= '1970-01-01' AND {created_at} < '9999-01-01' GROUP BY 1, 2"
    )
    hours: defaultdict[datetime, Counter[int | None]] = defaultdict(Counter)
    for hour, delay, rows in conn.exec_driver_sql(query):
        hours[hour][_find_offset_s(delay)] += rows
    votes = []
    for hour, counted in sorted(hours.items()):
        offset_s, rows = max(counted.items(), key=lambda x: (x[0] is not None, x[1], -abs(x[0] or 0)))
        if offset_s is not None and rows * 2 >= counted.total():
            votes.append((hour, offset_s, rows))
    return Clock(offsets=tuple(_find_runs(votes)))


def _find_offset_s(delay: timedelta) -> int | None:
    """The offset of a row that was written just after its end, by `created_at - end_time`; None for any other row."""
    offset_s = round(delay.total_seconds() / QUARTER_S) * QUARTER_S
    is_prompt = abs(delay.total_seconds() - offset_s) <= _PROMPT_S
    return offset_s if is_prompt and abs(offset_s) <= _FARTHEST_S else None


@dataclass(slots=True, kw_only=True)
class _Run:
    """Hours in succession whose rows have one offset."""

    offset_s: int
    first: datetime
    last: datetime
    rows: int

    @property
    def is_short(self) -> bool:
        return self.last - self.first < _SHORTEST


def _find_runs(votes: Iterable[tuple[datetime, int, int]]) -> list[tuple[datetime, timedelta]]:
    """When each offset began to hold, from (hour, offset in seconds, rows), in time order."""
    runs: list[_Run] = []
    for hour, offset_s, rows in votes:
        # A few hours of another offset, with the same before and after them: their rows were written late.
        if len(runs) > 1 and runs[-1].is_short and runs[-2].offset_s == offset_s:
            runs.pop()
        if runs and runs[-1].offset_s == offset_s:
            runs[-1].last = hour
            runs[-1].rows += rows
        else:
            runs.append(_Run(offset_s=offset_s, first=hour, last=hour, rows=rows))
    kept = [r for r in runs if r.rows >= MIN_ROWS and not (r.is_short and r is not runs[-1])]
    changes = [
        r for before, r in zip([None, *kept], kept, strict=False) if before is None or before.offset_s != r.offset_s
    ]
    return [(r.first, timedelta(seconds=r.offset_s)) for r in changes]


def find_outcome_clock(conn: sa.Connection, names: ColumnNames) -> tuple[ColumnNames, Clock]:
    """The names with `created_at` of `market_outcomes` as an expression in UTC, and the clock that it was read by."""
    if not names.market_outcomes or names.outcomes_in_utc:
        return names, UTC_CLOCK
    clock = find_clock(conn, names)
    created_at = clock.in_utc(names.market_outcomes["created_at"])
    return replace(names, market_outcomes={**names.market_outcomes, "created_at": created_at}), clock
