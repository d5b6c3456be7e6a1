"""Is there enough to train on? `check-windows` answers in one table, one line, and an exit status."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from babylon_rl.ingest.window_summary import refresh
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.windows import HOUR, HourWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowLine:
    """One window as `check-windows` shows it.

    Attributes:
        rows: Rows of `trajectories` in it.
        agents: Distinct agents with training rows.
        state: How far it has come: `recorded`, `grouped`, `judged`, `kept out: <check>`, `dropped out`, `changed: …`,
            `trained @<step>`, `stale: trained @<step> on older rows`.
    """

    window_id: str
    rows: int
    agents: int
    avg_pnl_usd: float | None
    outcomes: bool
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What stands ready, and the command that mends what does not.

    Attributes:
        lines: The newest windows, in time order.
        windows: How many windows have rows that may train.
        stale: Windows that trained on rows or outcomes which have changed since.
    """

    lines: tuple[WindowLine, ...]
    windows: int
    with_enough_agents: int
    unused: int
    min_agents: int
    min_windows: int
    stale: tuple[str, ...]
    mend: str | None

    @property
    def ready(self) -> bool:
        return self.mend is None


def readiness(
    workspace: Workspace, *, min_agents: int, min_windows: int, now: datetime, last: int = 20, recount: bool = False
) -> Readiness:
    """Look at what is recorded and at what our side made of it; costs the same at a million rows as at a thousand.

    Args:
        workspace: Its game database is read, so this works before anything was materialized.
        min_agents: Distinct agents a window needs.
        min_windows: Unused windows one training needs.
        now: Says how many hours back `sync-outcomes` must look.
        last: Windows in the table, the newest.
        recount: Count old windows again too, in a game database that is polled (`ingest/window_summary.py`).
    """
    refresh(workspace.game, workspace.store.engine, full=recount)
    asked = {"n": min_agents, "lineage": workspace.ledger.lineage, "last": last}
    with workspace.store.engine.connect() as conn:
        total, enough, blind = conn.execute(_COUNTS, asked).one()
        spent, spent_blind = conn.execute(_SPENT, asked).one()
        oldest_blind = conn.scalar(_OLDEST_BLIND, asked) if blind > spent_blind else None
        stale = workspace.ledger.stale()
        lines = [_line(r, frozenset(stale)) for r in conn.execute(_LINES, asked).mappings()]
    unused = enough - spent
    return Readiness(
        lines=tuple(reversed(lines)),
        windows=total,
        with_enough_agents=enough,
        unused=unused,
        min_agents=min_agents,
        min_windows=min_windows,
        stale=tuple(stale),
        mend=_mend(enough, unused, blind - spent_blind, oldest_blind, min_agents, min_windows, now),
    )


_COUNTS = sa.text("""
    SELECT coalesce(sum(windows) FILTER (WHERE agents > 0), 0)::int,
           coalesce(sum(windows) FILTER (WHERE agents >= :n), 0)::int,
           coalesce(sum(windows) FILTER (WHERE agents >= :n AND NOT outcomes), 0)::int
    FROM babylon_rl.window_counts""")
# Used, dropped out or kept out: from the few windows that are, not from all that are recorded. `OFFSET 0` keeps the
# planner, which knows nothing about young tables, from hashing the whole summary instead.
_SPENT_WINDOWS = """
    SELECT window_id FROM babylon_rl.consumed_windows WHERE lineage = :lineage
    UNION SELECT window_id FROM babylon_rl.dropped_windows WHERE lineage = :lineage
    UNION SELECT window_id FROM babylon_rl.check_results WHERE NOT passed"""
_SPENT = sa.text(f"""
    SELECT count(*)::int, count(*) FILTER (WHERE NOT s.outcomes)::int
    FROM ({_SPENT_WINDOWS}) x CROSS JOIN LATERAL (
        SELECT * FROM babylon_rl.window_summary y WHERE y.window_id = x.window_id OFFSET 0) s
    WHERE s.agents >= :n""")  # noqa: S608
_OLDEST_BLIND = sa.text(f"""
    SELECT s.window_id FROM babylon_rl.window_summary s
    WHERE NOT s.outcomes AND s.agents >= :n AND s.window_id NOT IN ({_SPENT_WINDOWS})
    ORDER BY s.window_id LIMIT 1""")  # noqa: S608
_LINES = sa.text("""
    SELECT s.window_id, s.rows, s.agents, s.avg_pnl_usd, s.outcomes, c.step,
           d.window_id IS NOT NULL AS dropped, g.group_id IS NOT NULL AS grouped,
           j.judgment_key IS NOT NULL AS judged, s.changes > w.changes_seen AS changed,
           ARRAY(SELECT check_name FROM babylon_rl.check_results v
                 WHERE v.window_id = s.window_id AND NOT v.passed ORDER BY check_name) AS failed
    FROM (SELECT * FROM babylon_rl.window_summary WHERE rows > 0 ORDER BY window_id DESC LIMIT :last) s
    LEFT JOIN babylon_rl.windows w USING (window_id)
    LEFT JOIN babylon_rl.contextualized_groups g USING (window_id)
    LEFT JOIN babylon_rl.window_judgments j USING (window_id)
    LEFT JOIN babylon_rl.consumed_windows c ON c.window_id = s.window_id AND c.lineage = :lineage
    LEFT JOIN babylon_rl.dropped_windows d ON d.window_id = s.window_id AND d.lineage = :lineage
    ORDER BY s.window_id DESC""")


def _line(r: sa.RowMapping, stale: Set[str]) -> WindowLine:
    if r["step"] is not None:
        old = r["window_id"] in stale
        state = f"stale: trained @{r['step']} on older rows" if old else f"trained @{r['step']}"
    elif r["dropped"]:
        state = "dropped out"
    elif r["changed"]:
        state = "changed: rows came or were rewritten since it was read"
    elif r["failed"]:
        state = f"kept out: {', '.join(r['failed'])}"
    else:
        state = "judged" if r["judged"] else "grouped" if r["grouped"] else "recorded"
    return WindowLine(
        window_id=r["window_id"],
        rows=r["rows"],
        agents=r["agents"],
        avg_pnl_usd=r["avg_pnl_usd"],
        outcomes=r["outcomes"],
        state=state,
    )


def recorded_but_not_judged(workspace: Workspace, *, min_agents: int) -> list[HourWindow]:
    """Windows with enough agents that no judgment speaks for yet, or whose rows changed since, in time order.

    A window that a check keeps out was looked at and is not asked again while its rows stay as they are
    (`materialize` does that by hand). One that a checkpoint used is never asked again: it is reported as stale.
    """
    refresh(workspace.game, workspace.store.engine)
    query = sa.text("""
        SELECT s.window_id FROM babylon_rl.window_summary s
        LEFT JOIN babylon_rl.windows w USING (window_id)
        WHERE s.agents >= :n
          AND NOT EXISTS (SELECT 1 FROM babylon_rl.consumed_windows c
                          WHERE c.window_id = s.window_id AND c.lineage = :lineage)
          AND NOT EXISTS (SELECT 1 FROM babylon_rl.dropped_windows d
                          WHERE d.window_id = s.window_id AND d.lineage = :lineage)
          AND (s.changes > w.changes_seen
               OR NOT EXISTS (SELECT 1 FROM babylon_rl.window_judgments j WHERE j.window_id = s.window_id)
                  AND NOT EXISTS (SELECT 1 FROM babylon_rl.check_results v
                                  WHERE v.window_id = s.window_id AND NOT v.passed))""")
    with workspace.store.engine.connect() as conn:
        found = list(conn.scalars(query, {"n": min_agents, "lineage": workspace.ledger.lineage}))
    return HourWindow.parse_all(found)


def changes_of(workspace: Workspace, windows: Sequence[HourWindow]) -> int:
    """How often rows of `windows` were seen to change, all together: rises with every late or rewritten row."""
    query = sa.text("SELECT coalesce(sum(changes), 0)::int FROM babylon_rl.window_summary WHERE window_id = ANY(:w)")
    with workspace.store.engine.connect() as conn:
        return int(conn.scalar(query, {"w": [str(w) for w in windows]}))


def contiguous(windows: list[HourWindow], *, gap: int = 6) -> list[tuple[HourWindow, HourWindow]]:
    """Few ranges that cover `windows`: neighbours up to `gap` hours apart share a run."""
    ranges: list[tuple[HourWindow, HourWindow]] = []
    for w in sorted(windows):
        if ranges and w <= ranges[-1][1].next(gap):
            ranges[-1] = (ranges[-1][0], w)
        else:
            ranges.append((w, w))
    return ranges


def _mend(
    enough: int, unused: int, blind: int, oldest_blind: str | None, min_agents: int, min_windows: int, now: datetime
) -> str | None:
    if unused < min_windows:
        missing = min_windows - unused
        used = f" ({enough - unused} are used or kept out)" if enough > unused else ""
        return (
            f"{missing} more window{'s' * (missing > 1)} with {min_agents}+ agents needed{used}; run: "
            f"babylon-rl spawn-test-agents --agents {min_agents} --windows {missing}"
        )
    if oldest_blind is not None:
        hours = (HourWindow.containing(now).start_at - HourWindow.parse(oldest_blind).start_at) // HOUR
        return (
            f"{blind} window{'s have' if blind > 1 else ' has'} no market outcomes, so no ground truth to "
            f"judge by; run: babylon-rl sync-outcomes --hours {max(hours, 24)}"
        )
    return None
