"""What to do with a rollout after each closed hour: hold, go on, promote, roll back, end. Plain values in, one `Look` out.

What gets each stage on: a shadow has been asked in enough windows; a canary has been compared in enough; half is promoted
when the interval lies above 0; each is rolled back when it lies below 0 or a guard rail is breached; an arm without agents
widens; all end after `rollout_windows`, whatever happened. A paused rollout is looked at alike, and not moved.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from babylon_rl.deployment.comparison import Comparison, Interval
from babylon_rl.deployment.evidence import WindowEvidence
from babylon_rl.deployment.guards import Drawdown, Errors, GuardRail, InvalidActions, Latency, State, candidate_calls
from babylon_rl.deployment.stages import Arm, Deployment, Stage
from babylon_rl.deployment.totals import ArmTotals, share_volume
from babylon_rl.errors import DataError
from babylon_rl.settings.live import DeploymentSettings
from babylon_rl.types import Json

GUARD_SHARE = 0.05
"""Of `alpha`, for each of the four guard rails; the interval has the rest."""
WIDEN_AFTER_WINDOWS = 3
"""Played windows in a row in which the incumbent had agents, and the candidate none to compare with them."""


class Decision(StrEnum):
    """What a look says to do."""

    HOLD = "hold"
    ADVANCE = "advance"
    """To the next stage: shadow → canary → half."""
    PROMOTE = "promote"
    ROLL_BACK = "roll_back"
    END = "end"
    """Undecided for too long; the incumbent stays."""
    WIDEN = "widen"
    """The candidate's arm has had no agent: its threshold has to rise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at a rollout.

    Attributes:
        reason: A sentence with the numbers.
        windows: Hours of the rollout so far, this stage's and earlier ones'.
        mean: Candidate minus incumbent, US dollars an agent and window; None: nothing compared yet.
        lo: Of the always-valid interval; None before its burn-in.
        hi: The same.
        facts: For metadata; what is not known is left out.
    """

    decision: Decision
    reason: str
    windows: int
    mean: float | None
    lo: float | None
    hi: float | None
    facts: Json


def decide(deployment: Deployment, windows: Iterable[WindowEvidence], settings: DeploymentSettings) -> Look:
    """Look at a rollout once.

    Args:
        deployment: What is deployed when the last window has closed.
        windows: All closed hours of the rollout so far, those of earlier stages too, in time order.
        settings: Its lengths and error rate.

    Raises:
        DataError: The windows are not in time order, or one comes twice.
    """
    rollout = Rollout(settings)
    for window in windows:
        rollout.add(window)
    return rollout.look(deployment)


def intervals(
    windows: Iterable[WindowEvidence], settings: DeploymentSettings
) -> list[tuple[str, float, float | None, float | None]]:
    """The interval after each compared window, for the picture: (window, mean, lo, hi)."""
    comparison = Comparison(alpha=share_alpha(settings))
    return [
        (w.window_id, interval.mean, interval.lo, interval.hi)
        for w in windows
        if comparison.add(w) and (interval := comparison.interval())
    ]


def share_alpha(settings: DeploymentSettings) -> float:
    """The interval's part of `alpha`, after the guard rails'."""
    return settings.alpha * (1 - 4 * GUARD_SHARE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hour:
    """What is remembered of a window to count stages by."""

    stage: Stage
    number: int
    compared: bool
    asked: bool
    failed: bool
    arms: frozenset[Arm]


class Rollout:
    """A rollout as it grows: `add` each closed hour in time order, `look` after any of them."""

    def __init__(self, settings: DeploymentSettings) -> None:
        self._settings = settings
        guard_alpha = settings.alpha * GUARD_SHARE
        self._comparison = Comparison(alpha=share_alpha(settings))
        self._guards: tuple[GuardRail, ...] = (
            Errors(guard_alpha),
            InvalidActions(guard_alpha),
            Latency(guard_alpha),
            Drawdown(guard_alpha, settings.max_drawdown_usd),
        )
        self._totals = ArmTotals(Arm.CANDIDATE), ArmTotals(Arm.INCUMBENT)
        self._hours: list[_Hour] = []
        self._excluded = 0
        self._newest: str | None = None

    def add(self, window: WindowEvidence) -> None:
        """Take a closed hour in.

        Raises:
            DataError: It is not later than the one before.
        """
        if self._newest is not None and window.window_id <= self._newest:
            raise DataError(
                f"window {window.window_id!r} of a rollout comes after {self._newest!r}; expected each hour once, in time "
                "order; sort the evidence by window",
                facts={"window": window.window_id, "before": self._newest},
            )
        self._newest = window.window_id
        compared = self._comparison.add(window)
        for guard in self._guards:
            guard.add(window)
        for totals in self._totals:
            totals.add(window)
        calls = candidate_calls(window)
        self._excluded += len(window.excluded)
        self._hours.append(
            _Hour(
                stage=window.stage,
                number=window.number,
                compared=compared,
                asked=calls is not None and calls.calls > 0,
                failed=calls is not None and calls.calls == calls.errors > 0,
                arms=frozenset(a.arm for a in window.agents),
            )
        )

    def interval(self) -> Interval | None:
        """The interval after the windows so far; None: nothing compared yet."""
        return self._comparison.interval()

    def look(self, deployment: Deployment) -> Look:
        """What the windows so far say to do."""
        interval = self.interval()
        decision, reason = self.choose(deployment, interval)
        return Look(
            decision=decision,
            reason=reason,
            windows=len(self._hours),
            mean=interval.mean if interval else None,
            lo=interval.lo if interval else None,
            hi=interval.hi if interval else None,
            facts=self._collect_facts(interval),
        )

    def choose(self, deployment: Deployment, interval: Interval | None) -> tuple[Decision, str]:
        """The decision and its reason."""
        stage, settings = deployment.stage, self._settings
        if stage in (Stage.NONE, Stage.CANDIDATE):
            return Decision.HOLD, "no agent is answered by a candidate, so there is nothing to compare"
        money = describe_interval(interval)
        verdicts = [g.judge() for g in self._guards]
        if interval and interval.hi is not None and interval.hi < 0:
            return Decision.ROLL_BACK, f"worse than the incumbent: {money}"
        for v in verdicts:
            if v.state is State.BREACHED:
                return Decision.ROLL_BACK, f"guard rail `{v.name}`: {v.sentence}"
        suspect = next((v for v in verdicts if v.state is State.SUSPECT), None)
        if stage is Stage.HALF and interval and interval.lo is not None and interval.lo > 0 and suspect is None:
            return Decision.PROMOTE, f"better than the incumbent: {money}"
        if len(self._hours) >= settings.rollout_windows:
            return Decision.END, f"undecided after {len(self._hours)} windows, so the incumbent stays: {money}"
        if stage is not Stage.SHADOW and self._lacks_agents(deployment.number):
            return Decision.WIDEN, (
                f"in the last {WIDEN_AFTER_WINDOWS} played windows no agent of the candidate stood beside one of the incumbent; "
                "its share has to grow"
            )
        if suspect is not None:
            return Decision.HOLD, f"goes no further while guard rail `{suspect.name}` is in doubt: {suspect.sentence}"
        here = [h for h in self._hours if h.stage is stage]
        if stage is Stage.SHADOW:
            asked = sum(h.asked for h in here)
            needed = max(settings.shadow_windows, 1)  # an operator may ask for one where the platform would not
            state = f"{asked} of {needed} windows in which the candidate was asked beside the incumbent, and no guard rail in doubt"
            return (Decision.ADVANCE if asked >= needed else Decision.HOLD), state
        if stage is Stage.CANARY:
            compared, needed = sum(h.compared for h in here), settings.canary_windows
            state = f"{compared} of {needed} canary windows, and nothing speaks against the candidate: {money}"
            return (Decision.ADVANCE if compared >= needed else Decision.HOLD), state
        return Decision.HOLD, f"undecided after {len(self._hours)} of {settings.rollout_windows} windows: {money}"

    def _lacks_agents(self, number: int) -> bool:
        missed = 0
        for hour in reversed(self._hours):
            if not hour.arms:
                continue
            # A candidate that answers nobody lacks no agents: that is the errors' to judge.
            if hour.number != number or hour.compared or hour.failed or Arm.INCUMBENT not in hour.arms:
                return False
            missed += 1
            if missed == WIDEN_AFTER_WINDOWS:
                return True
        return False

    def _collect_facts(self, interval: Interval | None) -> Json:
        candidate, incumbent = self._totals
        facts: Json = {v.name: f"{v.state.value}: {v.sentence}" for v in (g.judge() for g in self._guards)}
        facts |= candidate.describe() | incumbent.describe()
        known: Json = {"candidate_volume_share": share_volume(candidate, incumbent)}
        if interval is not None:
            known |= {
                "windows_compared": interval.windows,
                "effective_windows": interval.effective_windows,
                "cuped_theta": interval.theta,
                "lasting_usd": interval.lasting_usd,
            }
        facts |= {name: value for name, value in known.items() if value is not None}
        return facts | {"agent_hours_excluded": self._excluded}


def describe_interval(interval: Interval | None) -> str:
    """The interval for a person."""
    if interval is None:
        return "no window yet in which both arms had an agent"
    mean = f"{interval.mean:+,.2f} USD an agent and window over {interval.windows} compared windows"
    if interval.lo is None or interval.hi is None:
        return f"{mean}, too little for an interval"
    return f"{mean}, always-valid interval {interval.lo:+,.2f} to {interval.hi:+,.2f}"
