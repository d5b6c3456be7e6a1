"""`raw_trajectories`: read a window's rows, stitch them per agent, and account for every row."""

from collections import Counter

import sqlalchemy as sa

from babylon_rl.grouping.groups import SET_ASIDE, dispositions_of
from babylon_rl.ingest.reader import stream_window, window_ids
from babylon_rl.ingest.stitching import stitch, usable
from babylon_rl.ingest.window_summary import count_changes, refresh
from babylon_rl.pipeline.window_result import WindowResult
from babylon_rl.store.windows import PackedTrajectory, Store
from babylon_rl.types import Disposition
from babylon_rl.windows import HourWindow


def ingest_window(window: HourWindow, game: sa.Engine, store: Store) -> WindowResult:
    """Read a window's rows, stitch them per agent, keep them, and account for every row."""
    # Before the rows are read: what changes after that is seen to have changed.
    refresh(game, store.engine, windows=[window])
    seen = count_changes(store.engine, [window])
    packed: list[PackedTrajectory] = []
    ends: list[Disposition] = []
    # A row rewritten while the window is read belongs to one version of it, not to two.
    with game.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        for agent in stream_window(conn, window):
            packed += [PackedTrajectory.of(t) for t in stitch(agent.rows) if usable(t)]
            ends += [*agent.aside, *dispositions_of(window, agent.rows, None)]
        read = len(window_ids(conn, window))
    version, changed = store.write_ingest(window, packed, ends, rows=read, changes_seen=seen)
    ended = Counter(d.disposition if d.disposition in SET_ASIDE else "usable" for d in ends)
    return WindowResult(
        data_version=version,
        changed=changed,
        count=len(packed),
        facts={
            "rows": read,
            "agents": len({t.agent_id for t in packed}),
            "set_aside": len(ends) - ended["usable"],
            "trajectories": len(packed),
        },
    )
