"""Rows of one agent and one window (an hour, and a scenario where rows name one), in time order, become one `Trajectory`.

What belongs here: which call of a step is the policy's, and what a window's P&L is. Which rows a
window has is `ingest/queries.py`; who is compared with whom is `grouping/groups.py`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from babylon_rl.ingest.cut_answers import find_cut
from babylon_rl.ingest.rows import LlmCall, SourceRow, Step
from babylon_rl.types import Json, RowOutcome, RowReason, RowStatus, Trajectory, Turn
from babylon_rl.windows import HOUR_ID_LENGTH

LONGEST_TEXT: Final = 4_000  # characters of one text of an action; what an agent answered is never cut
REASONING: Final = frozenset({"reasoning", "thinking", "planning"})
# Purposes of a call that acted. Where none did, one that weighed a situation may be the decision (not to act).
_ACTED: Final = ("action", "response")
_WEIGHED: Final = "evaluation"
# Hindsight that names other players by their ids, which a prompt may hold as well.
LABELS: Final = ("interactionLabels", "redTeamNpcIds")
# Keys of a row's metadata, beside `gameKnowledge`, that only a judge may see.
_METADATA_HINDSIGHT: Final = (*LABELS, "scenarioIntent")


def stitch(rows: Iterable[SourceRow]) -> list[Trajectory]:
    """Make one trajectory per (window, agent), by trajectory id; the order of `rows` does not matter.

    A trajectory may have no turns (nothing but reasoning was logged): see `is_usable`.
    """
    by_agent: defaultdict[tuple[str, str], list[SourceRow]] = defaultdict(list)
    for row in rows:
        by_agent[row.window_id, row.agent_id].append(row)
    return [_stitch_agent(w, agent, sorted(rs, key=_in_time_order)) for (w, agent), rs in sorted(by_agent.items())]


def is_usable(trajectory: Trajectory) -> bool:
    """Whether it has anything to train on."""
    return len(trajectory.turns) > 0


def mark_as_read(rows: Iterable[SourceRow]) -> list[RowOutcome]:
    """The outcome of usable rows between reading and grouping: `read`, with a turn of their own or without."""
    return [
        RowOutcome(
            source_id=r.source_id,
            trajectory_id=r.trajectory_id,
            agent_id=r.agent_id,
            window_id=r.window_id[:HOUR_ID_LENGTH],
            status=RowStatus.READ,
            reason=RowReason.NO_TURN if all(policy_call(s) is None for s in r.steps) else RowReason.HAS_TURN,
        )
        for r in rows
    ]


def policy_call(step: Step) -> LlmCall | None:
    """The call that decided, of those that were answered and did not only reason; None where that is unknown.

    1. The last of purpose `action`, else the last of `response`: earlier ones are attempts that the game rejected.
    2. Else the only call of another purpose (`other`, a game's own word), else the only `evaluation`. Several of them
       are attempts at one decision where each repeats the first one's prompt: then it is the last.
    """
    for purpose in _ACTED:
        for call in reversed(step.llm_calls):
            if call.purpose.lower() == purpose:
                return call
    calls = [(c.purpose.lower(), c) for c in step.llm_calls]
    others = [c for p, c in calls if p not in REASONING and p != _WEIGHED]
    left = others or [c for p, c in calls if p == _WEIGHED]
    return left[-1] if left and all(_repeats(left[0], c) for c in left) else None


def _repeats(first: LlmCall, call: LlmCall) -> bool:
    """Whether `call` asks what `first` asked, perhaps with a complaint about the answer after it."""
    return call.system_prompt == first.system_prompt and call.user_prompt.startswith(first.user_prompt)


def _in_time_order(row: SourceRow) -> tuple[datetime, datetime, str]:
    return row.start_at, row.end_at or row.start_at, row.source_id


def _stitch_agent(window_id: str, agent_id: str, rows: Sequence[SourceRow]) -> Trajectory:
    turns: list[Turn] = []
    decisions: list[Json] = []
    steps = [s for r in rows for s in r.steps]
    for i, step in enumerate(steps):
        call = policy_call(step)
        if call is None:
            continue
        turns.append(
            Turn(
                system=call.system_prompt,
                user=call.user_prompt,
                response=call.response,
                policy_version=call.model_version,
                temperature=call.temperature,
                **find_cut(call),
            )
        )
        at = step.at
        # Encoding is cheap, and an action that is short as a whole has no long text to cut.
        short = len(msgspec.json.encode(step.action)) <= LONGEST_TEXT
        action = step.action if short else _cut_long_texts(step.action)
        if step.trust_state or step.counterparty:
            later = {"trustState": step.trust_state, "counterpartyContext": step.counterparty}
            action = {**action, **{k: _cut_long_texts(v) for k, v in later.items() if v}}
        decisions.append({**action, "step": i, "at": None if at is None else at.isoformat()})
    return Trajectory(
        trajectory_id=f"{window_id}/{agent_id}",
        agent_id=agent_id,
        window_id=window_id,
        row_ids=tuple(r.source_id for r in rows),
        turns=tuple(turns),
        decisions=tuple(decisions),
        start_balance_usd=steps[0].environment.balance_usd if steps else None,
        pnl_usd=_compute_pnl(rows, steps[0].environment.lifetime_pnl_usd if steps else None),
        game_knowledge=_collect_knowledge(rows),
        archetype=next((r.archetype for r in reversed(rows) if r.archetype is not None), None),
    )


def _collect_knowledge(rows: Sequence[SourceRow]) -> Json:
    """What only a judge may see of the rows' metadata; a later row's word wins, and lists of labels are joined."""
    knowledge: Json = {}
    for row in rows:
        known = row.metadata.get("gameKnowledge")
        if isinstance(known, dict):
            knowledge |= known
        elif known is not None:
            knowledge |= {"note": known}
    for key in _METADATA_HINDSIGHT:
        for row in rows:
            value = _cut_long_texts(row.metadata.get(key))
            if isinstance(value, list) and isinstance(knowledge.get(key), list):
                knowledge[key] = [*knowledge[key], *(v for v in value if v not in knowledge[key])]
            elif value:
                knowledge[key] = value
    return knowledge


def _cut_long_texts(value: Any) -> Any:
    """`value` with its long texts cut: `parameters` of megabytes occur, and only a judge reads an action."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST_TEXT else f"{value[:LONGEST_TEXT]}… ({len(value):,} characters)"
    if isinstance(value, dict):
        return {k: _cut_long_texts(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_cut_long_texts(v) for v in value]
    return value


def _compute_pnl(rows: Sequence[SourceRow], entered_with: float | None) -> float | None:
    """Money made inside the window, or None where that is unknown.

    `final_pnl` is the agent's lifetime P&L, so this is a difference: the last known `final_pnl` less what the agent
    entered with (`agentPnL` of its first step). Where that is not logged, it is less the first row's `final_pnl`, which
    leaves the first tick out; one row alone is then not enough.
    """
    known = [(i, r.final_pnl) for i, r in enumerate(rows) if r.final_pnl is not None]
    if not known:
        return None
    last, end = known[-1]
    if entered_with is not None:
        return end - entered_with
    first = rows[0].final_pnl
    return end - first if first is not None and last > 0 else None
