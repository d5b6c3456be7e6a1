"""What each per-window asset does, one function each: translate rows, group, judge. Never trains, never plays.

Every function takes plain values and the store, is idempotent, and answers with the few numbers its asset shows.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from babylon_rl.grouping.groups import SET_ASIDE, account, dispositions_of, make_group
from babylon_rl.grouping.hindsight import hindsight_for
from babylon_rl.ingest.outcomes import examine_outcomes, sync_window_outcomes
from babylon_rl.ingest.reader import stream_window, window_ids
from babylon_rl.ingest.stitching import stitch, usable
from babylon_rl.ingest.window_summary import changes_seen, refresh
from babylon_rl.judging.judge import Judge
from babylon_rl.judging.ruler.call_log import Journaled
from babylon_rl.judging.score import score_groups
from babylon_rl.store.judge_calls import PostgresJournal, cost_of
from babylon_rl.store.windows import PackedTrajectory, Store
from babylon_rl.types import Disposition, Hindsight, Json, Judgment, TrajectoryGroup, WindowOutcomes
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

STALE: Final = "rows or outcomes changed since the group was made; materialize `trajectory_groups` first"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one asset did with one window.

    Attributes:
        data_version: Hash of what is kept; equal versions are equal bytes.
        changed: Whether anything was written.
        count: The asset's row count.
        facts: Small numbers for the window's metadata.
    """

    data_version: str
    changed: bool
    count: int
    facts: Json


def ingest(window: HourWindow, game: sa.Engine, store: Store) -> Stage:
    """Read a window's rows, stitch them per agent, keep them, and account for every row."""
    # Before the rows are read: what changes after that is seen to have changed.
    refresh(game, store.engine, windows=[window])
    seen = changes_seen(store.engine, window)
    packed: list[PackedTrajectory] = []
    ends: list[Disposition] = []
    # A row rewritten while the window is read belongs to one version of it, not to two.
    with game.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        for agent in stream_window(conn, window):
            packed += [PackedTrajectory.of(t) for t in stitch(agent.rows) if usable(t)]
            ends += [*agent.aside, *dispositions_of(window, agent.rows, None)]
        read = len(window_ids(conn, window))
    version, changed = store.write_ingest(window, packed, ends, rows=read, changes_seen=seen)
    ended = Counter(d.disposition if d.disposition in SET_ASIDE else "usable" for d in ends)
    return Stage(
        data_version=version,
        changed=changed,
        count=len(packed),
        facts={
            "rows": read,
            "agents": len({t.agent_id for t in packed}),
            "set_aside": len(ends) - ended["usable"],
            "trajectories": len(packed),
        },
    )


def snapshot_outcomes(window: HourWindow, game: sa.Engine, store: Store, *, now: datetime, sync: bool) -> Stage:
    """Keep the truth about a closed window; `sync` computes it from the world's facts first (our database only)."""
    if not window.closed_at(now):
        version, changed = store.write_outcomes(WindowOutcomes(window_id=str(window)))
        return Stage(data_version=version, changed=changed, count=0, facts={"open": True})
    with game.begin() as conn:
        if sync:
            sync_window_outcomes(conn, window, now=now)
        outcomes, faults = examine_outcomes(conn, window)
    version, changed = store.write_outcomes(outcomes)
    return Stage(
        data_version=version,
        changed=changed,
        count=len(outcomes.stocks) + len(outcomes.predictions),
        facts={
            "stocks": len(outcomes.stocks),
            "predictions": len(outcomes.predictions),
            "overall_trend": outcomes.overall_trend,
            "volatility_pct": outcomes.volatility_pct,
            **faults.facts(),
        },
    )


def group(window: HourWindow, store: Store, *, min_agents: int) -> Stage:
    """Make a window's group and, apart from it, the hindsight; say of each row whether it got in."""
    trajectories = store.trajectories(window)
    made = make_group(window, trajectories, min_agents=min_agents)
    hindsight: Hindsight | None = None
    if made is not None:
        hindsight = hindsight_for(made, trajectories, store.outcomes(window))
    ends = account(store.dispositions(window), made)
    version, changed = store.write_group(window, made, hindsight, ends)
    members = 0 if made is None else len(made.members)
    turns = 0 if made is None else sum(len(m.turns) for m in made.members)
    return Stage(
        data_version=version,
        changed=changed,
        count=members,
        facts={
            "group_id": None if made is None else made.group_id,
            "members": members,
            "turns": turns,
            "agents_seen": len({t.agent_id for t in trajectories}),
            "outcomes_known": hindsight is not None and hindsight.outcomes.known,
        },
    )


async def score(
    windows: Sequence[HourWindow],
    store: Store,
    judge: Judge,
    *,
    concurrency: int = 8,
    budget_usd: float | None = None,
    on_done: Callable[[str], None] | None = None,
) -> dict[HourWindow, Stage]:
    """Judge every group of `windows` once; a group judged before costs nothing.

    Requests of a judge that costs money are kept in the journal, under `budget_usd` a UTC day. A group that cannot be judged fails alone: its window has no current judgment, and its facts say why.
    """
    items: dict[HourWindow, tuple[TrajectoryGroup, Hindsight]] = {}
    stale = {w for w in windows if store.is_stale(w)}
    for w in windows:
        if w in stale:
            continue
        made, hindsight = store.group(w), store.hindsight(w)
        if made is not None and hindsight is not None:
            items[w] = (made, hindsight)
    if isinstance(judge, Journaled):
        judge.keep_in(PostgresJournal(store.engine, budget_usd=budget_usd))
    report = await score_groups(
        judge,
        list(items.values()),
        cached=store.find_judgment,
        store=store.write_judgment,
        concurrency=concurrency,
        on_done=on_done,
    )
    stages: dict[HourWindow, Stage] = {}
    for w in windows:
        if w not in items:
            store.set_current_judgment(w, "", None)
            facts: Json = {"failed": STALE} if w in stale else {"members": 0}
            stages[w] = Stage(data_version="none", changed=False, count=0, facts=facts)
            continue
        group_id = items[w][0].group_id
        judgment = report.judgments.get(group_id)
        news = store.set_current_judgment(w, group_id, None if judgment is None else judgment.key)
        stages[w] = (
            Stage(
                data_version="none",
                changed=False,
                count=0,
                facts={"failed": report.failed.get(group_id, "unknown"), "over_budget": group_id in report.over_budget},
            )
            if judgment is None
            else Stage(data_version=judgment.key, changed=news, count=len(judgment.scores), facts=spread(judgment))
        )
        if isinstance(judge, Journaled):
            cost = cost_of(store.engine, str(w))
            stages[w].facts.update({"window_calls": cost.calls, "window_cost_usd": cost.cost_usd})
    logger.info(
        "scored windows=%d groups=%d calls=%d cached=%d failed=%d",
        len(windows),
        len(items),
        report.calls,
        report.cached,
        len(report.failed),
    )
    return stages


def spread(judgment: Judgment) -> Json:
    """The numbers of a judgment that tell at a glance whether it ranks."""
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
