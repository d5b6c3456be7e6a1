"""`contextualized_groups`: the groups of an hour and, stored apart, the hindsight for the judge."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from babylon_rl.grouping.groups import decide_row_outcomes, make_groups
from babylon_rl.grouping.hindsight import hindsight_for
from babylon_rl.pipeline.window_result import WindowResult
from babylon_rl.store.groups import SupersededError
from babylon_rl.store.windows import Store
from babylon_rl.types import Json
from babylon_rl.windows import HourWindow

TRIES: Final = 5  # a window that is read again while it is grouped is grouped again


def group_window(window: HourWindow, store: Store, *, min_agents: int) -> WindowResult:
    """Make an hour's groups and, apart from them, the hindsight; decide the outcome of each row.

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
    groups = make_groups(window, sources.trajectories, min_agents=min_agents)
    outcomes = decide_row_outcomes(sources.row_outcomes, groups, sources.trajectories)
    version, changed = store.write_groups(
        window,
        [(g, hindsight_for(g, sources.trajectories, sources.outcomes)) for g in groups],
        outcomes,
        made_from=sources.made_from,
        min_agents=min_agents,
    )
    members = sum(len(g.members) for g in groups)
    facts: Json = {
        "group_id": groups[0].group_id if len(groups) == 1 else None,
        "members": members,
        "turns": sum(len(m.turns) for g in groups for m in g.members),
        "agents_seen": len({t.agent_id for t in sources.trajectories}),
        "outcomes_known": bool(groups) and sources.outcomes.known,
    }
    if not groups and sources.row_outcomes:
        facts["left_out"] = _explain_too_few([t.window_id for t in sources.trajectories], min_agents)
    if len({t.window_id for t in sources.trajectories}) > 1:  # the usual hour has no scenarios
        facts["members_of_scenario"] = {g.window_id: len(g.members) for g in groups}
    return WindowResult(data_version=version, changed=changed, count=members, facts=facts)


def _explain_too_few(window_ids: Sequence[str], min_agents: int) -> str:
    """Why an hour has no group, from the window of each of its trajectories, which are one per agent and window."""
    agents = Counter(window_ids)
    where = f" in any of its {len(agents)} scenarios" if len(agents) > 1 else ""
    return f"too few usable agents{where}: {max(agents.values(), default=0)}, and a group needs {min_agents}"
