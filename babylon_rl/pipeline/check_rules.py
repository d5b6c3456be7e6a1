"""The rules of the asset checks, on plain values; `checks.py` declares which check asks which rule.

Every failed result has a `reason` among its facts: the sentence that `check-windows` and `explain` give.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from babylon_rl.ingest.reader import logged_messages, window_ids
from babylon_rl.ingest.stitching import LABELS
from babylon_rl.judging.ties import tie_classes, tolerance_of
from babylon_rl.types import CheckResult, Hindsight, Json, Judgment, RowOutcome, Trajectory, TrajectoryGroup
from babylon_rl.windows import HourWindow

LEAK_MIN_CHARS: Final = 12  # shorter hindsight texts ("YES", a ticker) occur in honest prompts too
FEWEST_TO_COMPARE: Final = 2  # the minimum of a group for which none was recorded


def enough_agents(group: TrajectoryGroup | None, trajectories: list[Trajectory], *, at_least: int) -> CheckResult:
    """Members are distinct agents, and at least `at_least`: the minimum that grouping asked for."""
    if group is None:
        return CheckResult(passed=True, facts={"members": 0, "agents_seen": len({t.agent_id for t in trajectories})})
    agents = {m.agent_id for m in group.members}
    passed = len(agents) >= at_least and len(agents) == len(group.members)
    facts: Json = {"members": len(group.members), "distinct_agents": len(agents), "at_least": at_least}
    if not passed:
        facts["reason"] = (
            f"its group has {len(agents)} distinct agents in {len(group.members)} members, of {at_least} needed"
        )
    return CheckResult(passed=passed, facts=facts)


def every_row_accounted(
    conn: sa.Connection, window: HourWindow, rows_read: int | None, outcomes: Sequence[RowOutcome]
) -> CheckResult:
    """Rows in the game's table now = rows read = rows accounted for, each id once."""
    recorded, accounted = window_ids(conn, window.hour), [o.source_id for o in outcomes]
    by_status = Counter(o.status.value for o in outcomes)
    facts: Json = {
        "rows": len(recorded),
        "rows_read": rows_read,
        "accounted": len(accounted),
        **dict(sorted(by_status.items())),
    }
    if differ := sorted(set(recorded) ^ set(accounted)):
        facts["differ"] = differ[:20]
    passed = not differ and len(recorded) == len(accounted) == (rows_read or 0)
    if not passed:
        facts["reason"] = (
            f"{len(recorded)} rows are recorded, {rows_read or 0} were read and {len(accounted)} have an outcome"
        )
    return CheckResult(passed=passed, facts=facts)


def only_what_was_logged(
    conn: sa.Connection, window: HourWindow, group: TrajectoryGroup | None, hindsight: Hindsight | None
) -> CheckResult:
    """Every trained (system, user, response) is a logged call of that agent; no hindsight text is in a prompt.

    The first half compares with the game's own rows, read again; the second looks for the hindsight's longer
    texts in what the agent was shown.
    """
    if group is None:
        return CheckResult(passed=True, facts={"members": 0})
    logged = logged_messages(conn, window.hour)
    foreign = [
        f"{m.trajectory_id} turn {i}"
        for m in group.members
        for i, turn in enumerate(m.turns)
        if (m.agent_id, turn.system, turn.user, turn.response) not in logged
    ]
    hindsight_texts = (
        sorted(_collect_texts([_leave_out_labels(h.game_knowledge) for h in hindsight.members]))
        if hindsight is not None
        else []
    )
    leaks = [
        f"{m.trajectory_id} turn {i}"
        for m in group.members
        for i, turn in enumerate(m.turns)
        if any(text in turn.system or text in turn.user for text in hindsight_texts)
    ]
    turns = sum(len(m.turns) for m in group.members)
    facts: Json = {"turns": turns, "not_logged": foreign[:20], "leaks": leaks[:20]}
    if leaks:
        facts["reason"] = f"hindsight stands in the prompt of {leaks[0]}, one of {len(leaks)}"
    elif foreign:
        facts["reason"] = f"{foreign[0]}, one of {len(foreign)}, is no call that the game logged"
    return CheckResult(passed=not foreign and not leaks, facts=facts)


def trainable_tokens(group: TrajectoryGroup | None) -> CheckResult:
    """Every member has a non-empty answer; a byte-level tokenizer makes at least one trainable token of it."""
    if group is None:
        return CheckResult(passed=True, facts={"members": 0})
    empty = [m.trajectory_id for m in group.members if not any(t.response for t in m.turns)]
    answer_bytes = sum(len(t.response.encode()) for m in group.members for t in m.turns)
    facts: Json = {"answer_bytes": answer_bytes, "without_answer": empty[:20]}
    if empty:
        facts["reason"] = f"{empty[0]}, one of {len(empty)}, has no answer that could train"
    return CheckResult(passed=not empty, facts=facts)


def scores_in_unit_interval(judgment: Judgment | None) -> CheckResult:
    """Every score is a finite number in [0, 1]."""
    if judgment is None:
        return CheckResult(passed=True, facts={"scores": 0})
    bad = [s.trajectory_id for s in judgment.scores if not (math.isfinite(s.value) and 0.0 <= s.value <= 1.0)]
    facts: Json = {"scores": len(judgment.scores), "trajectory_ids": bad[:20]}
    if bad:
        facts["reason"] = f"the score of {bad[0]}, one of {len(bad)}, lies outside [0, 1]"
    return CheckResult(passed=not bad, facts=facts)


def one_score_per_member(group: TrajectoryGroup | None, judgment: Judgment | None) -> CheckResult:
    """The scored ids are exactly those of the members not left out, two at least. A group without a judgment fails."""
    if group is None:
        return CheckResult(passed=True, facts={"members": 0})
    members = sorted(m.trajectory_id for m in group.members)
    scored = [] if judgment is None else sorted(s.trajectory_id for s in judgment.scores)
    left_out = {} if judgment is None else judgment.left_out
    ranked = [m for m in members if m not in left_out]
    facts: Json = {"members": len(members), "scores": len(scored)}
    if left_out:
        facts["left_out"] = dict(sorted(left_out.items())[:20])
    if strangers := sorted(left_out.keys() - set(members)):
        facts["not_members"] = strangers[:20]
    if scored != ranked:
        facts["differ"] = sorted(set(ranked) ^ set(scored))[:20]
        if judgment is not None:
            facts["reason"] = f"its judgment has {len(scored)} scores for {len(ranked)} ranked members"
    enough = not left_out or len(ranked) >= FEWEST_TO_COMPARE
    return CheckResult(passed=scored == ranked and not strangers and enough, facts=facts)


def scores_spread(judgment: Judgment | None) -> CheckResult:
    """Scores that are equal within the judge's tolerance carry no advantage; the whole group is left out."""
    if judgment is None:
        return CheckResult(passed=True, facts={"scores": 0})
    within = tolerance_of(judgment.judge_model)
    values = {s.trajectory_id: s.value for s in judgment.scores}
    spread = max(values.values()) - min(values.values())
    facts: Json = {"spread": spread, "tolerance": within, **_read_consistency(judgment)}
    differ = len(tie_classes(values, within=within)) > 1
    if not differ:
        facts["reason"] = f"all {len(values)} scores tie within {within:g}: no member did better than another"
    return CheckResult(passed=differ, facts=facts)


def judge_fit(judgment: Judgment | None, audit: tuple[bool, Json] | None) -> CheckResult:
    """The judge's newest audit found it fit. One that was never audited passes and says so: unknown is not unfit.

    Args:
        judgment: The window's current judgment.
        audit: `fit` and the figures of the newest audit of that judge's version, if there is one.
    """
    if judgment is None:
        return CheckResult(passed=True, facts={"scores": 0})
    judge = {"judge": f"{judgment.judge_model} {judgment.judge_version}"}
    if judgment.outcomes == "none":  # audits are made with outcomes
        judge["outcomes"] = "none"
    if audit is None:
        return CheckResult(passed=True, facts={**judge, "audited": False, "next": "babylon-rl audit-judge"})
    fit, figures = audit
    facts: Json = {**judge, "audited": True, **figures}
    if not fit:
        facts["reason"] = f"the newest audit of judge {judge['judge']} found it unfit"
    return CheckResult(passed=fit, facts=facts)


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


def _read_consistency(judgment: Judgment) -> Json:
    value = judgment.details.get("position_consistency")
    return {} if value is None else {"position_consistency": value}


def _leave_out_labels(knowledge: Json) -> Json:
    return {k: v for k, v in knowledge.items() if k not in LABELS}


def _collect_texts(value: object) -> set[str]:
    if isinstance(value, str):
        return {value} if len(value) >= LEAK_MIN_CHARS else set()
    if isinstance(value, dict):
        return set().union(*(_collect_texts(v) for v in value.values())) if value else set()
    if isinstance(value, list | tuple):
        return set().union(*(_collect_texts(v) for v in value)) if value else set()
    return set()
