"""Guard rails besides money: errors, invalid actions, latency, drawdown. Each takes windows in one by one, in time order.

A guard rail is `BREACHED` with a chance of at most `alpha` under an equally good candidate, however often it is looked at.
`SUSPECT` is what the plain numbers say, beyond the margin and not proven: it rolls nothing back, and keeps a rollout from
going on. Margins and where they come from: docs/deployment.md.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from babylon_rl.deployment.evidence import AgentResult, ArmCalls, WindowEvidence, is_money
from babylon_rl.deployment.sequence import bound_rate, choose_rho2, mixture_boundary
from babylon_rl.deployment.spread import split_spread
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
DRAWDOWN_WINDOWS, DRAWDOWN_HOURS = 3, 12
"""Windows, and agent-hours (less one for each arm and hour), before a drawdown is judged by their spread."""
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
            half = self.alpha / 2  # for each of the two bounds
            lo, hi = bound_rate(hits_c, trials_c, half)[0], bound_rate(hits_i, trials_i, half)[1]
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
            lo = bound_rate(self.slow, self.hours, self.alpha)[0]
            state = State.BREACHED if lo > SLOW_SHARE else State.SUSPECT
        sentence = (
            f"in {self.slow} of {self.hours} hours the candidate's p95 was more than {LATENCY_RATIO:g} times the incumbent's "
            f"and {LATENCY_MORE_MS:g} ms more; {SLOW_SHARE:.0%} are allowed"
        )
        return Verdict(name="latency", state=state, sentence=sentence)


@dataclass(slots=True)
class Drawdown:
    """How far the candidate's mean running P&L lies behind the incumbent's, in US dollars an agent.

    Without a limit it may lie as far behind as an equally good arm of its size would, by the spread of agents within their
    arm, and its worst window is left out: a loss that the candidate's agents share cannot widen what is allowed, one hour
    decides nothing, and no burn-in has to pass.
    """

    alpha: float
    limit_usd: float | None = None
    behind: float = 0.0
    worst: float = 0.0
    windows: int = 0
    arms: float = 0.0
    hours: int = 0
    spread_arms: set[Arm] = field(default_factory=set)
    agents: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0, 0.0, 0.0]))

    def add(self, window: WindowEvidence) -> None:
        candidate, incumbent = (
            sorted((a for a in window.agents if a.arm is arm and is_money(a.pnl_usd)), key=lambda a: a.agent_id)
            for arm in (Arm.CANDIDATE, Arm.INCUMBENT)
        )
        if not candidate or not incumbent:
            return
        behind = self._add_arm(incumbent) - self._add_arm(candidate)
        self.windows += 1
        self.behind += behind
        self.worst = max(self.worst, behind)

    def _add_arm(self, agents: list[AgentResult]) -> float:
        """The arm's mean P&L."""
        n = len(agents)
        mean = math.fsum(a.pnl_usd for a in agents) / n
        self.arms += 1 / n
        if n > 1:
            self.hours += n - 1
            self.spread_arms.add(agents[0].arm)
            for a in agents:
                u = (a.pnl_usd - mean) / math.sqrt(1 - 1 / n)
                sums = self.agents[a.agent_id]
                sums[0] += 1
                sums[1] += u
                sums[2] += u * u
        return mean

    def judge(self) -> Verdict:
        behind = f"the candidate's mean running P&L is {max(self.behind, 0):,.0f} USD an agent behind the incumbent's"
        if self.limit_usd is not None:
            limit, measured = self.limit_usd, self.behind
        elif (chosen := self._choose_limit()) is not None:
            limit, measured = chosen, self.behind - self.worst
            behind += f", {max(measured, 0):,.0f} without its worst window"
        else:
            return Verdict(name="drawdown", state=State.FINE, sentence=f"{behind}, after too few windows for a limit")
        state = State.BREACHED if measured > limit else State.FINE
        return Verdict(name="drawdown", state=state, sentence=f"{behind}; {limit:,.0f} are allowed")

    def _choose_limit(self) -> float | None:
        if self.windows < DRAWDOWN_WINDOWS or self.hours < DRAWDOWN_HOURS:
            return None
        degrees = len(self.agents) - len(self.spread_arms)
        spread = split_spread(((int(n), u, uu) for n, u, uu in self.agents.values()), degrees=degrees)
        if spread is None:
            return None
        # variance of a window's difference of equally good arms, as the running sum has it
        step = (spread.chance + spread.lasting_upper * self.windows) * self.arms / self.windows
        alpha = 2 * self.alpha  # one side of it
        walk = mixture_boundary(self.windows, alpha, choose_rho2(alpha, DRAWDOWN_SHARPEST))
        return DRAWDOWN_FACTOR * math.sqrt(step) * walk


def candidate_calls(window: WindowEvidence) -> ArmCalls | None:
    """The candidate's calls: its own, or those that shadowed the incumbent's."""
    return window.calls.get(Arm.CANDIDATE) or window.calls.get(Arm.SHADOW)


def known_latencies(calls: ArmCalls | None) -> list[float]:
    """In ascending order; what is no number is left out."""
    return sorted(ms for ms in calls.latency_ms if math.isfinite(ms)) if calls else []


def find_quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    return ordered[min(max(math.ceil(share * len(ordered)), 1), len(ordered)) - 1]
