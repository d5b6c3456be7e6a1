"""The UTC hour: Babylon's `windowId` and our partition key, the same string; and the scenario of an hour.

Agents of one hour faced the same market, unless their rows name scenarios: agents of different scenarios did not. So what
is compared, judged and trained on as one is a window: an hour, and of an hour with scenarios one of those.

What belongs here: parsing, arithmetic and ranges of windows. What does not: which row belongs to
which window (`ingest/queries.py`), and Dagster's partitions definition (`defs/partitions.py`).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Self
from urllib.parse import quote, unquote

from babylon_rl.errors import DataError

WINDOW_FMT: Final = "%Y-%m-%dT%H:%M"
HOUR: Final = timedelta(hours=1)
HOUR_ID_LENGTH: Final = 16  # letters of `2025-01-15T10:00`
_FORM = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:00")
_SCENARIO_MARK: Final = "~"
# A trajectory's id is `<window>/<agent>`, a group's `<window>#<digest>`; the other letters keep the id one word.
_ESCAPED: Final = re.compile(r"[%/#~\s]")


@dataclass(frozen=True, slots=True, order=True)
class HourWindow:
    """The half-open UTC hour `[start_at, end_at)`, or one scenario of it.

    Attributes:
        start_at: Aware, UTC, on the hour.
        scenario: Name of the scenario that agents of the hour faced; empty: its rows name none.
    """

    start_at: datetime
    scenario: str = ""

    def __post_init__(self) -> None:
        s = self.start_at
        if s.utcoffset() != timedelta(0) or (s.minute, s.second, s.microsecond) != (0, 0, 0):
            raise DataError(f"window start {s!r} is not a full UTC hour; pass an aware UTC hour")

    @classmethod
    def parse(cls, window_id: str) -> Self:
        """Read a window id such as `2025-01-15T10:00` or, of one scenario, `2025-01-15T10:00~trust-attack-01`.

        Dagster's own `has_partition_key` accepts `…T10:30`; this does not.

        Raises:
            DataError: The text is not a full UTC hour.
        """
        hour, mark, scenario = window_id.partition(_SCENARIO_MARK)
        if _FORM.fullmatch(hour) and bool(mark) == bool(scenario):
            try:
                return cls(datetime.strptime(hour, WINDOW_FMT).replace(tzinfo=UTC), unquote(scenario))
            except ValueError:
                pass
        raise DataError(
            f"window id {window_id!r} is not a UTC hour; expected the form '2025-01-15T10:00'",
            facts={"window_id": window_id},
        )

    @classmethod
    def parse_all(cls, window_ids: Iterable[str]) -> list[Self]:
        """Read many ids, in time order, without duplicates."""
        return sorted({cls.parse(w) for w in window_ids})

    @classmethod
    def parse_range(cls, span: str) -> list[Self]:
        """Read `2025-01-15T00:00..2025-01-16T00:00`, both ends included, or one window id.

        Raises:
            DataError: An end is not a full UTC hour, or the last lies before the first.
        """
        first, _, last = span.partition("..")
        windows = list(cls.parse(first.strip()).hour.until(cls.parse((last or first).strip()).hour))
        if not windows:
            raise DataError(f"windows {span!r} end before they begin; expected the form 'first..last'")
        return windows

    @classmethod
    def containing(cls, instant: datetime) -> Self:
        """The window that an aware instant falls in."""
        at = instant.astimezone(UTC)
        return cls(at.replace(minute=0, second=0, microsecond=0))

    @property
    def hour(self) -> Self:
        """Its whole hour, whatever the scenario: the partition."""
        return type(self)(self.start_at) if self.scenario else self

    def of_scenario(self, scenario: str) -> Self:
        """The part of its hour that agents of one scenario faced; empty: of none."""
        return type(self)(self.start_at, scenario)

    @property
    def end_at(self) -> datetime:
        return self.start_at + HOUR

    def next(self, hours: int = 1) -> Self:
        """The hour that comes `hours` later (earlier when negative)."""
        return type(self)(self.start_at + hours * HOUR)

    def closed_at(self, now: datetime) -> bool:
        """Whether the hour is over at `now`: an open hour's prices are not outcomes yet."""
        return now >= self.end_at

    def until(self, last: Self) -> Iterator[Self]:
        """This window and every one after it up to and including `last`."""
        w = self
        while w <= last:
            yield w
            w = w.next()

    def __contains__(self, instant: datetime) -> bool:
        return self.start_at <= instant < self.end_at

    def __str__(self) -> str:
        hour = self.start_at.isoformat(timespec="minutes")[:HOUR_ID_LENGTH]  # strftime drops leading zeros of a year
        return hour + _SCENARIO_MARK + _ESCAPED.sub(_escape, self.scenario) if self.scenario else hour


def _escape(letter: re.Match[str]) -> str:
    return "%7E" if letter[0] == _SCENARIO_MARK else quote(letter[0], safe="")
