"""Who is compared with whom: the usable agents of one window, if there are enough of them.

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


def make_group(window: HourWindow, trajectories: Iterable[Trajectory], *, min_agents: int) -> TrajectoryGroup | None:
    """The window's group, or None when fewer than `min_agents` distinct agents have anything to train on.

    Args:
        window: The hour that all agents faced.
        trajectories: N trajectories, one per agent, in any order.
        min_agents: Distinct usable agents asked for.

    Returns:
        Members by trajectory id. The group's id changes when anything that trains changes.

    Raises:
        DataError: A trajectory belongs to another window, or an agent comes twice.
    """
    members: dict[str, GroupMember] = {}
    for t in trajectories:
        if t.window_id != str(window):
            raise DataError(
                f"trajectory {t.trajectory_id!r} belongs to window {t.window_id!r}, not to {str(window)!r}; "
                "materialize `raw_trajectories` for its own hour",
                facts={"trajectory_id": t.trajectory_id, "window_id": t.window_id},
            )
        if t.agent_id in members:
            raise DataError(
                f"agent {t.agent_id!r} comes twice in window {str(window)!r}; expected its rows stitched into one "
                "trajectory; materialize `raw_trajectories` again",
                facts={"agent_id": t.agent_id, "window_id": t.window_id},
            )
        if is_usable(t):
            members[t.agent_id] = GroupMember(
                trajectory_id=t.trajectory_id, agent_id=t.agent_id, turns=t.turns, archetype=t.archetype
            )
    if len(members) < min_agents:
        logger.info("grouped window=%s agents=%d of=%d group=none", window, len(members), min_agents)
        return None
    ordered = tuple(sorted(members.values(), key=lambda m: m.trajectory_id))
    what_trains = [replace(m, archetype=None) for m in ordered]
    group_id = f"{window}#{digest(what_trains, depth=1)[:12]}"
    logger.info("grouped window=%s agents=%d group=%s", window, len(ordered), group_id)
    return TrajectoryGroup(group_id=group_id, window_id=str(window), members=ordered)


def decide_row_outcomes(outcomes: Iterable[RowOutcome], group: TrajectoryGroup | None) -> list[RowOutcome]:
    """The same rows once the group is known (or gone again); what reading set aside or dropout left out stays so.

    Returns:
        In a group: `grouped` with the group's id. Else `ineligible`: `no_turns` for a row without a call of the
        policy of its own, `too_few_agents` for the others.
    """
    agents = {m.agent_id for m in group.members} if group is not None else set()
    return [_decide(o, group if o.agent_id in agents else None) if o.status in _DECIDED_HERE else o for o in outcomes]


def _decide(o: RowOutcome, group: TrajectoryGroup | None) -> RowOutcome:
    has_turn = o.reason not in (RowReason.NO_TURN, RowReason.NO_TURNS)
    if group is not None:
        reason = RowReason.HAS_TURN if has_turn else RowReason.NO_TURN
        return replace(o, status=RowStatus.GROUPED, reason=reason, group_id=group.group_id)
    reason = RowReason.TOO_FEW_AGENTS if has_turn else RowReason.NO_TURNS
    return replace(o, status=RowStatus.INELIGIBLE, reason=reason, group_id=None)
