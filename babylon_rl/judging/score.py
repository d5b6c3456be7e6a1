"""Ask a judge about many groups: a stored judgment is never paid for again, a new one is stored at once.

The caller decides where judgments are stored (`cached`, `store`) and who else may be making them (`claims`);
`factory.py` decides which judge is asked.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import sqlalchemy as sa

from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.errors import BabylonRLError, ConfigError, TransientError
from babylon_rl.judging.judge import (
    BudgetSpentError,
    Judge,
    JudgeDownError,
    JudgeWithoutOutcomes,
    NoOutcomesError,
    TooFewRankedError,
    UnavailableError,
)
from babylon_rl.judging.ruler.sub_batches import balanced_key, is_unbalanced
from babylon_rl.types import Hindsight, Judgment, RetryKind, TrajectoryGroup

logger = logging.getLogger(__name__)

Item = tuple[TrajectoryGroup, Hindsight]

POLL_S: Final = 0.25  # between two looks at judgments that another process is making


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a group has no scores, and when to ask again.

    Attributes:
        reason: One sentence.
        retry_after_s: Seconds that the judge asked us to wait, if it did.
        until_rows_change: Asking again finds the same for as long as the group's rows stay as they are.
    """

    kind: RetryKind
    reason: str
    retry_after_s: float | None = None
    until_rows_change: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """The result for each group, by group id: in `judgments` or in `failed`.

    Attributes:
        calls: Groups that the judge was asked to score now (each may take several requests).
        cached: Groups whose judgment was stored already.
        refusal: The judge refuses us, so no group was asked after that; the operator must act.
    """

    judgments: dict[str, Judgment] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)
    calls: int = 0
    cached: int = 0
    refusal: ConfigError | None = None


class Claims(Protocol):
    """Who may make a judgment, of all that share the stored ones. A claim ends with its process."""

    async def claim(self, key: str) -> bool:
        """Claim the making of a judgment; False while somebody else holds it."""

    async def release(self, key: str) -> None:
        """Give a claim back, once the judgment is stored or could not be made."""


class NoClaims:
    """Nobody else makes judgments: every claim is granted."""

    async def claim(self, key: str) -> bool:
        return True

    async def release(self, key: str) -> None:
        """Nothing is held."""


def find_stored(key: str, cached: Callable[[str], Judgment | None]) -> Judgment | None:
    """The stored judgment of a group, by the key that its judge names; None: the judge has to be asked.

    Judgments in balanced sub-batches stand under a key of their own, and those from before they were balanced do not count.
    """
    known = cached(key)
    return known if known is not None and not is_unbalanced(known) else cached(balanced_key(key))


async def score_groups(
    judge: Judge,
    items: Sequence[Item],
    *,
    cached: Callable[[str], Judgment | None],
    store: Callable[[Judgment], None],
    claims: Claims | None = None,
    concurrency: int = 8,
    without_outcomes: Collection[str] = (),
    progress: Progress = ignore_progress,
) -> ScoreReport:
    """Judge each group once. A group that cannot be judged fails alone, whatever the reason.

    A judge that is down or refuses us is asked about no further group; what is stored already is still found.

    Args:
        judge: Opened and closed here; asked only about keys that `cached` does not know.
        items: Groups with their hindsight, in any order, each group once.
        cached: The stored judgment of a key, or None.
        store: Keeps one judgment; called the moment it arrives, before anything else is done with it.
        claims: A judgment that another process is making is waited for; None: nobody else makes any.
        concurrency: Groups judged at the same time.
        without_outcomes: Ids of groups that a judge which can judges by P&L alone; of the others, no judgment made so counts.
        progress: Called after each group: judged, cached or failed.

    Returns:
        Judgments and failures by group id, in the order of `items`.

    Raises:
        Exception: What `cached`, `store`, `claims` or the log of calls raised, such as a database out of reach. No
            further group was started; those under way were finished and stored.
    """
    run = _Run(judge, cached=cached, store=store, claims=claims or NoClaims(), progress=progress)
    run.without_outcomes = frozenset(without_outcomes)
    async with judge:
        waiting: Sequence[Item] = items
        while waiting and not run.errors:
            before = len(waiting)
            await run.settle_all(waiting, max(1, min(concurrency, before)))
            waiting, run.claimed_elsewhere = run.claimed_elsewhere, []
            if len(waiting) == before:
                await asyncio.sleep(POLL_S)
            elif waiting:
                logger.info("waiting for judgments that another process makes groups=%d", len(waiting))
    if run.errors:
        raise run.errors[0]
    return run.report([group.group_id for group, _ in items])


class _Run:
    """One call of `score_groups`: what came of each group so far."""

    def __init__(
        self,
        judge: Judge,
        *,
        cached: Callable[[str], Judgment | None],
        store: Callable[[Judgment], None],
        claims: Claims,
        progress: Progress,
    ) -> None:
        self._judge = judge
        self._cached = cached
        self._store = store
        self._claims = claims
        self._progress = progress
        self._judgments: dict[str, Judgment] = {}
        self._failed: dict[str, Failure] = {}
        self._calls = self._hits = self._answered = 0
        # Of a group without an answer: how many groups had one when it was first asked.
        self._answered_before: dict[str, int] = {}
        self._refusal: ConfigError | None = None
        self._down: Failure | None = None  # why the judge is asked about no further group
        self.without_outcomes: frozenset[str] = frozenset()
        self.claimed_elsewhere: list[Item] = []
        self.errors: list[Exception] = []

    async def settle_all(self, items: Sequence[Item], workers: int) -> None:
        """Settle each item: judged, found, failed, or put off because another process holds its claim."""

        async def work(queue: Iterator[Item]) -> None:
            for item in queue:
                try:
                    await self._settle(item)
                except Exception as e:  # noqa: BLE001  # groups in flight are paid for: finish them, then raise
                    self.errors.append(e)
                if self.errors:
                    return

        queue = iter(items)  # one iterator, many workers: each group goes to exactly one of them
        await asyncio.gather(*(work(queue) for _ in range(workers)))

    def report(self, order: Sequence[str]) -> ScoreReport:
        """The result of all groups, in the order given."""
        failed = {g: self._with_kind(g, self._failed[g]) for g in order if g in self._failed}
        logger.info(
            "scored groups=%d cached=%d asked=%d failed=%d judge=%s version=%s",
            len(self._judgments),
            self._hits,
            self._calls,
            len(failed),
            self._judge.model,
            self._judge.version,
        )
        return ScoreReport(
            judgments={g: self._judgments[g] for g in order if g in self._judgments},
            failed=failed,
            calls=self._calls,
            cached=self._hits,
            refusal=self._refusal,
        )

    def _with_kind(self, group_id: str, failure: Failure) -> Failure:
        """Whose fault a missing answer was shows only at the end: the judge's, unless it has answered others since."""
        answered_before = self._answered_before.get(group_id, self._answered)
        return replace(failure, kind=RetryKind.JUDGE_FAILED) if self._answered > answered_before else failure

    async def _settle(self, item: Item) -> None:
        group, hindsight = item
        try:
            key = self._judge.key(group, hindsight)
        except Exception as e:  # noqa: BLE001  # one group's content; its siblings go on
            self._fail(group, _explain(e))
            return
        if self._find(group, key):
            return
        if self._down is None:
            if not await self._claims.claim(key):
                self.claimed_elsewhere.append(item)
                return
            try:
                # Between our look and our claim, another process may have stored it and gone.
                if not self._find(group, key):
                    await self._ask(group, hindsight)
            finally:
                await self._claims.release(key)
        else:
            self._fail(group, self._down)

    def _find(self, group: TrajectoryGroup, key: str) -> bool:
        known = find_stored(key, self._cached)
        if known is None or (known.outcomes == "none" and group.group_id not in self.without_outcomes):
            return False
        self._hits += 1
        self._judgments[group.group_id] = known
        self._progress()
        return True

    async def _ask(self, group: TrajectoryGroup, hindsight: Hindsight) -> None:
        if self._down is not None:  # since we waited for the claim
            self._fail(group, self._down)
            return
        self._calls += 1
        answered_before = self._answered
        try:
            if group.group_id in self.without_outcomes and isinstance(self._judge, JudgeWithoutOutcomes):
                fresh = await self._judge.judge_without_outcomes(group, hindsight)
            else:
                fresh = await self._judge.judge(group, hindsight)
        except Exception as e:
            if _is_of_our_database(e):
                raise
            failure = _explain(e)
            if isinstance(e, ConfigError | JudgeDownError):
                self._down = self._down or failure
                self._refusal = self._refusal or (e if isinstance(e, ConfigError) else None)
            elif isinstance(e, TransientError):
                self._answered_before[group.group_id] = answered_before
            self._fail(group, failure)
            return
        self._store(fresh)
        self._answered += 1
        self._judgments[group.group_id] = fresh
        self._progress()

    def _fail(self, group: TrajectoryGroup, failure: Failure) -> None:
        self._failed[group.group_id] = failure
        logger.warning("could not judge group=%s kind=%s reason=%s", group.group_id, failure.kind.value, failure.reason)
        self._progress()


def _explain(e: Exception) -> Failure:
    if isinstance(e, UnavailableError):
        return Failure(kind=RetryKind.JUDGE_DOWN, reason=str(e), retry_after_s=e.retry_after_s)
    if isinstance(e, ConfigError | TransientError):
        return Failure(kind=RetryKind.JUDGE_DOWN, reason=str(e))
    if isinstance(e, NoOutcomesError):
        return Failure(kind=RetryKind.WAITING_FOR_OUTCOMES, reason=str(e))
    if isinstance(e, TooFewRankedError):
        return Failure(kind=RetryKind.JUDGE_FAILED, reason=str(e), until_rows_change=True)
    if isinstance(e, BudgetSpentError):
        return Failure(kind=RetryKind.OVER_BUDGET, reason=str(e))
    if isinstance(e, BabylonRLError):
        return Failure(kind=RetryKind.JUDGE_FAILED, reason=str(e))
    logger.error("judging raised an error nobody expected", exc_info=e)
    # Its text could hold anything, a prompt or a key included.
    return Failure(
        kind=RetryKind.JUDGE_FAILED, reason=f"judging raised {type(e).__name__}, which is a bug; the log has its trace"
    )


def _is_of_our_database(e: Exception) -> bool:
    """Whether the log of calls is out of reach. A value that it cannot take is one group's matter."""
    return isinstance(e, sa.exc.SQLAlchemyError) and not isinstance(e, sa.exc.DataError)
