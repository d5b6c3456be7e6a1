"""The data-quality gates: one claim each, one verdict per window. Training uses a window when all have passed.

A window without a group fails nothing: there is nothing in it that could train (`members: 0`).
"""

from babylon_rl.defs.assets import contextualized_groups, ruler_scores
from babylon_rl.defs.per_window import per_window_check
from babylon_rl.pipeline import checks
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.dropout import is_dropped
from babylon_rl.store.judge_audits import audit_of
from babylon_rl.store.judge_calls import cost_of
from babylon_rl.store.row_outcomes import row_outcomes_of
from babylon_rl.types import CheckResult
from babylon_rl.windows import HourWindow


@per_window_check(contextualized_groups)
def groups_have_enough_agents(window: HourWindow, workspace: Workspace) -> CheckResult:
    """A group of fewer distinct agents than BABYLON_MIN_AGENTS compares too little to teach anything."""
    return checks.enough_agents(workspace.store.group(window), workspace.store.trajectories(window))


@per_window_check(contextualized_groups)
def groups_hold_only_what_was_logged(window: HourWindow, workspace: Workspace) -> CheckResult:
    """No leak: every message that may train is, to the byte, one the game logged before the decision's outcome."""
    with workspace.game.connect() as conn:
        return checks.only_what_was_logged(
            conn, window, workspace.store.group(window), workspace.store.hindsight(window)
        )


@per_window_check(contextualized_groups)
def groups_have_trainable_tokens(window: HourWindow, workspace: Workspace) -> CheckResult:
    """A group whose answers are empty would cost a training and move no weight."""
    return checks.trainable_tokens(workspace.store.group(window))


@per_window_check(contextualized_groups)
def every_row_is_accounted_for(window: HourWindow, workspace: Workspace) -> CheckResult:
    """Nothing lost: each row of the game's table in this window stands in `row_outcomes` once, and no other."""
    store = workspace.store
    with workspace.game.connect() as conn:
        return checks.every_row_accounted(conn, window, store.rows_read(window), row_outcomes_of(store.engine, window))


@per_window_check(ruler_scores)
def scores_are_in_unit_interval(window: HourWindow, workspace: Workspace) -> CheckResult:
    """A score outside [0, 1] means that the judge's reply was misread; never train on it."""
    return checks.scores_in_unit_interval(workspace.store.judgment(window))


@per_window_check(ruler_scores)
def every_member_has_one_score(window: HourWindow, workspace: Workspace) -> CheckResult:
    """Scores match members by id, one each: a group judged in part is not judged."""
    if is_dropped(workspace.store.engine, workspace.settings.lineage, window):
        return CheckResult(
            passed=True, facts={"dropped_out": True}
        )  # not judged on purpose; without a judgment none trains
    return checks.one_score_per_member(workspace.store.group(window), workspace.store.judgment(window))


@per_window_check(ruler_scores)
def scores_are_not_all_equal(window: HourWindow, workspace: Workspace) -> CheckResult:
    """Equal scores have no advantage in them; the window is kept out whole."""
    return checks.scores_spread(workspace.store.judgment(window))


@per_window_check(ruler_scores)
def judge_is_fit(window: HourWindow, workspace: Workspace) -> CheckResult:
    """A judge that its audit found biased, talked to or blind to outcomes must not teach."""
    judgment = workspace.store.judgment(window)
    if judgment is None:
        return checks.judge_fit(None, None)
    audit = audit_of(workspace.store.engine, judgment.judge_model, judgment.judge_version)
    return checks.judge_fit(judgment, None if audit is None else (audit.fit, audit.figures))


@per_window_check(ruler_scores)
def judging_stays_within_budget(window: HourWindow, workspace: Workspace) -> CheckResult:
    """The window was not left unjudged because JUDGE_BUDGET_USD was spent; what it cost is beside it."""
    cost = cost_of(workspace.store.engine, str(window))
    return checks.within_budget(
        workspace.store.group(window),
        workspace.store.judgment(window),
        denied=cost.denied,
        cost_usd=cost.cost_usd,
        budget_usd=workspace.settings.judge.budget_usd,
    )


CHECKS = [
    groups_have_enough_agents,
    groups_hold_only_what_was_logged,
    groups_have_trainable_tokens,
    every_row_is_accounted_for,
    scores_are_in_unit_interval,
    every_member_has_one_score,
    scores_are_not_all_equal,
    judge_is_fit,
    judging_stays_within_budget,
]
