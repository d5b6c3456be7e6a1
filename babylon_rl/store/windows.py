"""What the assets keep of each window: stitched trajectories, outcomes, the group and its hindsight.

Every write of a window happens in one transaction under that window's advisory lock and changes nothing
when the data version is the same: same inputs, same bytes. Judgments are `store/judgments.py`, row outcomes
`store/row_outcomes.py`, training's ledger is `store/ledger.py`.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from babylon_rl.common.canonical import digest, pack, pack_with_digest, unpack
from babylon_rl.database import tables as t
from babylon_rl.errors import TransientError
from babylon_rl.store.judgments import JudgmentStore, read_judgment
from babylon_rl.store.row_outcomes import read_row_outcomes, version_entry, write_row_outcomes
from babylon_rl.store.window_lock import lock_window
from babylon_rl.types import (
    Hindsight,
    Judgment,
    RowOutcome,
    Trajectory,
    TrajectoryGroup,
    WindowOutcomes,
)
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

# Levels at which `canonical` takes a group apart: object → members → one member; a pair of objects is one level more.
_GROUP_DEPTH: Final = 2
_PAIR_DEPTH: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTrajectory:
    """A stitched trajectory, packed as it is stored, so that a window of any size fits in memory."""

    trajectory_id: str
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
            agent_id=x.agent_id,
            turns=len(x.turns),
            pnl_usd=x.pnl_usd,
            digest=digest_,
            body=body,
        )


class SupersededError(TransientError):
    """Another process wrote a newer version meanwhile; what was computed from the old one was not written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSources:
    """What a window's group is made from.

    Attributes:
        made_from: Data versions of the two assets, as the view `stale_windows` compares them.
    """

    made_from: str
    trajectories: tuple[Trajectory, ...]
    outcomes: WindowOutcomes
    row_outcomes: tuple[RowOutcome, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGroup:
    """A group as a judge is given it.

    Attributes:
        version: Of group and hindsight together.
        judgment_key: The window's current judgment, if there is one.
    """

    version: str
    group: TrajectoryGroup
    hindsight: Hindsight
    judgment_key: str | None


class Store(JudgmentStore):
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
            for table in (t.window_trajectories, t.row_outcomes, t.windows, t.window_judgments, t.check_results):
                conn.execute(sa.delete(table).where(table.c.window_id == w))
            conn.execute(
                sa.insert(t.windows),
                [
                    {
                        "window_id": w,
                        "data_version": version,
                        "rows": rows,
                        "agents": len({x.agent_id for x in packed if x.turns}),
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
                sa.select(t.windows.c.data_version).where(t.windows.c.window_id == str(window))
            )
        return version

    def ingested(self) -> list[str]:
        """Ids of all windows that were ingested, in time order."""
        with self.engine.connect() as conn:
            return list(conn.scalars(sa.select(t.windows.c.window_id).order_by(t.windows.c.window_id)))

    def rows_read(self, window: HourWindow) -> int | None:
        """Rows that the window had when it was ingested, or None when it never was."""
        with self.engine.connect() as conn:
            rows: int | None = conn.scalar(sa.select(t.windows.c.rows).where(t.windows.c.window_id == str(window)))
        return rows

    def trajectories(self, window: HourWindow) -> list[Trajectory]:
        """Stitched trajectories of a window, by trajectory id."""
        query = sa.select(t.window_trajectories.c.body).where(t.window_trajectories.c.window_id == str(window))
        with self.engine.connect() as conn:
            rows = conn.execution_options(yield_per=50).scalars(query.order_by(t.window_trajectories.c.trajectory_id))
            return [unpack(b, Trajectory) for b in rows]

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
            for table in (t.window_outcomes, t.window_judgments, t.check_results):  # they were about other outcomes
                conn.execute(sa.delete(table).where(table.c.window_id == w))
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
            body = conn.scalar(sa.select(c.body).where(c.window_id == str(window)))
        return WindowOutcomes(window_id=str(window)) if body is None else unpack(body, WindowOutcomes)

    # ── contextualized_groups ──────────────────────────────────────────────────────────────────────
    def group_sources(self, window: HourWindow) -> GroupSources:
        """What a group of the window is made from, in one snapshot."""
        w = str(window)
        x, o = t.window_trajectories.c, t.window_outcomes.c
        with self.engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
            bodies = conn.scalars(sa.select(x.body).where(x.window_id == w).order_by(x.trajectory_id))
            outcomes = conn.scalar(sa.select(o.body).where(o.window_id == w))
            return GroupSources(
                made_from=_read_sources(conn, w),
                trajectories=tuple(unpack(b, Trajectory) for b in bodies),
                outcomes=WindowOutcomes(window_id=w) if outcomes is None else unpack(outcomes, WindowOutcomes),
                row_outcomes=tuple(read_row_outcomes(conn, window)),
            )

    def write_group(
        self,
        window: HourWindow,
        group: TrajectoryGroup | None,
        hindsight: Hindsight | None,
        outcomes: Iterable[RowOutcome],
        *,
        made_from: str,
        min_agents: int | None = None,
    ) -> tuple[str, bool]:
        """Keep a window's group (or that it has none), its hindsight apart, and its rows' outcomes.

        A new version deletes the window's current judgment and check results, which were about other data. `min_agents`
        is what grouping asked for; it is not part of the version.

        Args:
            window: The hour.
            group: None: it has too few agents.
            hindsight: Of the group.
            outcomes: One per row of the window.
            made_from: The sources that all of these were made from (`GroupSources.made_from`).
            min_agents: Distinct agents that grouping asked for.

        Returns:
            The group's data version, and whether it is a new one.

        Raises:
            SupersededError: Other rows or outcomes are stored by now; nothing was written.
        """
        ordered = sorted(outcomes, key=lambda o: o.source_id)
        version = digest([group, hindsight], depth=_PAIR_DEPTH)
        w = str(window)
        c = t.contextualized_groups.c
        with lock_window(self.engine, window) as conn:
            if _read_sources(conn, w) != made_from:
                raise SupersededError(
                    f"window {w!r} was read again while its group was made; nothing was written: make the group again"
                )
            write_row_outcomes(conn, ordered)
            conn.execute(sa.update(t.windows).where(t.windows.c.window_id == w).values(min_agents=min_agents))
            if conn.scalar(sa.select(c.data_version).where(c.window_id == w)) == version:
                conn.execute(sa.update(t.contextualized_groups).where(c.window_id == w).values(made_from=made_from))
                return version, False
            for table in (t.contextualized_groups, t.window_judgments, t.check_results):
                conn.execute(sa.delete(table).where(table.c.window_id == w))
            if group is not None and hindsight is not None:
                conn.execute(
                    sa.insert(t.contextualized_groups),
                    [
                        {
                            "group_id": group.group_id,
                            "window_id": w,
                            "data_version": version,
                            "members": len(group.members),
                            "turns": sum(len(m.turns) for m in group.members),
                            "body": pack(group, depth=_GROUP_DEPTH),
                            "hindsight": pack(hindsight, depth=_GROUP_DEPTH),
                            "made_from": made_from,
                        }
                    ],
                )
        return version, True

    def stored_group(self, window: HourWindow) -> StoredGroup | None:
        """The window's group with its hindsight and version, in one snapshot, for judging."""
        g, j = t.contextualized_groups.c, t.window_judgments.c
        query = (
            sa.select(g.data_version, g.body, g.hindsight, j.judgment_key)
            .outerjoin(t.window_judgments, sa.and_(j.window_id == g.window_id, j.group_id == g.group_id))
            .where(g.window_id == str(window))
        )
        with self.engine.connect() as conn:
            row = conn.execute(query).one_or_none()
        if row is None:
            return None
        return StoredGroup(
            version=row.data_version,
            group=unpack(row.body, TrajectoryGroup),
            hindsight=unpack(row.hindsight, Hindsight),
            judgment_key=row.judgment_key,
        )

    def group(self, window: HourWindow) -> TrajectoryGroup | None:
        """The window's group: what may be trained on. The hindsight is another call on purpose."""
        c = t.contextualized_groups.c
        with self.engine.connect() as conn:
            body = conn.scalar(sa.select(c.body).where(c.window_id == str(window)))
        return None if body is None else unpack(body, TrajectoryGroup)

    def min_agents(self, window: HourWindow) -> int | None:
        """Distinct agents that grouping asked for; None: the window was not grouped since it was read."""
        c = t.windows.c
        with self.engine.connect() as conn:
            min_agents: int | None = conn.scalar(sa.select(c.min_agents).where(c.window_id == str(window)))
        return min_agents

    def is_stale(self, window: HourWindow) -> bool:
        """Whether the window's rows or outcomes changed since its group was made: it must be made again first."""
        query = sa.text("SELECT EXISTS (SELECT 1 FROM babylon_rl.stale_windows WHERE window_id = :w)")
        with self.engine.connect() as conn:
            return bool(conn.scalar(query, {"w": str(window)}))

    def hindsight(self, window: HourWindow) -> Hindsight | None:
        """The hindsight of the window's group, for judges only."""
        c = t.contextualized_groups.c
        with self.engine.connect() as conn:
            body = conn.scalar(sa.select(c.hindsight).where(c.window_id == str(window)))
        return None if body is None else unpack(body, Hindsight)


def read_judged_group(
    conn: sa.Connection, window_id: str, *, with_hindsight: bool
) -> tuple[TrajectoryGroup, Hindsight | None, Judgment]:
    """The group of a judged window with its current judgment; the hindsight is read only when it is asked for."""
    g, j = t.contextualized_groups.c, t.window_judgments.c
    columns = [g.body, j.judgment_key, *([g.hindsight] if with_hindsight else [])]
    query = sa.select(*columns).join(t.window_judgments, j.window_id == g.window_id).where(g.window_id == window_id)
    row = conn.execute(query).mappings().one()
    judgment = read_judgment(conn, row["judgment_key"])
    if judgment is None:
        raise AssertionError(f"judgment {row['judgment_key']!r} of window {window_id!r} cannot be read")
    hindsight = unpack(row["hindsight"], Hindsight) if with_hindsight else None
    return unpack(row["body"], TrajectoryGroup), hindsight, judgment


def _read_version(conn: sa.Connection, table: sa.Table, window_id: str) -> sa.RowMapping | None:
    """The data version of what is stored of a window, and how many changes had been seen when it was read."""
    query = sa.select(table.c.data_version, table.c.changes_seen).where(table.c.window_id == window_id)
    return conn.execute(query).mappings().first()


def _is_older(changes_seen: int | None, stored: sa.RowMapping) -> bool:
    """Whether a reading had seen fewer changes than the one that is stored. Unknown is not older."""
    return None not in (changes_seen, stored["changes_seen"]) and changes_seen < stored["changes_seen"]


def _read_sources(conn: sa.Connection, window_id: str) -> str:
    """The data versions that a group made now is made from, as the view `stale_windows` compares them."""
    versions = (
        conn.scalar(sa.select(table.c.data_version).where(table.c.window_id == window_id)) or ""
        for table in (t.windows, t.window_outcomes)
    )
    return "|".join(versions)


def _make_trajectory_row(window_id: str, x: PackedTrajectory) -> dict[str, object]:
    return {
        "trajectory_id": x.trajectory_id,
        "window_id": window_id,
        "agent_id": x.agent_id,
        "turns": x.turns,
        "pnl_usd": x.pnl_usd,
        "body": x.body,
    }
