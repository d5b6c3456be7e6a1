"""The rules behind the asset checks, in plain Python: each looks at one window and gives one verdict.

A window that holds no group passes its group's checks vacuously (its facts say so); it has no judgment, so
training never sees it.
"""

import math
from collections import Counter
from collections.abc import Sequence

import sqlalchemy as sa

from babylon_rl.ingest.reader import logged_messages, window_ids
from babylon_rl.types import CheckResult, Hindsight, Json, Judgment, RowOutcome, Trajectory, TrajectoryGroup
from babylon_rl.windows import HourWindow

EQUAL_WITHIN = 1e-6
LLM_EQUAL_WITHIN = 0.01  # an LLM's third decimal is no judgment; the hindsight judge's is arithmetic
LEAK_MIN_CHARS = 12  # shorter hindsight texts ("YES", a ticker) stand in honest prompts too


def enough_agents(group: TrajectoryGroup | None, trajectories: list[Trajectory], *, at_least: int = 2) -> CheckResult:
    """Members are distinct agents; grouping already asked for `min_agents`, here nothing may have slipped."""
    if group is None:
        return CheckResult(passed=True, facts={"members": 0, "agents_seen": len({t.agent_id for t in trajectories})})
    agents = {m.agent_id for m in group.members}
    return CheckResult(
        passed=len(agents) >= at_least and len(agents) == len(group.members),
        facts={"members": len(group.members), "distinct_agents": len(agents), "at_least": at_least},
    )


def every_row_accounted(
    conn: sa.Connection, window: HourWindow, rows_read: int | None, outcomes: Sequence[RowOutcome]
) -> CheckResult:
    """Rows in the game's table now = rows read = rows accounted for, each id once."""
    there, accounted = window_ids(conn, window), [o.source_id for o in outcomes]
    ended = Counter(o.status.value for o in outcomes)
    facts: Json = {
        "rows": len(there),
        "rows_read": rows_read,
        "accounted": len(accounted),
        **dict(sorted(ended.items())),
    }
    if differ := sorted(set(there) ^ set(accounted)):
        facts["differ"] = differ[:20]
    return CheckResult(passed=not differ and len(there) == len(accounted) == (rows_read or 0), facts=facts)


def only_what_was_logged(
    conn: sa.Connection, window: HourWindow, group: TrajectoryGroup | None, hindsight: Hindsight | None
) -> CheckResult:
    """Every trained (system, user, response) is a logged call of that agent; no hindsight text is in a prompt.

    The first half compares with the game's own rows, read again; the second looks for the hindsight's longer
    texts in what the agent was shown.
    """
    if group is None:
        return CheckResult(passed=True, facts={"members": 0})
    logged = logged_messages(conn, window)
    foreign = [
        f"{m.trajectory_id} turn {i}"
        for m in group.members
        for i, turn in enumerate(m.turns)
        if (m.agent_id, turn.system, turn.user, turn.response) not in logged
    ]
    told = sorted(_texts_of([h.game_knowledge for h in hindsight.members])) if hindsight is not None else []
    leaks = [
        f"{m.trajectory_id} turn {i}"
        for m in group.members
        for i, turn in enumerate(m.turns)
        if any(text in turn.system or text in turn.user for text in told)
    ]
    turns = sum(len(m.turns) for m in group.members)
    return CheckResult(
        passed=not foreign and not leaks, facts={"turns": turns, "not_logged": foreign[:20], "leaks": leaks[:20]}
    )


def trainable_tokens(group: TrajectoryGroup | None) -> CheckResult:
    """Counts the bytes of answers: each is at least one trainable token of any byte-level tokenizer's merge."""
    if group is None:
        return CheckResult(passed=True, facts={"members": 0})
    empty = [m.trajectory_id for m in group.members if not any(t.response for t in m.turns)]
    answer_bytes = sum(len(t.response.encode()) for m in group.members for t in m.turns)
    return CheckResult(passed=not empty, facts={"answer_bytes": answer_bytes, "without_answer": empty[:20]})


def scores_in_unit_interval(judgment: Judgment | None) -> CheckResult:
    """Every score is a finite number in [0, 1]."""
    if judgment is None:
        return CheckResult(passed=True, facts={"scores": 0})
    bad = [s.trajectory_id for s in judgment.scores if not (math.isfinite(s.value) and 0.0 <= s.value <= 1.0)]
    return CheckResult(passed=not bad, facts={"scores": len(judgment.scores), "trajectory_ids": bad[:20]})


def one_score_per_member(group: TrajectoryGroup | None, judgment: Judgment | None) -> CheckResult:
    """The scored ids are exactly the members' ids, each once. A group without any judgment fails: it was not judged."""
    if group is None:
        return CheckResult(passed=True, facts={"members": 0})
    members = sorted(m.trajectory_id for m in group.members)
    scored = [] if judgment is None else sorted(s.trajectory_id for s in judgment.scores)
    facts: Json = {"members": len(members), "scores": len(scored)}
    if scored != members:
        facts["differ"] = sorted(set(members) ^ set(scored))[:20]
    return CheckResult(passed=scored == members, facts=facts)


def scores_spread(judgment: Judgment | None) -> CheckResult:
    """Scores that are equal within the judge's tolerance carry no advantage; the group stays out whole."""
    if judgment is None:
        return CheckResult(passed=True, facts={"scores": 0})
    within = EQUAL_WITHIN if judgment.judge_model == "hindsight" else LLM_EQUAL_WITHIN
    values = [s.value for s in judgment.scores]
    spread = max(values) - min(values)
    facts: Json = {"spread": spread, "tolerance": within, **_consistency(judgment)}
    if spread <= within:
        facts["reason"] = f"all {len(values)} scores tie within {within:g}: no member did better than another"
    return CheckResult(passed=spread > within, facts=facts)


def judge_fit(judgment: Judgment | None, audit: tuple[bool, Json] | None) -> CheckResult:
    """The judge's newest audit found it fit. One that was never audited passes and says so: unknown is not unfit.

    Args:
        judgment: The window's current judgment.
        audit: `fit` and the figures of the newest audit of that judge's version, if there is one.
    """
    if judgment is None:
        return CheckResult(passed=True, facts={"scores": 0})
    judge = {"judge": f"{judgment.judge_model} {judgment.judge_version}"}
    if audit is None:
        return CheckResult(passed=True, facts={**judge, "audited": False, "next": "babylon-rl audit-judge"})
    fit, figures = audit
    return CheckResult(passed=fit, facts={**judge, "audited": True, **figures})


def within_budget(
    group: TrajectoryGroup | None, judgment: Judgment | None, *, denied: bool, cost_usd: float, budget_usd: float | None
) -> CheckResult:
    """The window was not left unjudged because the day's budget was spent.

    Args:
        group: The window's group.
        judgment: Its current judgment.
        denied: The last request for this window was not sent, because it could have crossed the budget.
        cost_usd: What judging the window cost so far.
        budget_usd: `JUDGE_BUDGET_USD`, if there is one.
    """
    left = group is not None and judgment is None and denied
    facts: Json = {"window_cost_usd": cost_usd, "budget_usd": budget_usd}
    if left:
        facts["reason"] = "JUDGE_BUDGET_USD is spent; raise it, or materialize ruler_scores again tomorrow (UTC)"
    return CheckResult(passed=not left, facts=facts)


def _consistency(judgment: Judgment) -> Json:
    found = judgment.details.get("position_consistency")
    return {} if found is None else {"position_consistency": found}


def _texts_of(value: object) -> set[str]:
    if isinstance(value, str):
        return {value} if len(value) >= LEAK_MIN_CHARS else set()
    if isinstance(value, dict):
        return set().union(*(_texts_of(v) for v in value.values())) if value else set()
    if isinstance(value, list | tuple):
        return set().union(*(_texts_of(v) for v in value)) if value else set()
    return set()
