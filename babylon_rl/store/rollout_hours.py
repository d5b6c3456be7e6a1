"""What is known of a rollout's hours before their calls are read: which there are, which are prepared, who asks.

The calls themselves are `store/served_calls.py`. Every query here goes by an index, whatever the number of calls.
"""

from collections.abc import Sequence

import sqlalchemy as sa

from babylon_rl.database import tables as t
from babylon_rl.deployment.evidence import MOST_USD
from babylon_rl.windows import HourWindow

RECENT_HOURS = 24


def count_calls_by_hour(engine: sa.Engine, rollout: str, *, up_to: HourWindow) -> dict[str, int]:
    """Hours in which agents were answered under a rollout → calls, in the order of hours."""
    c = t.served_calls.c
    hour = c.window_id.collate("C")
    query = (
        sa.select(c.window_id, sa.func.count()).where(c.rollout == rollout, hour <= str(up_to)).group_by(c.window_id)
    )
    with engine.connect() as conn:
        return dict(sorted(conn.execute(query).tuples()))


def next_hours(engine: sa.Engine, rollout: str, *, after: HourWindow | None, limit: int) -> list[HourWindow]:
    """The first hours of a rollout after one; None: from its beginning. One index probe each."""
    found: list[HourWindow] = []
    last = "" if after is None else str(after)
    query = sa.text("SELECT min(window_id) FROM babylon_rl.served_calls WHERE rollout = :rollout AND window_id > :last")
    with engine.connect() as conn:
        while len(found) < limit and (hour := conn.scalar(query, {"rollout": rollout, "last": last})) is not None:
            found.append(HourWindow.parse(hour))
            last = hour
    return found


def recent_agents(engine: sa.Engine, lineage: str, *, up_to: HourWindow) -> list[str]:
    """A lineage's agents that asked in the last `RECENT_HOURS` hours up to one, counted from the newest in which any did, by id."""
    c = t.served_calls.c
    known = (c.lineage == lineage, c.agent_id.is_not(None), c.window_id <= str(up_to))
    with engine.connect() as conn:
        newest = conn.scalar(sa.select(sa.func.max(c.window_id)).where(*known))
        if newest is None:
            return []
        since = str(HourWindow.parse(newest).next(1 - RECENT_HOURS))
        return sorted(conn.scalars(sa.select(c.agent_id).distinct().where(*known, c.window_id >= since)))


def earlier_pnl_usd(
    engine: sa.Engine, agents: Sequence[str], *, before: HourWindow, hours: int = 50
) -> dict[str, float]:
    """Each agent's mean P&L an hour, over the newest `hours` hours before one; agents without a known one are left out."""
    query = sa.text(
        """
        SELECT agent_id, avg(pnl_usd) AS mean FROM (
            SELECT agent_id, window_id, sum(pnl_usd) FILTER (WHERE abs(pnl_usd) < :most) AS pnl_usd FROM babylon_rl.window_trajectories
            WHERE window_id IN (SELECT window_id FROM babylon_rl.windows WHERE window_id < :before
                                ORDER BY window_id DESC LIMIT :hours)
              AND agent_id = ANY(:agents)
            GROUP BY agent_id, window_id
            -- NaN, which a double may be, is above every number
            HAVING count(*) = count(*) FILTER (WHERE abs(pnl_usd) < :most)) hours
        GROUP BY agent_id"""
    )
    with engine.connect() as conn:
        rows = conn.execute(query, {"before": str(before), "hours": hours, "agents": list(agents), "most": MOST_USD})
        return {r.agent_id: float(r.mean) for r in rows}


def read_versions(engine: sa.Engine, hours: Sequence[str]) -> dict[str, str]:
    """Prepared hours → a version of their rows and outcomes."""
    query = sa.text(
        """
        SELECT w.window_id, left(w.data_version, 16) || '/' || coalesce(left(o.data_version, 16), '') AS version
        FROM babylon_rl.windows w LEFT JOIN babylon_rl.window_outcomes o ON o.window_id = w.window_id
        WHERE w.window_id = ANY(:hours)"""
    )
    with engine.connect() as conn:
        return {r.window_id: r.version for r in conn.execute(query, {"hours": list(hours)})}


def newest_prepared(engine: sa.Engine, *, up_to: HourWindow) -> HourWindow | None:
    """The newest hour, not after `up_to`, whose rows were read."""
    c = t.windows.c
    with engine.connect() as conn:
        newest = conn.scalar(sa.select(sa.func.max(c.window_id)).where(c.window_id <= str(up_to)))
    return None if newest is None else HourWindow.parse(newest)
