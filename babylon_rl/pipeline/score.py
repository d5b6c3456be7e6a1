"""`ruler_scores`: every group judged once; a group that cannot be judged does not hold up the others."""

import logging
from collections.abc import Sequence
from typing import Final

from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.judging.judge import Judge
from babylon_rl.judging.score import score_groups
from babylon_rl.pipeline.window_result import WindowResult
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.dropout import drop_out
from babylon_rl.store.judge_calls import cost_of
from babylon_rl.store.judgment_claims import JudgmentClaims
from babylon_rl.store.windows import Store
from babylon_rl.types import Hindsight, Json, Judgment, RetryKind, TrajectoryGroup
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

STALE: Final = "rows or outcomes changed since the group was made; materialize `contextualized_groups` first"


async def score_range(
    workspace: Workspace, judge: Judge, windows: Sequence[HourWindow], *, progress: Progress = ignore_progress
) -> dict[HourWindow, WindowResult]:
    """Decide which of `windows` drop out of the lineage, and judge the groups of the others."""
    settings = workspace.settings
    dropped = drop_out(
        workspace.store.engine,
        settings.lineage,
        windows,
        target=settings.training.dropout_target,
        cap=settings.training.dropout_cap,
        seed=settings.seed,
    )
    results = await score_windows(
        [w for w in windows if w not in dropped],
        workspace.store,
        judge,
        # Twice what may be in flight: the next prompts are written while the judge works.
        concurrency=2 * settings.judge.concurrency,
        progress=progress,
    )
    nothing = WindowResult(data_version="none", changed=False, count=0, facts={"dropped_out": True})
    return {w: nothing if w in dropped else results[w] for w in windows}


async def score_windows(
    windows: Sequence[HourWindow],
    store: Store,
    judge: Judge,
    *,
    concurrency: int = 8,
    progress: Progress = ignore_progress,
) -> dict[HourWindow, WindowResult]:
    """Judge every group of `windows` once; a group judged before costs nothing.

    A group that cannot be judged fails alone: its window has no current judgment, and its facts say why.
    """
    items: dict[HourWindow, tuple[TrajectoryGroup, Hindsight]] = {}
    stale = {w for w in windows if store.is_stale(w)}
    for w in windows:
        if w in stale:
            continue
        group, hindsight = store.group(w), store.hindsight(w)
        if group is not None and hindsight is not None:
            items[w] = (group, hindsight)
    with JudgmentClaims(store.engine) as claims:
        report = await score_groups(
            judge,
            list(items.values()),
            cached=store.find_judgment,
            store=store.write_judgment,
            claims=claims,
            concurrency=concurrency,
            progress=progress,
        )
    results: dict[HourWindow, WindowResult] = {}
    for w in windows:
        if w not in items:
            store.set_current_judgment(w, "", None)
            facts: Json = {"failed": STALE} if w in stale else {"members": 0}
            results[w] = WindowResult(data_version="none", changed=False, count=0, facts=facts)
            continue
        group_id = items[w][0].group_id
        judgment = report.judgments.get(group_id)
        changed = store.set_current_judgment(w, group_id, None if judgment is None else judgment.key)
        results[w] = (
            WindowResult(
                data_version="none",
                changed=False,
                count=0,
                facts={
                    "failed": report.failed[group_id].reason,
                    "over_budget": report.failed[group_id].kind is RetryKind.OVER_BUDGET,
                },
            )
            if judgment is None
            else WindowResult(
                data_version=judgment.key, changed=changed, count=len(judgment.scores), facts=_summarise(judgment)
            )
        )
        cost = cost_of(store.engine, str(w))
        results[w].facts.update({"window_calls": cost.calls, "window_cost_usd": cost.cost_usd})
    logger.info(
        "scored windows=%d groups=%d calls=%d cached=%d failed=%d",
        len(windows),
        len(items),
        report.calls,
        report.cached,
        len(report.failed),
    )
    if report.refusal is not None:
        raise report.refusal
    return results


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
    }
