"""What the judge may see beside the group, and no agent could: the only place that builds `Hindsight`.

What belongs here: picking hindsight for the members of a group. A group is built without it
(`grouping/groups.py`), and nothing that trains is built from it.
"""

from collections.abc import Iterable

from babylon_rl.errors import DataError
from babylon_rl.types import Hindsight, MemberHindsight, Trajectory, TrajectoryGroup, WindowOutcomes
from babylon_rl.windows import HourWindow


def hindsight_for(group: TrajectoryGroup, trajectories: Iterable[Trajectory], outcomes: WindowOutcomes) -> Hindsight:
    """Collect what became of each member, in the group's order.

    Raises:
        DataError: A member has no trajectory, or the outcomes are another hour's.
    """
    hour = HourWindow.parse(group.window_id).hour  # markets have one truth, whatever scenario an agent plays
    if outcomes.window_id != str(hour):
        raise DataError(
            f"group {group.group_id!r} was given the outcomes of window {outcomes.window_id!r}; expected those of "
            f"{str(hour)!r}",
            facts={"group_id": group.group_id, "window_id": outcomes.window_id},
        )
    by_id = {t.trajectory_id: t for t in trajectories}
    if missing := [m.trajectory_id for m in group.members if m.trajectory_id not in by_id]:
        raise DataError(
            f"group {group.group_id!r} has member {missing[0]!r} without a trajectory; materialize `contextualized_groups` "
            "again after `raw_trajectories`",
            facts={"group_id": group.group_id, "trajectory_ids": missing[:20]},
        )
    return Hindsight(
        group_id=group.group_id,
        window_id=group.window_id,
        outcomes=outcomes,
        members=tuple(
            MemberHindsight(
                trajectory_id=t.trajectory_id,
                start_balance_usd=t.start_balance_usd,
                pnl_usd=t.pnl_usd,
                decisions=t.decisions,
                game_knowledge=t.game_knowledge,
            )
            for t in (by_id[m.trajectory_id] for m in group.members)
        ),
    )
