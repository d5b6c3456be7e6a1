"""`contextualized_groups`: the group of a window and, stored apart, the hindsight for the judge."""

from typing import Final

from babylon_rl.grouping.groups import decide_row_outcomes, make_group
from babylon_rl.grouping.hindsight import hindsight_for
from babylon_rl.pipeline.window_result import WindowResult
from babylon_rl.store.groups import SupersededError
from babylon_rl.store.windows import Store
from babylon_rl.types import Hindsight
from babylon_rl.windows import HourWindow

TRIES: Final = 5  # a window that is read again while it is grouped is grouped again


def group_window(window: HourWindow, store: Store, *, min_agents: int) -> WindowResult:
    """Make a window's group and, apart from it, the hindsight; decide the outcome of each row.

    Raises:
        SupersededError: Other processes kept reading the window anew all the while.
    """
    for _ in range(TRIES - 1):
        try:
            return _group_once(window, store, min_agents)
        except SupersededError:
            continue
    return _group_once(window, store, min_agents)


def _group_once(window: HourWindow, store: Store, min_agents: int) -> WindowResult:
    sources = store.group_sources(window)
    group = make_group(window, sources.trajectories, min_agents=min_agents)
    hindsight: Hindsight | None = None
    if group is not None:
        hindsight = hindsight_for(group, sources.trajectories, sources.outcomes)
    outcomes = decide_row_outcomes(sources.row_outcomes, group)
    version, changed = store.write_group(
        window, group, hindsight, outcomes, made_from=sources.made_from, min_agents=min_agents
    )
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
            "agents_seen": len({t.agent_id for t in sources.trajectories}),
            "outcomes_known": hindsight is not None and hindsight.outcomes.known,
        },
    )
