"""Ask a judge about many groups: a stored judgment is never paid for again, a new one is stored at once.

The caller decides where judgments are stored (`cached`, `store`); `factory.py` decides which judge is asked.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.errors import ConfigError, DataError
from babylon_rl.judging.judge import BudgetSpentError, Judge
from babylon_rl.types import Hindsight, Judgment, RetryKind, TrajectoryGroup

logger = logging.getLogger(__name__)

Item = tuple[TrajectoryGroup, Hindsight]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    kind: RetryKind
    reason: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """The result for each group, by group id: in `judgments` or in `failed`.

    Attributes:
        failed: Why a group has no scores, in one sentence.
        calls: Groups that the judge was asked to score now (each may take several requests).
        cached: Groups whose judgment was stored already.
        over_budget: The failed groups that were not judged because the day's budget was spent.
    """

    judgments: dict[str, Judgment] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)
    calls: int = 0
    cached: int = 0
    refusal: ConfigError | None = None


async def score_groups(
    judge: Judge,
    items: Sequence[Item],
    *,
    cached: Callable[[str], Judgment | None],
    store: Callable[[Judgment], None],
    claims: object = None,
    concurrency: int = 8,
    progress: Progress = ignore_progress,
) -> ScoreReport:
    """Judge each group once.

    Args:
        judge: Opened and closed here; asked only about keys that `cached` does not know.
        items: Groups with their hindsight, in any order, each group once.
        cached: The stored judgment of a key, or None.
        store: Keeps one judgment; called the moment it arrives, before anything else is done with it.
        concurrency: Groups judged at the same time.
        progress: Called after each group: judged, cached or failed.

    Returns:
        Judgments and failures by group id, in the order of `items`.

    Raises:
        TransientError: The judge went out of reach. No further group was started; those under way were finished
            and stored, so that trying again pays only for what is missing.
        ConfigError: The judge refuses us; the same holds for groups under way.
    """
    judgments: dict[str, Judgment] = {}
    failed: dict[str, Failure] = {}
    errors: list[Exception] = []
    hits = calls = 0

    async def settle(group: TrajectoryGroup, hindsight: Hindsight) -> None:
        nonlocal hits, calls
        try:
            known = cached(judge.key(group, hindsight))
            if known is None:
                calls += 1
                fresh = await judge.judge(group, hindsight)
                store(fresh)
                judgments[group.group_id] = fresh
            else:
                hits += 1
                judgments[group.group_id] = known
        except DataError as e:
            kind = RetryKind.OVER_BUDGET if isinstance(e, BudgetSpentError) else RetryKind.JUDGE_FAILED
            if "no outcomes" in str(e):
                kind = RetryKind.WAITING_FOR_OUTCOMES
            failed[group.group_id] = Failure(kind=kind, reason=str(e))
            logger.warning("could not judge group=%s reason=%s", group.group_id, e)
        progress()

    async def work(queue: Iterator[Item]) -> None:
        for group, hindsight in queue:
            try:
                await settle(group, hindsight)
            except Exception as e:  # noqa: BLE001  # groups in flight are paid for: finish them, then raise
                errors.append(e)
            if errors:
                return

    queue = iter(items)  # one iterator, many workers: each group goes to exactly one of them
    async with judge:
        await asyncio.gather(*(work(queue) for _ in range(max(1, min(concurrency, len(items))))))
    logger.info(
        "scored groups=%d cached=%d asked=%d failed=%d judge=%s version=%s",
        len(judgments),
        hits,
        calls,
        len(failed),
        judge.model,
        judge.version,
    )
    if errors:
        raise errors[0]
    order = [g.group_id for g, _ in items]
    return ScoreReport(
        judgments={g: judgments[g] for g in order if g in judgments},
        failed={g: failed[g] for g in order if g in failed},
        calls=calls,
        cached=hits,
    )
