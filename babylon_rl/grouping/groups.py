"""Who is compared with whom: the usable agents of one window, if there are enough of them.

What belongs here: eligibility, and where each row ended. What the judge may know besides the group is
`grouping/hindsight.py`; nothing here reads hindsight.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from babylon_rl.common.canonical import digest
from babylon_rl.errors import DataError
from babylon_rl.ingest.stitching import policy_call, usable
from babylon_rl.types import Disposition, GroupMember, SourceRow, Trajectory, TrajectoryGroup
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

ACCOUNTED = ("grouped", "stitched", "ineligible")  # dispositions that grouping decides
SET_ASIDE = ("excluded", "quarantined")  # those that stand as they were read


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
        if usable(t):
            members[t.agent_id] = GroupMember(trajectory_id=t.trajectory_id, agent_id=t.agent_id, turns=t.turns)
    if len(members) < min_agents:
        logger.info("grouped window=%s agents=%d of=%d group=none", window, len(members), min_agents)
        return None
    ordered = tuple(sorted(members.values(), key=lambda m: m.trajectory_id))
    group_id = f"{window}#{digest(ordered, depth=1)[:12]}"
    logger.info("grouped window=%s agents=%d group=%s", window, len(ordered), group_id)
    return TrajectoryGroup(group_id=group_id, window_id=str(window), members=ordered)


def dispositions_of(window: HourWindow, rows: Sequence[SourceRow], group: TrajectoryGroup | None) -> list[Disposition]:
    """Where each usable row ended: with the dispositions that were read, the counts add up to the rows read.

    Returns:
        One per row, by source id. In a group: `grouped`/`stitched`, or `stitched`/`no_turns` for a row that is
        part of its agent's trajectory `<window>/<agent>` without a call of the policy of its own; both with the
        group's id. Else `ineligible`: `no_turns` for such a row, `too_few_agents` for the others.
    """
    return [
        _ended(
            Disposition(
                source_id=r.source_id,
                trajectory_id=r.trajectory_id,
                agent_id=r.agent_id,
                window_id=str(window),
                disposition="ineligible",
                reason="too_few_agents" if any(policy_call(s) is not None for s in r.steps) else "no_turns",
            ),
            group,
        )
        for r in sorted(rows, key=lambda r: r.source_id)
    ]


def account(dispositions: Iterable[Disposition], group: TrajectoryGroup | None) -> list[Disposition]:
    """The same rows once the group is known (or gone again); what was set aside stays so."""
    return [_ended(d, group) if d.disposition in ACCOUNTED else d for d in dispositions]


def _ended(d: Disposition, group: TrajectoryGroup | None) -> Disposition:
    silent = d.reason == "no_turns"
    if group is not None and any(m.agent_id == d.agent_id for m in group.members):
        end, reason = ("stitched", "no_turns") if silent else ("grouped", "stitched")
        return replace(d, disposition=end, reason=reason, group_id=group.group_id)
    reason = "no_turns" if silent else "too_few_agents"
    return replace(d, disposition="ineligible", reason=reason, group_id=None)
