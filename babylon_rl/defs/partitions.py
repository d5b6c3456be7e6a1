"""The hourly partitions: a partition key is Babylon's `windowId`, the same string.

The one place that reads settings at import: Dagster fixes a code location's partitions when it loads it.
"""

from datetime import datetime
from typing import Final

import dagster as dg

from babylon_rl.settings import Settings
from babylon_rl.windows import WINDOW_FMT, HourWindow


def hourly(start: str) -> dg.HourlyPartitionsDefinition:
    """All closed hours from `start` on. `end_offset` stays 0: the open hour is no partition yet."""
    first: datetime = HourWindow.parse(start).start_at
    return dg.HourlyPartitionsDefinition(start_date=first, fmt=WINDOW_FMT, timezone="UTC")


HOURLY: Final = hourly(Settings.load().start)
