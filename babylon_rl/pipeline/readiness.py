"""Is there enough to train on? `check-windows` answers in one table, one line, and an exit status."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from babylon_rl.pipeline.discover import discover
from babylon_rl.pipeline.foreign_windows import explain_foreign_play, find_set_aside, is_foreign_play
from babylon_rl.pipeline.outcomes import explain_uncomputable
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.eligibility import Reason, State, UnpreparedWindow, WindowState
from babylon_rl.store.recorded import RecordedCounts, RecordedWindow, count_recorded, newest_recorded
from babylon_rl.windows import HOUR, HourWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowLine:
    """One window as `check-windows` shows it.

    Attributes:
        rows: Rows of `trajectories` in its hour that may train.
        agents: Usable agents; of a window that was not read, distinct agents with rows that may train.
        state: How far it has come, in a few words: those of `store.eligibility.State`, with the cause where it is kept out.
        explanation: Why it waits, and when it is tried again; None: it does not.
    """

    window_id: str
    rows: int
    agents: int
    avg_pnl_usd: float | None
    outcomes: bool
    state: str
    explanation: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What is ready to train, and the command to run where that is not enough.

    Attributes:
        lines: The newest windows, in time order.
        windows: How many hours have rows that may train.
        with_enough_agents: Windows with enough usable agents.
        unused: Of those, what this lineage may still train on, now or once it is prepared.
        waiting: Of those, what waits for outcomes, for a judge, or after an exception.
        stale: Windows that trained on rows or outcomes which have changed since.
    """

    lines: tuple[WindowLine, ...]
    windows: int
    with_enough_agents: int
    unused: int
    waiting: int
    min_agents: int
    min_windows: int
    stale: tuple[str, ...]
    next_step: str | None

    @property
    def ready(self) -> bool:
        return self.next_step is None


def readiness(
    workspace: Workspace, *, min_agents: int, min_windows: int, now: datetime, last: int = 20, recount: bool = False
) -> Readiness:
    """Compare what is recorded with what was prepared; costs the same with a million rows as with a thousand.

    Args:
        workspace: Its game database is read, so this works before anything was materialized.
        min_agents: Distinct agents a window needs.
        min_windows: Unused windows one training needs.
        now: The current time, from which `sync-outcomes` counts hours back.
        last: Windows in the table, the newest.
        recount: Count old windows again too, in a game database that is polled (`ingest/window_summary.py`).
    """
    discover(workspace.game, workspace.store.engine, now=now, full=recount)
    eligibility = workspace.ledger.eligibility
    counts = count_recorded(workspace.store.engine, eligibility.lineage, min_agents)
    recorded = {r.window_id: r for r in newest_recorded(workspace.store.engine, last)}
    states = eligibility.states(HourWindow.parse_all(recorded), min_agents=min_agents)
    stale = workspace.ledger.stale()
    return Readiness(
        lines=tuple(_describe(recorded[s.hour_id], s) for s in states),
        windows=counts.windows,
        with_enough_agents=counts.with_enough_agents,
        unused=counts.unused,
        waiting=counts.waiting,
        min_agents=min_agents,
        min_windows=min_windows,
        stale=tuple(stale),
        next_step=_choose_next_step(workspace, counts, list(recorded.values()), min_agents, min_windows, now),
    )


_STATES: Final[Mapping[Reason | None, str]] = {
    Reason.ERROR: "kept out: {stage} failed: {why}",
    Reason.NOT_READ: "recorded",
    Reason.CHANGED: "changed: rows or outcomes came or were rewritten since it was read",
    Reason.STALE: "changed: rows or outcomes changed since it was grouped",
    Reason.CHECK_FAILED: "kept out: {why}",
    Reason.TOO_FEW_AGENTS: "kept out: {agents} usable agents",
    Reason.NOT_GROUPED: "recorded",
    Reason.WAITING_FOR_OUTCOMES: "waiting for outcomes",
    Reason.JUDGE_FAILED: "judge failed: {why}",
    Reason.JUDGE_DOWN: "judge down",
    Reason.OVER_BUDGET: "over budget",
    Reason.NOT_JUDGED: "grouped",
    Reason.CHECKS_MISSING: "judged, without {missing}",
    None: "judged",
}


def _describe(r: RecordedWindow, state: WindowState) -> WindowLine:
    match state.state:
        case State.TRAINED:
            text = f"trained @{state.consumed_step}"
        case State.STALE:
            text = f"stale: trained @{state.consumed_step} on older rows"
        case State.DROPPED_OUT:
            text = "dropped out"
        case State.PLANNED if state.reason is None:
            text = f"planned for @{state.planned_step}"
        case _ if state.reason is Reason.ERROR and is_foreign_play(state.stage):
            text = f"kept out: {(state.explanation or '').partition(';')[0]}"
        case _:
            text = _STATES[state.reason].format(
                why=state.explanation or ", ".join(state.failed_checks),
                missing=", ".join(state.missing_checks),
                agents=state.agents,
                stage=state.stage,
            )
    return WindowLine(
        window_id=state.window_id,
        rows=r.rows,
        agents=state.agents,
        avg_pnl_usd=r.avg_pnl_usd,
        outcomes=r.outcomes,
        state=text,
        explanation=_explain_wait(state),
    )


def _explain_wait(state: WindowState) -> str | None:
    if state.explanation is None or state.not_before is None:
        return None
    times = f"{state.failures} time{'s' * (state.failures > 1)}"
    tried = f"tried {times}; again after {state.not_before:%Y-%m-%d %H:%M} UTC"
    # What is a window's own stands in its line; what is the same for many is explained once below.
    if is_foreign_play(state.stage):
        return f"{state.explanation.partition(';')[2].strip()} ({tried})"
    return tried if "{why}" in _STATES[state.reason] else f"{state.explanation} ({tried})"


def unprepared_windows(workspace: Workspace, *, min_agents: int) -> list[UnpreparedWindow]:
    """Recorded windows that preparing can advance, each with the time before which it waits.

    A window that a check keeps out is not among them while its rows and outcomes stay as they are (`materialize` prepares it
    again by hand). One that cannot train (used, dropped, too few agents) is while it has rows that were not read.
    """
    discover(workspace.game, workspace.store.engine, now=workspace.now())
    return workspace.ledger.eligibility.unprepared(min_agents)


def recorded_but_not_judged(workspace: Workspace, *, min_agents: int) -> list[HourWindow]:
    """The windows of `unprepared_windows` that can still train, those included that wait: a person need not wait."""
    return [u.window for u in unprepared_windows(workspace, min_agents=min_agents) if not u.rows_only]


def contiguous(windows: list[HourWindow], *, gap: int = 6) -> list[tuple[HourWindow, HourWindow]]:
    """The ranges that cover `windows`: neighbours up to `gap` hours apart share a run."""
    ranges: list[tuple[HourWindow, HourWindow]] = []
    for w in sorted(windows):
        if ranges and w <= ranges[-1][1].next(gap):
            ranges[-1] = (ranges[-1][0], w)
        else:
            ranges.append((w, w))
    return ranges


def _choose_next_step(
    workspace: Workspace,
    counts: RecordedCounts,
    recorded: Sequence[RecordedWindow],
    min_agents: int,
    min_windows: int,
    now: datetime,
) -> str | None:
    """The next command, which can achieve something; None: enough windows can train, whatever others wait for."""
    oldest, without = counts.oldest_without_outcomes, counts.without_outcomes
    eligibility = workspace.ledger.eligibility
    tried = counts.left_out.get(Reason.WAITING_FOR_OUTCOMES, 0)  # without outcomes too, and not among the unused
    if counts.unused - max(0, without - tried) >= min_windows:
        unused = {HourWindow.parse(r.window_id) for r in eligibility.ready()}
        unused |= {u.window for u in eligibility.unprepared(min_agents) if not u.rows_only and u.is_due(now)}
        return explain_foreign_play(workspace, sorted(unused))
    if oldest is None or counts.unused + tried < min_windows:
        if counts.unused + counts.waiting >= min_windows:
            kept_back = {r: n for r, n in counts.left_out.items() if r is not Reason.CHECK_FAILED}
            if (refusal := explain_foreign_play(workspace, find_set_aside(workspace))) is not None:
                return refusal  # by trying again alone nothing changes
            kinds = ", ".join(f"{n} {_STATES[r].partition(':')[0]}" for r, n in kept_back.items())
            return (
                f"enough windows have {min_agents}+ agents, and {counts.waiting} of them wait{'s' * (counts.waiting == 1)} ({kinds}); `babylon-rl up` tries "
                f"them again at their time; to try at once, run: babylon-rl train --min-agents {min_agents} --iterations 1"
            )
        missing = min_windows - counts.unused - counts.waiting
        spent = counts.with_enough_agents - counts.unused - counts.waiting
        notes = [f"{spent} {'is' if spent == 1 else 'are'} used or kept out"] * bool(spent)
        notes += [f"{counts.waiting} wait{'s' * (counts.waiting == 1)}"] * bool(counts.waiting)
        used = f" ({', '.join(notes)})" if notes else ""
        needed = f"{missing} more window{'s' * (missing > 1)} with {min_agents}+ agents needed{used}"
        if workspace.owns_game:
            return f"{needed}; run: babylon-rl spawn-test-agents --agents {min_agents} --windows {missing}"
        return (
            f"{needed}; let the game play on, whose agents record their hours, and then run: babylon-rl check-windows"
        )
    told = f"{without} window{'s have' if without > 1 else ' has'} no market outcomes, so no ground truth to judge by"
    waiting = {oldest, *(r.window_id for r in recorded if not r.outcomes and r.agents >= min_agents)}
    if (reason := explain_uncomputable(workspace, HourWindow.parse_all(sorted(waiting)))) is not None:
        return f"{told}: {reason}"
    hours = (HourWindow.containing(now).start_at - HourWindow.parse(oldest).start_at) // HOUR
    return f"{told}; run: babylon-rl sync-outcomes --hours {max(hours, 24)}"
