"""`ruler_scores`: every group judged once; a group that cannot be judged does not hold up the others."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.judging.judge import Judge, JudgeWithoutOutcomes
from babylon_rl.judging.score import Failure, score_groups
from babylon_rl.pipeline.foreign_windows import is_of_training
from babylon_rl.pipeline.window_result import WindowResult, combine_scenarios
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.dropout import drop_out
from babylon_rl.store.eligibility import Reason, WindowState
from babylon_rl.store.groups import StoredGroup
from babylon_rl.store.hours import windows_of
from babylon_rl.store.judge_calls import cost_of
from babylon_rl.store.judgment_claims import JudgmentClaims
from babylon_rl.store.retries import UNTIL_ROWS_CHANGE, clear_retry, expect_judge, postpone, read_tries, release_errors
from babylon_rl.types import Json, Judgment, RetryKind, policy_name
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

STAGE: Final = "ruler_scores"
# Judging these would pay for a group that is about to be made anew, or that must not train.
_NOT_JUDGED: Final[Mapping[Reason, str]] = {
    Reason.NOT_READ: "its rows were not read; materialize `raw_trajectories` first",
    Reason.CHANGED: "rows or outcomes changed since they were read; materialize `raw_trajectories` and "
    "`market_outcomes` first",
    Reason.STALE: "rows or outcomes changed since the group was made; materialize `contextualized_groups` first",
}


async def score_range(
    workspace: Workspace,
    judge: Judge,
    windows: Sequence[HourWindow],
    *,
    unattended: bool = False,
    progress: Progress = ignore_progress,
) -> dict[HourWindow, WindowResult]:
    """Decide which windows of some hours drop out of the lineage, and judge the groups of the others."""
    settings = workspace.settings
    windows_of_hour = windows_of(workspace.store.engine, windows)
    each = [w for of_hour in windows_of_hour.values() for w in of_hour]
    dropped = drop_out(
        workspace.store.engine,
        settings.lineage,
        each,
        target=settings.training.dropout_target,
        cap=settings.training.dropout_cap,
        seed=settings.seed,
    )
    results = await score_windows(
        workspace,
        judge,
        [w for w in each if w not in dropped],
        # Twice what may be in flight: the next prompts are written while the judge works.
        concurrency=2 * settings.judge.concurrency,
        unattended=unattended,
        progress=progress,
    )
    nothing = WindowResult(data_version="none", changed=False, count=0, facts={"dropped_out": True})
    return {
        hour: combine_scenarios({w: nothing if w in dropped else results[w] for w in of_hour})
        for hour, of_hour in windows_of_hour.items()
    }


async def score_windows(
    workspace: Workspace,
    judge: Judge,
    windows: Sequence[HourWindow],
    *,
    concurrency: int = 8,
    unattended: bool = False,
    progress: Progress = ignore_progress,
) -> dict[HourWindow, WindowResult]:
    """Judge the group of each of `windows` once; a group judged before costs nothing.

    A group that cannot be judged fails alone: its window gets the reason and the time of its next try, and keeps the
    current judgment that it may have.

    Args:
        workspace: Its store holds groups and judgments.
        judge: Opened and closed here.
        windows: Each an hour, or a scenario of one. Those without a group, or whose rows or outcomes changed, are not judged.
        concurrency: Groups being judged at a time.
        unattended: Leave out windows whose time has not come, and those that the lineage has trained on and never
            will again; a person who asks has them judged at once.
        progress: Called after each group.

    Raises:
        ConfigError: The judge refuses us. What was judged before is kept, and every other window waits.
    """
    store, now = workspace.store, workspace.now()
    tries = read_tries(store.engine, windows)
    states = {s.window_id: s for s in workspace.ledger.eligibility.states(windows)}
    results: dict[HourWindow, WindowResult] = {}
    groups: dict[HourWindow, StoredGroup] = {}
    for w in windows:
        state = states.get(str(w))
        if (left_out := _find_obstacle(state)) is not None:
            results[w] = _make_result({"failed": left_out})
        elif unattended and state is not None and state.consumed_step is not None:
            results[w] = _make_result({"trained_by": policy_name(workspace.settings.lineage, state.consumed_step)})
        elif unattended and state is not None and state.not_before is not None and state.not_before > now:
            results[w] = _make_result(_describe_wait(state))
        elif (group := store.stored_group(w)) is None:
            results[w] = _make_result({"members": 0})
        else:
            groups[w] = group
    async with JudgmentClaims(store.engine) as claims:
        report = await score_groups(
            judge,
            [(g.group, g.hindsight) for g in groups.values()],
            cached=store.find_judgment,
            store=store.write_judgment,
            claims=claims,
            concurrency=concurrency,
            without_outcomes=[g.group.group_id for w, g in groups.items() if is_patience_over(workspace, judge, w)],
            progress=progress,
        )
    for w, group in groups.items():
        judgment = report.judgments.get(group.group.group_id)
        if judgment is not None:
            results[w] = _settle(workspace, w, group, judgment, stage=tries[w].stage)
        else:
            failure = report.failed[group.group.group_id]
            results[w] = _postpone(workspace, w, group, failure, end_of_patience(workspace, judge, w))
        cost = cost_of(store.engine, str(w))
        results[w].facts.update({"window_calls": cost.calls, "window_cost_usd": cost.cost_usd})
    is_down = any(f.kind is RetryKind.JUDGE_DOWN for f in report.failed.values())
    if report.calls and report.judgments and not is_down:
        expect_judge(store.engine, now=workspace.now())
    logger.info(
        "scored windows=%d groups=%d calls=%d cached=%d failed=%d",
        len(windows),
        len(groups),
        report.calls,
        report.cached,
        len(report.failed),
    )
    if report.refusal is not None:
        raise report.refusal
    return {w: results[w] for w in windows}


def end_of_patience(workspace: Workspace, judge: Judge, window: HourWindow) -> datetime | None:
    """When a window without outcomes is judged by P&L alone (BABYLON_OUTCOMES_PATIENCE); None: this judge never does."""
    hours = workspace.settings.judge.outcomes_patience
    if hours == "never" or not isinstance(judge, JudgeWithoutOutcomes):
        return None
    return window.end_at + timedelta(hours=hours)


def is_patience_over(workspace: Workspace, judge: Judge, window: HourWindow) -> bool:
    """Whether a window without outcomes may be judged by P&L alone now."""
    end = end_of_patience(workspace, judge, window)
    return end is not None and end <= workspace.now()


def _find_obstacle(state: WindowState | None) -> str | None:
    """Why a window's group is not judged now, whatever the judge; None: nothing is in the way."""
    if state is None or state.reason is None:
        return None
    if state.reason is Reason.ERROR and not is_of_training(state.stage):
        return state.explanation
    return _NOT_JUDGED.get(state.reason)


def _settle(
    workspace: Workspace, window: HourWindow, group: StoredGroup, judgment: Judgment, *, stage: str | None
) -> WindowResult:
    """Make a judgment the current one; `stage` is the one that could not prepare the window before."""
    settled = workspace.store.set_current_judgment(
        window, judgment, group_version=group.version, instead_of=group.judgment_key
    )
    if settled == "superseded":
        return _make_result(
            {"failed": "the window was grouped or judged anew meanwhile; this judgment is kept, unused"}
        )
    if stage == STAGE:
        clear_retry(workspace.store.engine, window, STAGE)
    elif stage is not None and is_of_training(stage):
        release_errors(workspace.store.engine, window, stage, now=workspace.now())
    return WindowResult(
        data_version=judgment.key,
        changed=settled == "set",
        count=len(judgment.scores),
        facts=_summarise(judgment),
    )


def _postpone(
    workspace: Workspace, window: HourWindow, group: StoredGroup, failure: Failure, patience_ends: datetime | None
) -> WindowResult:
    now, reason = workspace.now(), failure.reason
    if failure.kind is not RetryKind.WAITING_FOR_OUTCOMES:
        patience_ends = None
    elif patience_ends is not None and patience_ends > now:
        reason += f". From {patience_ends:%Y-%m-%d %H:%M} UTC it is judged by P&L alone (BABYLON_OUTCOMES_PATIENCE)"
    retry = postpone(
        workspace.store.engine,
        window,
        failure.kind,
        reason,
        stage=STAGE,
        version=group.version,
        now=now,
        at_least_s=UNTIL_ROWS_CHANGE.total_seconds() if failure.until_rows_change else failure.retry_after_s or 0.0,
        at_latest=patience_ends,
    )
    facts: Json = {"failed": reason, "state": failure.kind.value}
    if retry is not None:
        facts |= {"failures": retry.failures, "tried_again_at": retry.not_before.isoformat(timespec="seconds")}
    return _make_result(facts)


def _describe_wait(state: WindowState) -> Json:
    again = None if state.not_before is None else state.not_before.isoformat(timespec="seconds")
    return {
        "failed": state.explanation,
        "state": state.state.value,
        "failures": state.failures,
        "tried_again_at": again,
        "waits": True,
    }


def _make_result(facts: Json) -> WindowResult:
    return WindowResult(data_version="none", changed=False, count=0, facts=facts)


def _summarise(judgment: Judgment) -> Json:
    """The numbers that show at a glance whether a judgment ranks its group."""
    values = [s.value for s in judgment.scores]
    best = max(judgment.scores, key=lambda s: (s.value, s.trajectory_id))
    return {
        "judge": f"{judgment.judge_model} {judgment.judge_version}",
        "min": min(values),
        "max": max(values),
        "mean": sum(values) / len(values),
        "best": best.trajectory_id,
        "cost_usd": judgment.cost_usd,
        **judgment.details,
        **({"left_out": dict(list(judgment.left_out.items())[:20])} if judgment.left_out else {}),
    }
