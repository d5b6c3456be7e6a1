"""What the assets keep of each window's sources: stitched trajectories and outcomes; with groups and judgments, the store.

Every write of a window happens in one transaction under that window's advisory lock and changes nothing
when the data version is the same: same inputs, same bytes. Groups are `store/groups.py`, judgments `store/judgments.py`,
row outcomes `store/row_outcomes.py`, training's ledger is `store/ledger.py`.
"""

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import sqlalchemy as sa

from babylon_rl.common.canonical import digest, pack, pack_with_digest, unpack
from babylon_rl.database import tables as t
from babylon_rl.store.groups import GroupStore
from babylon_rl.store.hours import delete_of_hour
from babylon_rl.store.row_outcomes import version_entry, write_row_outcomes
from babylon_rl.store.window_lock import lock_window
from babylon_rl.types import (
    RowOutcome,
    Trajectory,
    WindowOutcomes,
)
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTrajectory:
    """A stitched trajectory, packed as it is stored, so that a window of any size fits in memory."""

    trajectory_id: str
    window_id: str
    agent_id: str
    turns: int
    pnl_usd: float | None
    digest: str
    body: bytes

    @classmethod
    def of(cls, x: Trajectory) -> "PackedTrajectory":
        """Pack one."""
        body, digest_ = pack_with_digest(x)
        return cls(
            trajectory_id=x.trajectory_id,
            window_id=x.window_id,
            agent_id=x.agent_id,
            turns=len(x.turns),
            pnl_usd=x.pnl_usd,
            digest=digest_,
            body=body,
        )


class Store(GroupStore):
    """What the assets keep of windows, judgments included, over one engine. Safe to use from several processes."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    # ── raw_trajectories ───────────────────────────────────────────────────────────────────────────
    def write_ingest(
        self,
        window: HourWindow,
        trajectories: Sequence[Trajectory | PackedTrajectory],
        outcomes: Sequence[RowOutcome],
        *,
        rows: int,
        changes_seen: int | None = None,
    ) -> tuple[str, bool]:
        """Keep a window's stitched trajectories and the outcomes of its rows.

        A new version deletes the window's current judgment and check results, which were about other rows. Its group
        stays until it is made again; meanwhile it is neither judged nor trained on (view `stale_windows`).

        Args:
            window: The hour.
            trajectories: One per agent, in any order.
            outcomes: One per row, in any order.
            rows: Rows read.
            changes_seen: `window_summary.changes` before they were read; None: unknown.

        Returns:
            The window's data version, and whether it is a new one. Where a later reading is stored already, that one stays.
        """
        packed = [x if isinstance(x, PackedTrajectory) else PackedTrajectory.of(x) for x in trajectories]
        packed.sort(key=lambda x: x.trajectory_id)
        ordered = sorted(outcomes, key=lambda o: o.source_id)
        version = digest([[x.digest for x in packed], [version_entry(o) for o in ordered]])
        w = str(window)
        d = t.row_outcomes.c
        with lock_window(self.engine, window) as conn:
            stored = _read_version(conn, t.windows, w)
            if stored is not None and _is_older(changes_seen, stored):
                logger.info("kept a later reading of the rows window=%s", w)
                return str(stored["data_version"]), False
            if stored is not None and stored["data_version"] == version:
                conn.execute(sa.update(t.windows).where(t.windows.c.window_id == w).values(changes_seen=changes_seen))
                # The outcome of a row that moved to another window and back is still at the other one.
                kept = conn.scalar(sa.select(sa.func.count()).select_from(t.row_outcomes).where(d.window_id == w))
                if kept == len(ordered):
                    return version, False
            for table in (t.window_trajectories, t.row_outcomes, t.windows):
                conn.execute(sa.delete(table).where(table.c.window_id == w))
            delete_of_hour(conn, window, (t.window_judgments, t.check_results))
            conn.execute(
                sa.insert(t.windows),
                [
                    {
                        "window_id": w,
                        "data_version": version,
                        "rows": rows,
                        "agents": _count_agents(packed),
                        "turns": sum(x.turns for x in packed),
                        "changes_seen": changes_seen,
                    }
                ],
            )
            if packed:
                conn.execute(sa.insert(t.window_trajectories), [_make_trajectory_row(w, x) for x in packed])
            write_row_outcomes(conn, ordered)
        return version, True

    def data_version(self, window: HourWindow) -> str | None:
        """Data version of the ingested window, or None when it was never ingested."""
        with self.engine.connect() as conn:
            version: str | None = conn.scalar(
                sa.select(t.windows.c.data_version).where(t.windows.c.window_id == str(window.hour))
            )
        return version

    def ingested(self) -> list[str]:
        """Ids of all windows that were ingested, in time order."""
        with self.engine.connect() as conn:
            return list(conn.scalars(sa.select(t.windows.c.window_id).order_by(t.windows.c.window_id)))

    def rows_read(self, window: HourWindow) -> int | None:
        """Rows that the window had when it was ingested, or None when it never was."""
        with self.engine.connect() as conn:
            rows: int | None = conn.scalar(sa.select(t.windows.c.rows).where(t.windows.c.window_id == str(window.hour)))
        return rows

    def trajectories(self, window: HourWindow) -> list[Trajectory]:
        """Stitched trajectories of an hour, by trajectory id; of a scenario, only its own."""
        query = sa.select(t.window_trajectories.c.body).where(t.window_trajectories.c.window_id == str(window.hour))
        query = query.order_by(t.window_trajectories.c.trajectory_id)
        with self.engine.connect() as conn, closing(conn.execution_options(yield_per=50).scalars(query)) as bodies:
            found = [unpack(b, Trajectory) for b in bodies]
        return [x for x in found if x.window_id == str(window)] if window.scenario else found

    def mean_pnl_usd(self, window_ids: Sequence[str]) -> float | None:
        """Mean P&L of all trajectories of some windows whose P&L is known; None when none is."""
        c = t.window_trajectories.c
        with self.engine.connect() as conn:
            mean = conn.scalar(sa.select(sa.func.avg(c.pnl_usd)).where(c.window_id.in_(window_ids)))
        return None if mean is None else float(mean)

    # ── market_outcomes ────────────────────────────────────────────────────────────────────────────
    def write_outcomes(self, outcomes: WindowOutcomes, *, changes_seen: int | None = None) -> tuple[str, bool]:
        """Keep the outcomes of a window; a corrected outcome makes a new data version.

        Args:
            outcomes: What was read.
            changes_seen: `window_summary.outcome_changes` before they were read; None: unknown.

        Returns:
            The data version of what is stored, and whether it is a new one. Where a later reading is stored already, that
            one stays.
        """
        version = digest(outcomes)
        w = outcomes.window_id
        c = t.window_outcomes.c
        with lock_window(self.engine, HourWindow.parse(w)) as conn:
            stored = _read_version(conn, t.window_outcomes, w)
            if stored is not None and _is_older(changes_seen, stored):
                logger.info("kept a later reading of the outcomes window=%s", w)
                return str(stored["data_version"]), False
            if stored is not None and stored["data_version"] == version:
                conn.execute(sa.update(t.window_outcomes).where(c.window_id == w).values(changes_seen=changes_seen))
                return version, False
            conn.execute(sa.delete(t.window_outcomes).where(c.window_id == w))
            # They were about other outcomes.
            delete_of_hour(conn, HourWindow.parse(w), (t.window_judgments, t.check_results))
            conn.execute(
                sa.insert(t.window_outcomes),
                [
                    {
                        "window_id": w,
                        "data_version": version,
                        "stocks": len(outcomes.stocks),
                        "predictions": len(outcomes.predictions),
                        "body": pack(outcomes),
                        "changes_seen": changes_seen,
                    }
                ],
            )
        return version, True

    def outcomes(self, window: HourWindow) -> WindowOutcomes:
        """Outcomes of a window; empty (`known` is False) when none were kept."""
        c = t.window_outcomes.c
        with self.engine.connect() as conn:
            body = conn.scalar(sa.select(c.body).where(c.window_id == str(window.hour)))
        return WindowOutcomes(window_id=str(window.hour)) if body is None else unpack(body, WindowOutcomes)


def _read_version(conn: sa.Connection, table: sa.Table, window_id: str) -> sa.RowMapping | None:
    """The data version of what is stored of a window, and how many changes had been seen when it was read."""
    query = sa.select(table.c.data_version, table.c.changes_seen).where(table.c.window_id == window_id)
    return conn.execute(query).mappings().first()


def _is_older(changes_seen: int | None, stored: sa.RowMapping) -> bool:
    """Whether a reading had seen fewer changes than the one that is stored. Unknown is not older."""
    return None not in (changes_seen, stored["changes_seen"]) and changes_seen < stored["changes_seen"]


def _count_agents(packed: Sequence[PackedTrajectory]) -> int:
    """Distinct usable agents; of several scenarios, those of the one with most: agents of two are never compared."""
    agents: dict[str, set[str]] = {}
    for x in packed:
        if x.turns:
            agents.setdefault(x.window_id, set()).add(x.agent_id)
    return max(map(len, agents.values()), default=0)


def _make_trajectory_row(window_id: str, x: PackedTrajectory) -> dict[str, object]:
    return {
        "trajectory_id": x.trajectory_id,
        "window_id": window_id,
        "agent_id": x.agent_id,
        "turns": x.turns,
        "pnl_usd": x.pnl_usd,
        "body": x.body,
    }
