"""Who is compared with whom: the usable agents of one hour and scenario, if there are enough of them.

What belongs here: eligibility, and the outcome of each row. What the judge may know besides the group is
`grouping/hindsight.py`; nothing here reads hindsight.
"""

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from babylon_rl.common.canonical import digest
from babylon_rl.errors import DataError
from babylon_rl.ingest.stitching import is_usable
from babylon_rl.types import GroupMember, RowOutcome, RowReason, RowStatus, Trajectory, TrajectoryGroup
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

_DECIDED_HERE: Final = (RowStatus.READ, RowStatus.GROUPED, RowStatus.INELIGIBLE)


def make_groups(hour: HourWindow, trajectories: Iterable[Trajectory], *, min_agents: int) -> list[TrajectoryGroup]:
    """The groups of an hour: of each scenario one, where at least `min_agents` distinct agents have anything to train on.

    Args:
        hour: The hour that all agents faced.
        trajectories: N trajectories, one per agent and scenario, in any order.
        min_agents: Distinct usable agents asked for.

    Returns:
        By window id; members by trajectory id. A group's id changes when anything of it that trains changes.

    Raises:
        DataError: A trajectory belongs to another hour, or an agent comes twice in one window.
    """
    members: dict[HourWindow, dict[str, GroupMember]] = {}
    for t in trajectories:
        window = HourWindow.parse(t.window_id)
        if window.hour != hour:
            raise DataError(
                f"trajectory {t.trajectory_id!r} belongs to window {t.window_id!r}, not to {str(hour)!r}; "
                "materialize `raw_trajectories` for its own hour",
                facts={"trajectory_id": t.trajectory_id, "window_id": t.window_id},
            )
        own = members.setdefault(window, {})
        if t.agent_id in own:
            raise DataError(
                f"agent {t.agent_id!r} comes twice in window {t.window_id!r}; expected its rows stitched into one "
                "trajectory; materialize `raw_trajectories` again",
                facts={"agent_id": t.agent_id, "window_id": t.window_id},
            )
        if is_usable(t):
            own[t.agent_id] = GroupMember(
                trajectory_id=t.trajectory_id, agent_id=t.agent_id, turns=t.turns, archetype=t.archetype
            )
    groups = [_make_group(window, own.values()) for window, own in sorted(members.items()) if len(own) >= min_agents]
    logger.info("grouped window=%s agents=%d groups=%d", hour, sum(map(len, members.values())), len(groups))
    return groups


def _make_group(window: HourWindow, members: Iterable[GroupMember]) -> TrajectoryGroup:
    ordered = tuple(sorted(members, key=lambda m: m.trajectory_id))
    what_trains = [replace(m, archetype=None) for m in ordered]
    group_id = f"{window}#{digest(what_trains, depth=1)[:12]}"
    return TrajectoryGroup(group_id=group_id, window_id=str(window), members=ordered)


def decide_row_outcomes(
    outcomes: Iterable[RowOutcome], groups: Iterable[TrajectoryGroup], trajectories: Iterable[Trajectory]
) -> list[RowOutcome]:
    """The same rows once the groups are known (or gone again); what reading set aside or dropout left out stays so.

    Returns:
        In a group: `grouped` with the group's id. Else `ineligible`: `no_turns` for a row without a call of the
        policy of its own, `too_few_agents` for the others.
    """
    group_of = {m.trajectory_id: g.group_id for g in groups for m in g.members}
    holder = {row_id: group_of.get(t.trajectory_id) for t in trajectories for row_id in t.row_ids}
    return [_decide(o, holder.get(o.source_id)) if o.status in _DECIDED_HERE else o for o in outcomes]


def _decide(o: RowOutcome, group_id: str | None) -> RowOutcome:
    has_turn = o.reason not in (RowReason.NO_TURN, RowReason.NO_TURNS)
    if group_id is not None:
        reason = RowReason.HAS_TURN if has_turn else RowReason.NO_TURN
        return replace(o, status=RowStatus.GROUPED, reason=reason, group_id=group_id)
    reason = RowReason.TOO_FEW_AGENTS if has_turn else RowReason.NO_TURNS
    return replace(o, status=RowStatus.INELIGIBLE, reason=reason, group_id=None)
