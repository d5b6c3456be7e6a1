"""The windows of an hour: one for each scenario that has a group; while there is none, the hour itself.

Rows and outcomes are an hour's. Groups, judgments, checks and trainings are a window's: of the hour, or of one scenario of it.
"""

from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from babylon_rl.database import tables as t
from babylon_rl.windows import HourWindow


def windows_of(engine: sa.Engine, hours: Iterable[HourWindow]) -> dict[HourWindow, list[HourWindow]]:
    """The windows of each of `hours`, in order; a window of one scenario stands for itself."""
    with engine.connect() as conn:
        return read_windows_of(conn, hours)


def read_windows_of(conn: sa.Connection, hours: Iterable[HourWindow]) -> dict[HourWindow, list[HourWindow]]:
    """The same in the caller's transaction."""
    asked = list(hours)
    g = t.contextualized_groups.c
    query = sa.select(g.hour_id, g.window_id).where(g.hour_id.in_([str(w) for w in asked if not w.scenario]))
    found: dict[str, list[HourWindow]] = {}
    for hour_id, window_id in conn.execute(query):
        found.setdefault(hour_id, []).append(HourWindow.parse(window_id))
    return {w: sorted(found.get(str(w), [w])) for w in asked}


def delete_of_hour(conn: sa.Connection, hour: HourWindow, tables: Sequence[sa.Table]) -> None:
    """Delete what each table holds of the hour or of a scenario of it. The caller holds the hour's lock, and commits."""
    ids = [str(hour), *map(str, read_windows_of(conn, [hour])[hour])]
    for table in tables:
        conn.execute(sa.delete(table).where(table.c.window_id.in_(ids)))
