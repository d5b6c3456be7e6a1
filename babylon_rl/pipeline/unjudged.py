"""Why windows that were materialized have no judgment: one sentence for each reason, for a person at the screen."""

from collections import defaultdict
from collections.abc import Sequence

from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.eligibility import Reason, State
from babylon_rl.windows import HourWindow

_WORDS = {
    Reason.TOO_FEW_AGENTS: "too few usable agents",
    Reason.NOT_READ: "rows are recorded and were not read; materialize raw_trajectories",
    Reason.NOT_GROUPED: "read and not grouped; materialize contextualized_groups",
    Reason.NOT_JUDGED: "grouped and not judged; materialize ruler_scores",
}


def explain_unjudged(workspace: Workspace, windows: Sequence[HourWindow]) -> list[str]:
    """One sentence for each reason why windows of some hours have no judgment, with the first and how many there are."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    states = workspace.ledger.eligibility.states(windows)
    known = {s.hour_id for s in states if s.agents or workspace.store.rows_read(HourWindow.parse(s.hour_id))}
    for hour in windows:
        if str(hour) not in known:
            empty = "no row is recorded in it; `babylon-rl check-windows` lists the windows that have some"
            groups[empty].append(str(hour))
    for state in states:
        if state.hour_id not in known:
            continue
        if state.state is State.DROPPED_OUT:
            groups["dropout left it out of this lineage"].append(state.window_id)
        elif state.reason is not None:
            word = _WORDS.get(state.reason, state.reason.value.replace("_", " "))
            groups[state.explanation or word].append(state.window_id)
    return [
        f"{ids[0]}{f' and {len(ids) - 1} more' if len(ids) > 1 else ''}: {reason}" for reason, ids in groups.items()
    ]
