"""The asset checks, each declared once: what a window must satisfy before it may train.

First the registry, `CHECKS`: from it come Dagster's asset checks (`defs/checks.py`), the list of those that training
requires (`REQUIRED_CHECKS`, the table `required_checks`), and those that `rejudge` runs again. The rules are in
`check_rules.py`.

A window that holds no group passes its group's checks vacuously (its facts say so); it has no judgment, so
training never sees it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from babylon_rl.pipeline.check_rules import (
    FEWEST_TO_COMPARE,
    enough_agents,
    every_row_accounted,
    judge_fit,
    one_score_per_member,
    only_what_was_logged,
    scores_in_unit_interval,
    scores_spread,
    trainable_tokens,
    within_budget,
)
from babylon_rl.pipeline.each_window import explain_failure, is_of_one_window, note_failure
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.check_results import CheckSubject, read_check_subjects, write_check_results
from babylon_rl.store.dropout import is_dropped
from babylon_rl.store.hours import windows_of
from babylon_rl.store.judge_audits import audit_of
from babylon_rl.store.judge_calls import cost_of
from babylon_rl.store.retries import clear_retry, read_tries
from babylon_rl.store.row_outcomes import row_outcomes_of
from babylon_rl.types import CheckResult, Json
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

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
