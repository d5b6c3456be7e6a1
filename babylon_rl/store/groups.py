"""The group of each window and, in a column of its own, the hindsight for the judge.

A group names the versions that it was made from. One made from what is no longer stored is not written, and one whose
sources changed since is stale: the view `stale_windows` compares them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from babylon_rl.common.canonical import digest, pack, unpack
from babylon_rl.database import tables as t
from babylon_rl.errors import TransientError
from babylon_rl.store.judgments import JudgmentStore, read_judgment
from babylon_rl.store.row_outcomes import read_row_outcomes, write_row_outcomes
from babylon_rl.store.window_lock import lock_window
from babylon_rl.types import Hindsight, Judgment, RowOutcome, Trajectory, TrajectoryGroup, WindowOutcomes
from babylon_rl.windows import HourWindow

# Levels at which `canonical` takes a group apart: object → members → one member; a pair of objects is one level more.
_GROUP_DEPTH: Final = 2
_PAIR_DEPTH: Final = 3


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


class GroupStore(JudgmentStore):
    """Groups and their judgments, over one engine."""

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


def _read_sources(conn: sa.Connection, window_id: str) -> str:
    """The data versions that a group made now is made from, as the view `stale_windows` compares them."""
    versions = (
        conn.scalar(sa.select(table.c.data_version).where(table.c.window_id == window_id)) or ""
        for table in (t.windows, t.window_outcomes)
    )
    return "|".join(versions)
