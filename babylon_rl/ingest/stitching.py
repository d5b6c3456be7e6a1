"""Rows of one agent and one window (an hour, and a scenario where rows name one), in time order, become one `Trajectory`.

What belongs here: which call of a step is the policy's, and what a window's P&L is. Which rows a
window has is `ingest/queries.py`; who is compared with whom is `grouping/groups.py`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from babylon_rl.common.canonical import to_json
from babylon_rl.types import Json, LlmCall, RowOutcome, RowReason, RowStatus, SourceRow, Step, Trajectory, Turn
from babylon_rl.windows import HOUR_ID_LENGTH

LONGEST_TEXT: Final = 4_000  # characters of one text of an action; what an agent answered is never cut
REASONING: Final = frozenset({"reasoning", "thinking", "planning"})


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
    """The call that decided: the last of purpose `action`; else the step's only call, unless it only reasoned."""
    actions = [c for c in step.llm_calls if c.purpose.lower() == "action"]
    if actions:
        return actions[-1]
    if len(step.llm_calls) == 1 and step.llm_calls[0].purpose.lower() not in REASONING:
        return step.llm_calls[0]
    return None


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
            )
        )
        at = step.at
        # Encoding is cheap, and an action that is short as a whole has no long text to cut.
        action = step.action if len(to_json(step.action)) <= LONGEST_TEXT else _cut_long_texts(step.action)
        decisions.append({**action, "step": i, "at": None if at is None else at.isoformat()})
    knowledge: Json = {}
    for row in rows:
        known = row.metadata.get("gameKnowledge")
        if isinstance(known, dict):
            knowledge |= known
        elif known is not None:
            knowledge |= {"note": known}
    return Trajectory(
        trajectory_id=f"{window_id}/{agent_id}",
        agent_id=agent_id,
        window_id=window_id,
        row_ids=tuple(r.source_id for r in rows),
        turns=tuple(turns),
        decisions=tuple(decisions),
        start_balance_usd=steps[0].environment.balance_usd if steps else None,
        pnl_usd=_compute_pnl(rows, steps[0].environment.lifetime_pnl_usd if steps else None),
        game_knowledge=knowledge,
    )


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
