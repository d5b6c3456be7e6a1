"""Is there enough to train on? `check-windows` answers in one table, one line, and an exit status."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from babylon_rl.windows import HOUR, HourWindow
from babylon_rl.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowLine:
    """One window as `check-windows` shows it.

    Attributes:
        rows: Rows of `trajectories` in it.
        agents: Distinct agents with training rows.
        state: How far it has come: `recorded`, `grouped`, `judged`, `kept out: <check>`, `trained @<step>`.
    """

    window_id: str
    rows: int
    agents: int
    avg_pnl_usd: float | None
    outcomes: bool
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What stands ready, and the command that mends what does not."""

    lines: tuple[WindowLine, ...]
    with_enough_agents: int
    unused: int
    min_agents: int
    min_windows: int
    mend: str | None

    @property
    def ready(self) -> bool:
        return self.mend is None


def readiness(
    workspace: Workspace, *, min_agents: int, min_windows: int, now: datetime, since: HourWindow | None = None
) -> Readiness:
    """Look at every recorded window and at what our side made of it.

    Args:
        workspace: Its game database is read, so this works before anything was materialized.
        min_agents: Distinct agents a window needs.
        min_windows: Unused windows one training needs.
        now: Says how many hours back `sync-outcomes` must look.
        since: Leave older windows out of the table.
    """
    query = sa.text("""
        SELECT window_id, count(*) AS rows, count(DISTINCT agent_id) AS agents,
               avg(final_pnl) AS avg_pnl,
               EXISTS (SELECT 1 FROM market_outcomes o WHERE o.window_id = t.window_id) AS outcomes
        FROM trajectories t
        WHERE window_id IS NOT NULL AND is_training_data AND NOT is_evaluation
        GROUP BY window_id ORDER BY window_id""")
    with workspace.game.connect() as conn:
        found = conn.execute(query).mappings().all()
    states = {s.window_id: s for s in workspace.store.window_states()}
    used = {w: c.step for c in workspace.ledger.checkpoints() for w in c.windows}
    lines = []
    for r in found:
        w = r["window_id"]
        s = states.get(w)
        if w in used:
            state = f"trained @{used[w]}"
        elif s is not None and s.failed_checks:
            state = f"kept out: {', '.join(s.failed_checks)}"
        elif s is not None and s.judged:
            state = "judged"
        else:
            state = "grouped" if s is not None and s.grouped else "recorded"
        lines.append(
            WindowLine(
                window_id=w,
                rows=r["rows"],
                agents=r["agents"],
                avg_pnl_usd=r["avg_pnl"],
                outcomes=r["outcomes"],
                state=state,
            )
        )
    enough = [x for x in lines if x.agents >= min_agents]
    unused = [x for x in enough if x.window_id not in used and not x.state.startswith("kept out")]
    return Readiness(
        lines=tuple(x for x in lines if since is None or x.window_id >= str(since)),
        with_enough_agents=len(enough),
        unused=len(unused),
        min_agents=min_agents,
        min_windows=min_windows,
        mend=_mend(enough, unused, min_agents, min_windows, now),
    )


def recorded_but_not_judged(workspace: Workspace, *, min_agents: int) -> list[HourWindow]:
    """Windows with enough agents that no judgment speaks for yet and no checkpoint has used, in time order.

    A window that a check keeps out was looked at and is not asked again: `materialize` does that by hand.
    """
    query = sa.text("""
        SELECT window_id FROM trajectories
        WHERE window_id IS NOT NULL AND is_training_data AND NOT is_evaluation
        GROUP BY window_id HAVING count(DISTINCT agent_id) >= :n""")
    with workspace.game.connect() as conn:
        found = set(conn.scalars(query, {"n": min_agents}))
    done = {s.window_id for s in workspace.store.window_states() if s.judged or s.failed_checks}
    used = {w for c in workspace.ledger.checkpoints() for w in c.windows}
    return HourWindow.parse_all(found - done - used)


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
    enough: Sequence[WindowLine], unused: Sequence[WindowLine], min_agents: int, min_windows: int, now: datetime
) -> str | None:
    if len(unused) < min_windows:
        missing = min_windows - len(unused)
        used = f" ({len(enough) - len(unused)} are used or kept out)" if len(enough) > len(unused) else ""
        return (
            f"{missing} more window{'s' * (missing > 1)} with {min_agents}+ agents needed{used}; run: "
            f"babylon-rl spawn-test-agents --agents {min_agents} --windows {missing}"
        )
    if blind := [x for x in unused if not x.outcomes]:
        hours = (HourWindow.containing(now).start_at - HourWindow.parse(blind[0].window_id).start_at) // HOUR
        return (
            f"{len(blind)} window{'s have' if len(blind) > 1 else ' has'} no market outcomes, so no ground truth to "
            f"judge by; run: babylon-rl sync-outcomes --hours {max(hours, 24)}"
        )
    return None
