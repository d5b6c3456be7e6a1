"""`contextualized_groups`: the group of a window and, stored apart, the hindsight for the judge."""

from babylon_rl.grouping.groups import decide_row_outcomes, make_group
from babylon_rl.grouping.hindsight import hindsight_for
from babylon_rl.pipeline.window_result import WindowResult
from babylon_rl.store.row_outcomes import row_outcomes_of
from babylon_rl.store.windows import Store
from babylon_rl.types import Hindsight
from babylon_rl.windows import HourWindow


def group_window(window: HourWindow, store: Store, *, min_agents: int) -> WindowResult:
    """Make a window's group and, apart from it, the hindsight; decide the outcome of each row."""
    trajectories = store.trajectories(window)
    group = make_group(window, trajectories, min_agents=min_agents)
    hindsight: Hindsight | None = None
    if group is not None:
        hindsight = hindsight_for(group, trajectories, store.outcomes(window))
    outcomes = decide_row_outcomes(row_outcomes_of(store.engine, window), group)
    version, changed = store.write_group(window, group, hindsight, outcomes, min_agents=min_agents)
    members = 0 if group is None else len(group.members)
    turns = 0 if group is None else sum(len(m.turns) for m in group.members)
    return WindowResult(
        data_version=version,
        changed=changed,
        count=members,
        facts={
            "group_id": None if group is None else group.group_id,
            "members": members,
            "turns": turns,
            "agents_seen": len({t.agent_id for t in trajectories}),
            "outcomes_known": hindsight is not None and hindsight.outcomes.known,
        },
    )
