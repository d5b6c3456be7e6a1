"""`raw_trajectories`: read a window's rows, stitch them per agent, and account for every row."""

from collections.abc import Sequence
from contextlib import closing

import sqlalchemy as sa

from babylon_rl.ingest.columns import find_column_names
from babylon_rl.ingest.reader import stream_window, window_ids
from babylon_rl.ingest.stitching import is_usable, mark_as_read, stitch
from babylon_rl.ingest.window_summary import count_changes, refresh
from babylon_rl.pipeline.window_result import WindowResult
from babylon_rl.store.windows import PackedTrajectory, Store
from babylon_rl.types import RowOutcome
from babylon_rl.windows import HourWindow


def note_changes(windows: Sequence[HourWindow], game: sa.Engine, store: Store) -> dict[HourWindow, int]:
    """Count the rows of `windows` again; returns how often each was seen to change.

    Done before rows are read, so that a change after the reading raises the count.
    """
    # A window that is asked for by name has come: no partition is later than the clock.
    refresh(game, store.engine, now=max(windows).start_at, windows=windows)
    return count_changes(store.engine, windows)


def ingest_window(
    window: HourWindow, game: sa.Engine, store: Store, *, changes_seen: int | None = None
) -> WindowResult:
    """Read a window's rows, stitch them per agent, keep them, and account for every row.

    Args:
        window: The hour.
        game: The game's tables.
        store: Where the trajectories are kept.
        changes_seen: Of `note_changes`, for a window of many; None: count now.
    """
    if changes_seen is None:
        changes_seen = note_changes([window], game, store)[window]
    packed: list[PackedTrajectory] = []
    outcomes: list[RowOutcome] = []
    # One snapshot: a row rewritten while the window is read is read in one version, not in two.
    with (
        game.connect().execution_options(isolation_level="REPEATABLE READ") as conn,
        closing(stream_window(conn, window)) as agents,
    ):
        for agent in agents:
            packed += [PackedTrajectory.of(t) for t in stitch(agent.rows) if is_usable(t)]
            outcomes += [*agent.set_aside, *mark_as_read(agent.rows)]
        rows = len(window_ids(conn, window))
        unreadable = find_column_names(conn).unreadable
    version, changed = store.write_ingest(window, packed, outcomes, rows=rows, changes_seen=changes_seen)
    return WindowResult(
        data_version=version,
        changed=changed,
        count=len(packed),
        facts={
            "rows": rows,
            "agents": len({t.agent_id for t in packed}),
            "set_aside": sum(o.status.is_set_aside for o in outcomes),
            "trajectories": len(packed),
            **({"unreadable": list(unreadable)} if unreadable else {}),
        },
    )
