"""The group of each window (an hour, or a scenario of it) and, in a column of its own, the hindsight for the judge.

A group names the versions that it was made from. One made from what is no longer stored is not written, and one whose
sources changed since is stale: the view `stale_windows` compares them.
"""

from collections.abc import Iterable, Sequence
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
    """What an hour's groups are made from.

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
        """What the groups of an hour are made from, in one snapshot."""
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

    def write_groups(
        self,
        hour: HourWindow,
        groups: Sequence[tuple[TrajectoryGroup, Hindsight]],
        outcomes: Iterable[RowOutcome],
        *,
        made_from: str,
        min_agents: int | None = None,
    ) -> tuple[str, bool]:
        """Keep an hour's groups (or that it has none), the hindsight of each apart, and its rows' outcomes.

        A group of a new version deletes its window's current judgment and check results, which were about other data;
        those of the hour's other scenarios stay. `min_agents` is what grouping asked for; it is not part of the version.

        Args:
            hour: The hour.
            groups: Each with its hindsight, one per scenario; none: it has too few agents.
            outcomes: One per row of the hour.
            made_from: The sources that all of these were made from (`GroupSources.made_from`).
            min_agents: Distinct agents that grouping asked for.

        Returns:
            The data version of the hour's groups, and whether any of them is new or gone.

        Raises:
            SupersededError: Other rows or outcomes are stored by now; nothing was written.
        """
        ordered = sorted(outcomes, key=lambda o: o.source_id)
        versions = {g.window_id: digest([g, h], depth=_PAIR_DEPTH) for g, h in groups}
        c, w = t.contextualized_groups.c, t.windows.c
        with lock_window(self.engine, hour) as conn:
            if _read_sources(conn, str(hour)) != made_from:
                raise SupersededError(
                    f"window {str(hour)!r} was read again while its group was made; nothing was written: make the group again"
                )
            write_row_outcomes(conn, ordered)
            conn.execute(sa.update(t.windows).where(w.window_id == str(hour)).values(min_agents=min_agents))
            stored = dict(
                conn.execute(sa.select(c.window_id, c.data_version).where(c.hour_id == str(hour))).tuples().all()
            )
            conn.execute(sa.update(t.contextualized_groups).where(c.hour_id == str(hour)).values(made_from=made_from))
            fresh = [(g, h) for g, h in groups if stored.get(g.window_id) != versions[g.window_id]]
            over = {i for i in stored if i not in versions} | {g.window_id for g, _ in fresh}
            # An hour without any group has check results too, which hold for its rows as long as there is none.
            if over and (not stored or not groups):
                over.add(str(hour))
            for table in (t.contextualized_groups, t.window_judgments, t.check_results) if over else ():
                conn.execute(sa.delete(table).where(table.c.window_id.in_(sorted(over))))
            if fresh:
                rows = [_make_group_row(g, h, versions[g.window_id], made_from) for g, h in fresh]
                conn.execute(sa.insert(t.contextualized_groups), rows)
        return _hour_version(list(versions.values())), bool(over)

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
            min_agents: int | None = conn.scalar(sa.select(c.min_agents).where(c.window_id == str(window.hour)))
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


def _make_group_row(group: TrajectoryGroup, hindsight: Hindsight, version: str, made_from: str) -> dict[str, object]:
    return {
        "group_id": group.group_id,
        "window_id": group.window_id,
        "data_version": version,
        "members": len(group.members),
        "turns": sum(len(m.turns) for m in group.members),
        "body": pack(group, depth=_GROUP_DEPTH),
        "hindsight": pack(hindsight, depth=_GROUP_DEPTH),
        "made_from": made_from,
    }


def _hour_version(versions: Sequence[str]) -> str:
    """One group's own version is the hour's; none has that of nothing."""
    if len(versions) == 1:
        return versions[0]
    return digest(sorted(versions)) if versions else digest([None, None], depth=_PAIR_DEPTH)


def _read_sources(conn: sa.Connection, window_id: str) -> str:
    """The data versions that a group made now is made from, as the view `stale_windows` compares them."""
    versions = (
        conn.scalar(sa.select(table.c.data_version).where(table.c.window_id == window_id)) or ""
        for table in (t.windows, t.window_outcomes)
    )
    return "|".join(versions)
