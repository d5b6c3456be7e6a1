"""Judge windows again with another judge or rubric: new judgments beside the old, and how the two differ.

Nothing that trains changes unless asked: the current judgment of a window stays, and what a checkpoint was trained on
is reported, never rewritten.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from babylon_rl.common.rank_agreement import kendall_tau
from babylon_rl.judging.judge import Judge
from babylon_rl.judging.score import Item, ScoreReport, find_stored, score_groups
from babylon_rl.pipeline.checks import CHECKS, run_check
from babylon_rl.pipeline.score import is_patience_over
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.hours import windows_of
from babylon_rl.store.judgment_claims import JudgmentClaims
from babylon_rl.store.ledger import find_trainings
from babylon_rl.store.windows import Store
from babylon_rl.types import Judgment
from babylon_rl.windows import HourWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class RejudgedWindow:
    """One window judged again.

    Attributes:
        old: The current judgment before; None: there was none.
        new: None when the new judge could not judge it; `failed` is the reason.
        tau: Rank agreement of the two, in [-1, 1]; None when either ranks nothing.
        trained: Checkpoint name → which judgment it was trained on: `old`, `new`, or the key of a third.
    """

    window_id: str
    old: Judgment | None
    new: Judgment | None
    failed: str | None
    tau: float | None
    trained: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RejudgeReport:
    """All windows judged again, in time order.

    Attributes:
        calls: Groups judged now.
        cached: Groups that this judge had judged before.
    """

    windows: tuple[RejudgedWindow, ...]
    calls: int
    cached: int
    cost_usd: float

    @property
    def mean_tau(self) -> float | None:
        known = [w.tau for w in self.windows if w.tau is not None]
        return sum(known) / len(known) if known else None


def rejudge(
    workspace: Workspace,
    judge: Judge,
    windows: Sequence[HourWindow],
    *,
    make_current: bool = False,
    concurrency: int = 8,
) -> RejudgeReport:
    """Judge the groups of `windows` with `judge`; what it judged before costs nothing.

    Args:
        workspace: Its store holds groups and judgments.
        judge: The new judge.
        windows: Hours; those without a group are left out.
        make_current: Make the new judgments the current ones of their windows, and run the checks on them.
        concurrency: Groups being judged at a time.

    Raises:
        ConfigError: The judge refuses our requests; the judgments that arrived are kept.
    """
    store = workspace.store
    each = [w for of_hour in windows_of(store.engine, windows).values() for w in of_hour]
    stored = {w: g for w in each if (g := store.stored_group(w)) is not None}
    items: dict[HourWindow, Item] = {w: (g.group, g.hindsight) for w, g in stored.items()}
    old = {w: store.judgment(w) for w in items}
    known_before = {w for w, (g, h) in items.items() if find_stored(judge.key(g, h), store.find_judgment) is not None}

    alone = [g.group_id for w, (g, _) in items.items() if is_patience_over(workspace, judge, w)]
    report = asyncio.run(_judge(store, judge, list(items.values()), concurrency, alone))
    if report.refusal is not None:
        raise report.refusal
    used = find_trainings(store.engine, list(items))
    rejudged = []
    for w, (group, _) in items.items():
        new = report.judgments.get(group.group_id)
        before = old[w]
        rejudged.append(
            RejudgedWindow(
                window_id=str(w),
                old=before,
                new=new,
                failed=failure.reason if (failure := report.failed.get(group.group_id)) else None,
                tau=None if before is None or new is None else kendall_tau(_values(before), _values(new)),
                trained={u.policy: _name_judgment(u.judgment_key, before, new) for u in used if u.window_id == str(w)},
            )
        )
        if make_current and new is not None:
            store.set_current_judgment(
                w, new, group_version=stored[w].version, instead_of=None if before is None else before.key
            )
            _check_judgment(workspace, w)
    return RejudgeReport(
        windows=tuple(rejudged),
        calls=report.calls,
        cached=report.cached,
        cost_usd=sum(
            j.cost_usd
            for w, (g, _) in items.items()
            if w not in known_before and (j := report.judgments.get(g.group_id))
        ),
    )


async def _judge(
    store: Store, judge: Judge, items: Sequence[Item], concurrency: int, without_outcomes: Sequence[str]
) -> ScoreReport:
    async with JudgmentClaims(store.engine) as claims:
        return await score_groups(
            judge,
            items,
            cached=store.find_judgment,
            store=store.write_judgment,
            claims=claims,
            concurrency=concurrency,
            without_outcomes=without_outcomes,
        )


def _check_judgment(workspace: Workspace, window: HourWindow) -> None:
    """Run the checks of judgments on the new one: the results for the old one no longer apply."""
    for check in CHECKS:
        if check.is_about_judgment:
            run_check(check, [window], workspace)


def _name_judgment(key: str, old: Judgment | None, new: Judgment | None) -> str:
    if old is not None and key == old.key:
        return "old"
    return "new" if new is not None and key == new.key else key[:12]


def _values(judgment: Judgment) -> dict[str, float]:
    return {s.trajectory_id: s.value for s in judgment.scores}
