"""Guard rails besides money: errors, invalid actions, latency, drawdown.

Each is `BREACHED` only with a chance of at most `alpha` under an equally good candidate, however often it is looked at;
`SUSPECT` is what the plain numbers say, beyond the margin and not proven: it rolls nothing back, and keeps a rollout from
going on. Margins and where they come from: docs/deployment.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from babylon_rl.deployment.evidence import ArmCalls, WindowEvidence
from babylon_rl.deployment.sequence import bound_rate, choose_rho2, mixture_boundary
from babylon_rl.deployment.stages import Arm

RATE_MARGIN = 0.05
"""Errors and invalid actions, as shares, may exceed the incumbent's by so much."""
FEWEST_TRIALS = 20
"""Calls or actions of the candidate before its rate is judged, and calls of each arm in an hour whose latency is."""
FEWEST_WINDOWS = 2
"""Windows with such trials: one hour's outage decides nothing."""
LATENCY_RATIO, LATENCY_MORE_MS = 2.0, 500.0
"""An hour is slow when the candidate's p95 is more than twice the incumbent's, and half a second more."""
SLOW_SHARE = 0.25
"""An equally fast candidate has at most so many slow hours."""
DRAWDOWN_FACTOR = 1.5
"""For heavy tails: what the boundary of a normal walk is multiplied by."""
DRAWDOWN_WINDOWS = 3
DRAWDOWN_DEGREES = 12
"""Windows, and degrees of freedom of the incumbent's spread, before a drawdown is judged by it."""


class State(StrEnum):
    """What a guard rail says."""

    FINE = "fine"
    SUSPECT = "suspect"
    BREACHED = "breached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """One guard rail's state, and its numbers in a sentence."""

    name: str
    state: State
    sentence: str


def judge_rate(
    name: str, noun: str, candidate: Sequence[tuple[int, int]], incumbent: Sequence[tuple[int, int]], alpha: float
) -> Guard:
    """Compare two shares; each arm's (hits, trials) by window."""
    (hits_c, trials_c), (hits_i, trials_i) = _sum_pairs(candidate), _sum_pairs(incumbent)
    if not trials_c:
        return Guard(name=name, state=State.FINE, sentence=f"no {noun} of the candidate yet")
    rate_c, rate_i = hits_c / trials_c, hits_i / trials_i if trials_i else 0.0
    lo = bound_rate(hits_c, trials_c, alpha)[0]
    hi = bound_rate(hits_i, trials_i, alpha)[1]
    enough = trials_c >= FEWEST_TRIALS and sum(n > 0 for _, n in candidate) >= FEWEST_WINDOWS
    breached = enough and lo - hi > RATE_MARGIN
    suspect = enough and rate_c - rate_i > RATE_MARGIN
    sentence = (
        f"{hits_c} of {trials_c} {noun} of the candidate ({rate_c:.1%}), {hits_i} of {trials_i} of the incumbent "
        f"({rate_i:.1%}); at most {RATE_MARGIN:.0%} more is allowed"
    )
    return Guard(name=name, state=_state(breached=breached, suspect=suspect), sentence=sentence)


def judge_errors(windows: Sequence[WindowEvidence], alpha: float) -> Guard:
    """Calls that an arm could not answer."""
    candidate = [(c.errors, c.calls) for w in windows if (c := candidate_calls(w))]
    incumbent = [(c.errors, c.calls) for w in windows if (c := w.calls.get(Arm.INCUMBENT))]
    return judge_rate("errors", "failed calls", candidate, incumbent, alpha)


def judge_invalid(windows: Sequence[WindowEvidence], alpha: float) -> Guard:
    """Decisions that were no legal action."""
    candidate, incumbent = (
        [_sum_pairs([(a.invalid, a.decisions) for a in w.agents if a.arm is arm]) for w in windows]
        for arm in (Arm.CANDIDATE, Arm.INCUMBENT)
    )
    return judge_rate("invalid", "invalid actions", candidate, incumbent, alpha)


def judge_latency(windows: Sequence[WindowEvidence], alpha: float) -> Guard:
    """Share of hours in which the candidate was slow: windows are the trials, so calls of one hour may depend on each other."""
    slow = hours = 0
    for w in windows:
        candidate, incumbent = _latencies(candidate_calls(w)), _latencies(w.calls.get(Arm.INCUMBENT))
        if min(len(candidate), len(incumbent)) < FEWEST_TRIALS:
            continue
        hours += 1
        p95_c, p95_i = quantile(candidate, 0.95), quantile(incumbent, 0.95)
        slow += p95_c > LATENCY_RATIO * p95_i and p95_c > p95_i + LATENCY_MORE_MS
    # only the lower bound is asked for, so it may have the whole of alpha
    breached = bound_rate(slow, hours, 2 * alpha)[0] > SLOW_SHARE
    sentence = (
        f"{slow} of {hours} hours in which the candidate's p95 was more than {LATENCY_RATIO:g} times the incumbent's and "
        f"{LATENCY_MORE_MS:g} ms more; {SLOW_SHARE:.0%} are allowed"
    )
    suspect = hours >= FEWEST_WINDOWS and slow / hours > SLOW_SHARE
    return Guard(name="latency", state=_state(breached=breached, suspect=suspect), sentence=sentence)


def judge_drawdown(windows: Sequence[WindowEvidence], alpha: float, limit_usd: float | None) -> Guard:
    """How far the candidate's mean running P&L lies behind the incumbent's, in US dollars an agent.

    Without a limit it may lie as far behind as a walk of an equally good arm of its size would, by the spread of the
    incumbent's agents: a candidate's own crash cannot widen what is allowed, and no burn-in has to pass.
    """
    behind = squares = arms = 0.0
    degrees = compared = 0
    for w in windows:
        candidate, incumbent = (
            [a.pnl_usd for a in w.agents if a.arm is arm and math.isfinite(a.pnl_usd)]
            for arm in (Arm.CANDIDATE, Arm.INCUMBENT)
        )
        if not candidate or not incumbent:
            continue
        compared += 1
        mean_i = math.fsum(incumbent) / len(incumbent)
        behind += mean_i - math.fsum(candidate) / len(candidate)
        arms += 1 / len(candidate) + 1 / len(incumbent)
        squares += math.fsum((y - mean_i) ** 2 for y in incumbent)
        degrees += len(incumbent) - 1
    limit = limit_usd
    if limit is None and compared >= DRAWDOWN_WINDOWS and degrees >= DRAWDOWN_DEGREES:
        unit = squares / degrees * arms / compared  # variance of a window's difference
        if unit > 0:
            walk = mixture_boundary(compared, 2 * alpha, choose_rho2(2 * alpha, 30))
            limit = DRAWDOWN_FACTOR * math.sqrt(unit) * walk
    if limit is None:
        return Guard(
            name="drawdown", state=State.FINE, sentence=f"{max(behind, 0):,.0f} USD behind; too few windows for a limit"
        )
    sentence = (
        f"the candidate's mean running P&L is {max(behind, 0):,.0f} USD an agent behind; {limit:,.0f} are allowed"
    )
    return Guard(name="drawdown", state=_state(breached=behind > limit, suspect=False), sentence=sentence)


def candidate_calls(window: WindowEvidence) -> ArmCalls | None:
    """Its own calls, or those that shadowed the incumbent's."""
    return window.calls.get(Arm.CANDIDATE) or window.calls.get(Arm.SHADOW)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    return ordered[min(max(math.ceil(share * len(ordered)), 1), len(ordered)) - 1]


def _latencies(calls: ArmCalls | None) -> list[float]:
    return sorted(ms for ms in calls.latency_ms if math.isfinite(ms)) if calls else []


def _sum_pairs(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(h for h, _ in pairs), sum(n for _, n in pairs)


def _state(*, breached: bool, suspect: bool) -> State:
    return State.BREACHED if breached else State.SUSPECT if suspect else State.FINE
