"""The asset checks, each declared once: what a window must satisfy before it may train.

First the registry, `CHECKS`: from it come Dagster's asset checks (`defs/checks.py`), the list of those that training
requires (`REQUIRED_CHECKS`, the table `required_checks`), and those that `rejudge` runs again. Below it are the rules,
on plain values.

A window that holds no group passes its group's checks vacuously (its facts say so); it has no judgment, so
training never sees it.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import sqlalchemy as sa

from babylon_rl.ingest.reader import logged_messages, window_ids
from babylon_rl.ingest.stitching import LABELS
from babylon_rl.judging.ties import tie_classes, tolerance_of
from babylon_rl.pipeline.each_window import explain_failure, is_of_one_window, note_failure
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.check_results import CheckSubject, read_check_subjects, write_check_results
from babylon_rl.store.dropout import is_dropped
from babylon_rl.store.hours import windows_of
from babylon_rl.store.judge_audits import audit_of
from babylon_rl.store.judge_calls import cost_of
from babylon_rl.store.retries import clear_retry, read_tries
from babylon_rl.store.row_outcomes import row_outcomes_of
from babylon_rl.types import CheckResult, Hindsight, Json, Judgment, RowOutcome, Trajectory, TrajectoryGroup
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

LEAK_MIN_CHARS = 12  # shorter hindsight texts ("YES", a ticker) occur in honest prompts too
FEWEST_TO_COMPARE: Final = 2  # the minimum of a group for which none was recorded

CheckFunction = Callable[[HourWindow, Workspace], CheckResult]
CheckedAsset = Literal["contextualized_groups", "ruler_scores"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One claim about a window; the function's name and docstring are the check's name and description.

    Attributes:
        asset: The asset whose materialization it checks: a group, or (`ruler_scores`) a judgment.
        required: Whether a window trains only when it has passed this check.
    """

    asset: CheckedAsset
    required: bool
    run: CheckFunction

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def description(self) -> str:
        return (self.run.__doc__ or "").strip()

    @property
    def is_about_judgment(self) -> bool:
        return self.asset == "ruler_scores"

    def subject(self, about: CheckSubject) -> str | None:
        """The version of the group, or the judgment, that a result of this check is about."""
        return about.judgment if self.is_about_judgment else about.group


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedWindow:
    """The result of one check on one window.

    Attributes:
        kept: Whether it counts for training: there was something to check, and it is still what is current.
    """

    result: CheckResult
    kept: bool


def run_check(check: Check, windows: Sequence[HourWindow], workspace: Workspace) -> dict[HourWindow, CheckedWindow]:
    """Run one check on each window of some hours and keep the results.

    Of an hour with scenarios each is checked, and fails, alone; what is returned is then of all of them. A check that raises has failed on that window, with the exception as its reason; the window is looked at again later.
    """
    windows_of_hour = windows_of(workspace.store.engine, windows)
    checked = _run_check(check, [w for of_hour in windows_of_hour.values() for w in of_hour], workspace)
    return {hour: _combine({w: checked[w] for w in of_hour}) for hour, of_hour in windows_of_hour.items()}


def _combine(checked: Mapping[HourWindow, CheckedWindow]) -> CheckedWindow:
    if len(checked) == 1:
        return next(iter(checked.values()))
    facts = {str(w): c.result.facts for w, c in sorted(checked.items())}
    failed = [w for w, c in sorted(checked.items()) if not c.result.passed]
    result = CheckResult(
        passed=not failed, facts=facts | ({"failed_windows": [str(w) for w in failed]} if failed else {})
    )
    return CheckedWindow(result=result, kept=all(checked[w].kept for w in failed or checked))


def _run_check(check: Check, windows: Sequence[HourWindow], workspace: Workspace) -> dict[HourWindow, CheckedWindow]:
    engine = workspace.store.engine
    about = {w: check.subject(s) for w, s in read_check_subjects(engine, windows).items()}
    tries = read_tries(engine, windows)
    results: dict[HourWindow, CheckResult] = {}
    raised: dict[HourWindow, CheckResult] = {}
    for window in windows:
        try:
            results[window] = check.run(window, workspace)
        except Exception as e:
            if not is_of_one_window(e):
                raise
            logger.warning("check raised window=%s check=%s error=%s", window, check.name, type(e).__name__)
            reason = explain_failure(e)
            facts: Json = {"failed": reason[:500]}
            if (
                not tries[window].is_error or tries[window].stage == check.name
            ):  # else an asset failed, which is the cause
                facts = note_failure(workspace, window, check.name, reason, version=tries[window].version).facts
            raised[window] = CheckResult(passed=False, facts=facts)
        else:
            if tries[window].stage == check.name:
                clear_retry(engine, window, check.name)
    kept = write_check_results(engine, check.name, results, about=about)
    return {w: CheckedWindow(result=results[w] if w in results else raised[w], kept=w in kept) for w in windows}


_declared: list[Check] = []


def _check(asset: CheckedAsset, *, required: bool) -> Callable[[CheckFunction], CheckFunction]:
    def declare(run: CheckFunction) -> CheckFunction:
        _declared.append(Check(asset=asset, required=required, run=run))
        return run

    return declare


@_check("contextualized_groups", required=True)
def groups_have_enough_agents(window: HourWindow, workspace: Workspace) -> CheckResult:
    """A group has as many distinct agents as grouping asked for: BABYLON_MIN_AGENTS, or the run's own min_agents."""
    store = workspace.store
    at_least = store.min_agents(window) or FEWEST_TO_COMPARE
    return enough_agents(store.group(window), store.trajectories(window), at_least=at_least)


@_check("contextualized_groups", required=True)
def groups_hold_only_what_was_logged(window: HourWindow, workspace: Workspace) -> CheckResult:
    """No leak: every message that may train is, to the byte, one the game logged before the decision's outcome."""
    with workspace.game.connect() as conn:
        return only_what_was_logged(conn, window, workspace.store.group(window), workspace.store.hindsight(window))


@_check("contextualized_groups", required=True)
def groups_have_trainable_tokens(window: HourWindow, workspace: Workspace) -> CheckResult:
    """Every member of a group has a non-empty answer: empty ones would cost a training and change no weight."""
    return trainable_tokens(workspace.store.group(window))


@_check("contextualized_groups", required=True)
def every_row_is_accounted_for(window: HourWindow, workspace: Workspace) -> CheckResult:
    """Nothing is lost: each row of the game's table in this window is in `row_outcomes` once, and no other row is."""
    with workspace.game.connect() as conn:
        return every_row_accounted(
            conn, window, workspace.store.rows_read(window), row_outcomes_of(workspace.store.engine, window)
        )


@_check("ruler_scores", required=True)
def scores_are_in_unit_interval(window: HourWindow, workspace: Workspace) -> CheckResult:
    """Every score lies in [0, 1]; one outside means that the judge's reply was misread."""
    return scores_in_unit_interval(workspace.store.judgment(window))


@_check("ruler_scores", required=True)
def every_member_has_one_score(window: HourWindow, workspace: Workspace) -> CheckResult:
    """Scores match members by id, one each, but for those that the judgment leaves out by name and reason."""
    # Dropout leaves a window unjudged on purpose; without a judgment it does not train.
    if is_dropped(workspace.store.engine, workspace.settings.lineage, window):
        return CheckResult(passed=True, facts={"dropped_out": True})
    judgment = workspace.store.judgment(window)
    result = one_score_per_member(workspace.store.group(window), judgment)
    return (
        result
        if judgment is not None
        else CheckResult(passed=result.passed, facts=result.facts | _say_why(window, workspace))
    )


@_check("ruler_scores", required=True)
def scores_are_not_all_equal(window: HourWindow, workspace: Workspace) -> CheckResult:
    """Scores differ: equal ones carry no advantage, so the window is left out of training."""
    return scores_spread(workspace.store.judgment(window))


@_check("ruler_scores", required=True)
def judge_is_fit(window: HourWindow, workspace: Workspace) -> CheckResult:
    """The judge's newest audit found it neither biased, nor open to persuasion, nor blind to outcomes."""
    judgment = workspace.store.judgment(window)
    if judgment is None:
        return judge_fit(None, None)
    audit = audit_of(workspace.store.engine, judgment.judge_model, judgment.judge_version)
    return judge_fit(judgment, None if audit is None else (audit.fit, audit.figures))


@_check("ruler_scores", required=True)
def judging_stays_within_budget(window: HourWindow, workspace: Workspace) -> CheckResult:
    """The window was not left unjudged because JUDGE_BUDGET_USD was spent; its facts show what it cost."""
    cost = cost_of(workspace.store.engine, str(window))
    return within_budget(
        workspace.store.group(window),
        workspace.store.judgment(window),
        denied=cost.denied,
        cost_usd=cost.cost_usd,
        budget_usd=workspace.settings.judge.budget_usd,
    )


CHECKS: Final = tuple(_declared)
REQUIRED_CHECKS: Final = tuple(check.name for check in CHECKS if check.required)


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


def _say_why(window: HourWindow, workspace: Workspace) -> Json:
    """Why a window has no judgment, and when it is tried again."""
    facts: Json = {}
    for state in workspace.ledger.eligibility.states([window]):
        if state.window_id != str(window):  # another scenario of its hour
            continue
        facts["state"] = state.state.value
        if state.explanation is not None:
            facts["reason"] = state.explanation
        if state.not_before is not None:
            facts["tried_again_at"] = state.not_before.isoformat(timespec="seconds")
    return facts


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
