"""Guard rails besides money: errors, invalid actions, latency, drawdown. Each takes windows in one by one, in time order.

A guard rail is `BREACHED` with a chance of at most `alpha` under an equally good candidate, however often it is looked at.
`SUSPECT` is what the plain numbers say, beyond the margin and not proven: it rolls nothing back, and keeps a rollout from
going on. Margins and where they come from: docs/deployment.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from babylon_rl.deployment.evidence import ArmCalls, WindowEvidence
from babylon_rl.deployment.sequence import bound_rate, choose_rho2, mixture_boundary
from babylon_rl.deployment.stages import Arm

RATE_MARGIN = 0.05
"""The candidate's share of errors, and of invalid actions, may exceed the incumbent's by so much."""
FEWEST_TRIALS = 20
"""Calls or actions of the candidate before its share is judged; calls of each arm in an hour whose latency is."""
FEWEST_WINDOWS = 2
"""Windows with such trials: one hour's outage decides nothing."""
LATENCY_RATIO, LATENCY_MORE_MS = 2.0, 500.0
"""An hour is slow when the candidate's p95 is more than twice the incumbent's, and half a second more."""
SLOW_SHARE = 0.25
"""An equally fast candidate has at most such a share of slow hours."""
DRAWDOWN_FACTOR = 1.5
"""For heavy tails: what the boundary of a normal walk is multiplied by."""
DRAWDOWN_WINDOWS, DRAWDOWN_DEGREES = 3, 12
"""Windows, and degrees of freedom of the incumbent's spread, before a drawdown is judged by that spread."""
DRAWDOWN_SHARPEST = 30
"""Windows about which the drawdown's boundary is narrowest."""


class State(StrEnum):
    """What a guard rail says."""

    FINE = "fine"
    SUSPECT = "suspect"
    BREACHED = "breached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A guard rail's state, and a sentence with its numbers."""

    name: str
    state: State
    sentence: str


class GuardRail(Protocol):
    """One guard rail."""

    def add(self, window: WindowEvidence) -> None:
        """Take a window in."""

    def judge(self) -> Verdict:
        """What the windows so far say."""
        ...


@dataclass(slots=True)
class _Rates:
    """Two shares compared: hits and trials of each arm."""

    name: str
    noun: str
    alpha: float
    hits: dict[Arm, int] = field(default_factory=lambda: {Arm.CANDIDATE: 0, Arm.INCUMBENT: 0})
    trials: dict[Arm, int] = field(default_factory=lambda: {Arm.CANDIDATE: 0, Arm.INCUMBENT: 0})
    windows: int = 0

    def count(self, arm: Arm, hits: int, trials: int) -> None:
        self.hits[arm] += hits
        self.trials[arm] += trials
        self.windows += arm is Arm.CANDIDATE and trials > 0

    def judge(self) -> Verdict:
        hits_c, trials_c = self.hits[Arm.CANDIDATE], self.trials[Arm.CANDIDATE]
        hits_i, trials_i = self.hits[Arm.INCUMBENT], self.trials[Arm.INCUMBENT]
        share_c, share_i = hits_c / trials_c if trials_c else 0.0, hits_i / trials_i if trials_i else 0.0
        state = State.FINE
        if trials_c >= FEWEST_TRIALS and self.windows >= FEWEST_WINDOWS and share_c - share_i > RATE_MARGIN:
            lo, hi = bound_rate(hits_c, trials_c, self.alpha)[0], bound_rate(hits_i, trials_i, self.alpha)[1]
            state = State.BREACHED if lo - hi > RATE_MARGIN else State.SUSPECT
        sentence = (
            f"{hits_c} of {trials_c} {self.noun} of the candidate ({share_c:.1%}) and {hits_i} of {trials_i} of the incumbent "
            f"({share_i:.1%}); {RATE_MARGIN:.0%} more is allowed"
        )
        return Verdict(name=self.name, state=state, sentence=sentence)


class Errors:
    """Calls that an arm could not answer."""

    def __init__(self, alpha: float) -> None:
        self._rates = _Rates("errors", "calls failed", alpha)

    def add(self, window: WindowEvidence) -> None:
        for arm, calls in ((Arm.CANDIDATE, candidate_calls(window)), (Arm.INCUMBENT, window.calls.get(Arm.INCUMBENT))):
            if calls is not None:
                self._rates.count(arm, calls.errors, calls.calls)

    def judge(self) -> Verdict:
        return self._rates.judge()


class InvalidActions:
    """Decisions that were no legal action."""

    def __init__(self, alpha: float) -> None:
        self._rates = _Rates("invalid", "actions were invalid", alpha)

    def add(self, window: WindowEvidence) -> None:
        for arm in (Arm.CANDIDATE, Arm.INCUMBENT):
            agents = [a for a in window.agents if a.arm is arm]
            self._rates.count(arm, sum(a.invalid for a in agents), sum(a.decisions for a in agents))

    def judge(self) -> Verdict:
        return self._rates.judge()


@dataclass(slots=True)
class Latency:
    """Share of hours in which the candidate was slow: hours are the trials, so calls of one hour may depend on each other."""

    alpha: float
    slow: int = 0
    hours: int = 0

    def add(self, window: WindowEvidence) -> None:
        candidate = known_latencies(candidate_calls(window))
        incumbent = known_latencies(window.calls.get(Arm.INCUMBENT))
        if min(len(candidate), len(incumbent)) < FEWEST_TRIALS:
            return
        p95_c, p95_i = find_quantile(candidate, 0.95), find_quantile(incumbent, 0.95)
        self.hours += 1
        self.slow += p95_c > LATENCY_RATIO * p95_i and p95_c > p95_i + LATENCY_MORE_MS

    def judge(self) -> Verdict:
        state = State.FINE
        if self.hours >= FEWEST_WINDOWS and self.slow > SLOW_SHARE * self.hours:
            lo = bound_rate(self.slow, self.hours, 2 * self.alpha)[
                0
            ]  # one bound is asked for, so it may have all of alpha
            state = State.BREACHED if lo > SLOW_SHARE else State.SUSPECT
        sentence = (
            f"in {self.slow} of {self.hours} hours the candidate's p95 was more than {LATENCY_RATIO:g} times the incumbent's "
            f"and {LATENCY_MORE_MS:g} ms more; {SLOW_SHARE:.0%} are allowed"
        )
        return Verdict(name="latency", state=state, sentence=sentence)


@dataclass(slots=True)
class Drawdown:
    """How far the candidate's mean running P&L lies behind the incumbent's, in US dollars an agent.

    Without a limit it may lie as far behind as an equally good arm of its size would, by the spread of the incumbent's
    agents: a candidate's own crash cannot widen what is allowed, and no burn-in has to pass.
    """

    alpha: float
    limit_usd: float | None = None
    behind: float = 0.0
    windows: int = 0
    arms: float = 0.0
    squares: float = 0.0
    degrees: int = 0

    def add(self, window: WindowEvidence) -> None:
        candidate, incumbent = (
            [a.pnl_usd for a in window.agents if a.arm is arm and math.isfinite(a.pnl_usd)]
            for arm in (Arm.CANDIDATE, Arm.INCUMBENT)
        )
        if not candidate or not incumbent:
            return
        mean = math.fsum(incumbent) / len(incumbent)
        self.windows += 1
        self.behind += mean - math.fsum(candidate) / len(candidate)
        self.arms += 1 / len(candidate) + 1 / len(incumbent)
        self.squares += math.fsum((y - mean) ** 2 for y in incumbent)
        self.degrees += len(incumbent) - 1

    def judge(self) -> Verdict:
        limit = self._choose_limit()
        behind = f"the candidate's mean running P&L is {max(self.behind, 0):,.0f} USD an agent behind the incumbent's"
        if limit is None:
            return Verdict(name="drawdown", state=State.FINE, sentence=f"{behind}, after too few windows for a limit")
        state = State.BREACHED if self.behind > limit else State.FINE
        return Verdict(name="drawdown", state=state, sentence=f"{behind}; {limit:,.0f} are allowed")

    def _choose_limit(self) -> float | None:
        if self.limit_usd is not None:
            return self.limit_usd
        if self.windows < DRAWDOWN_WINDOWS or self.degrees < DRAWDOWN_DEGREES or self.squares <= 0:
            return None
        step = math.sqrt(
            self.squares / self.degrees * self.arms / self.windows
        )  # of a window's difference, equally good
        alpha = 2 * self.alpha  # one side of it
        return DRAWDOWN_FACTOR * step * mixture_boundary(self.windows, alpha, choose_rho2(alpha, DRAWDOWN_SHARPEST))


def candidate_calls(window: WindowEvidence) -> ArmCalls | None:
    """The candidate's calls: its own, or those that shadowed the incumbent's."""
    return window.calls.get(Arm.CANDIDATE) or window.calls.get(Arm.SHADOW)


def known_latencies(calls: ArmCalls | None) -> list[float]:
    """In ascending order; what is no number is left out."""
    return sorted(ms for ms in calls.latency_ms if math.isfinite(ms)) if calls else []


def find_quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    return ordered[min(max(math.ceil(share * len(ordered)), 1), len(ordered)) - 1]
