"""What to do with a rollout after each closed hour: hold, go on, promote, roll back, end. Plain values in, one `Look` out.

What gets each state on: a shadow has been asked in enough windows; a canary has been compared in enough; half is promoted when
the interval lies above 0; each is rolled back when it lies below 0 or a guard rail is breached; all end after
`rollout_windows`, whatever happened; an arm without agents widens. A paused rollout is decided alike, and not moved.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from babylon_rl.deployment.comparison import Comparison, Interval
from babylon_rl.deployment.evidence import AgentResult, WindowEvidence
from babylon_rl.deployment.guards import (
    Guard,
    State,
    candidate_calls,
    judge_drawdown,
    judge_errors,
    judge_invalid,
    judge_latency,
    quantile,
)
from babylon_rl.deployment.stages import Arm, Deployment, Stage
from babylon_rl.errors import DataError
from babylon_rl.settings.live import DeploymentSettings
from babylon_rl.types import Json

GUARD_SHARE = 0.05
"""Of `alpha`, for each of the four guard rails; the interval has the rest."""
WIDEN_AFTER_WINDOWS = 3
"""Windows in a row in which the incumbent played and the candidate had no agent."""


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
    """The candidate's arm has had no agent; its threshold has to rise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at a rollout.

    Attributes:
        reason: A sentence with the numbers.
        windows: Hours of the rollout so far, this stage's and earlier ones'.
        mean: Candidate minus incumbent, US dollars an agent and window; None: nothing compared yet.
        lo: Of the always-valid interval; None before its burn-in.
        hi: The same.
        facts: For metadata; a number that is not known is left out.
    """

    decision: Decision
    reason: str
    windows: int
    mean: float | None
    lo: float | None
    hi: float | None
    facts: Json


def decide(deployment: Deployment, windows: Sequence[WindowEvidence], settings: DeploymentSettings) -> Look:
    """Look at a rollout.

    Args:
        deployment: What is deployed when the last window has closed.
        windows: All closed hours of it so far, those of earlier stages too, in time order.
        settings: The rollout's lengths and error rate.

    Raises:
        DataError: The windows are not in time order, or one comes twice.
    """
    _require_order(windows)
    comparison = _compare(windows, settings)
    interval = comparison.interval()
    guards = _judge(windows, settings)
    decision, reason = _choose(deployment, windows, settings, interval, guards)
    return Look(
        decision=decision,
        reason=reason,
        windows=len(windows),
        mean=interval.mean if interval else None,
        lo=interval.lo if interval else None,
        hi=interval.hi if interval else None,
        facts=_collect_facts(windows, interval, guards),
    )


def intervals(
    windows: Sequence[WindowEvidence], settings: DeploymentSettings
) -> list[tuple[str, float, float | None, float | None]]:
    """The interval after each window in which something was compared: (window, mean, lo, hi), for the picture."""
    comparison = Comparison(alpha=_money_alpha(settings))
    return [
        (w.window_id, interval.mean, interval.lo, interval.hi)
        for w in windows
        if comparison.add(w) and (interval := comparison.interval())
    ]


def _choose(
    deployment: Deployment,
    windows: Sequence[WindowEvidence],
    settings: DeploymentSettings,
    interval: Interval | None,
    guards: Sequence[Guard],
) -> tuple[Decision, str]:
    stage = deployment.stage
    if stage in (Stage.NONE, Stage.CANDIDATE):
        return Decision.HOLD, "no agent is answered by a candidate, so there is nothing to compare"
    money = _describe(interval)
    if breached := [g for g in guards if g.state is State.BREACHED]:
        return Decision.ROLL_BACK, f"rolled back for {breached[0].name}: {breached[0].sentence}"
    if interval and interval.hi is not None and interval.hi < 0:
        return Decision.ROLL_BACK, f"worse than the incumbent: {money}"
    suspects = [g for g in guards if g.state is State.SUSPECT]
    if stage is Stage.HALF and interval and interval.lo is not None and interval.lo > 0 and not suspects:
        return Decision.PROMOTE, f"better than the incumbent: {money}"
    if len(windows) >= settings.rollout_windows:
        return Decision.END, f"undecided after {len(windows)} windows, so the incumbent stays: {money}"
    here = [w for w in windows if w.number == deployment.number]
    if stage is not Stage.SHADOW and _lacks_agents(here):
        return Decision.WIDEN, (
            f"no agent was answered by the candidate in the last {WIDEN_AFTER_WINDOWS} windows; its share has to grow"
        )
    if suspects:
        return Decision.HOLD, f"waits until this is better or proven: {suspects[0].sentence}"
    of_stage = [w for w in windows if w.stage is stage]
    if stage is Stage.SHADOW:
        asked = sum(bool(c.calls) for w in of_stage if (c := candidate_calls(w)))
        needed = settings.shadow_windows
        state = f"the candidate was asked beside the incumbent in {asked} of {needed} windows, and no guard rail speaks against it"
        return (Decision.ADVANCE if asked >= needed else Decision.HOLD), state
    if stage is Stage.CANARY:
        compared = _compare(of_stage, settings).windows
        needed = settings.canary_windows
        state = f"{compared} of {needed} canary windows compared, and nothing speaks against the candidate: {money}"
        return (Decision.ADVANCE if compared >= needed else Decision.HOLD), state
    return Decision.HOLD, f"undecided after {len(windows)} of {settings.rollout_windows} windows: {money}"


def _describe(interval: Interval | None) -> str:
    if interval is None:
        return "no window in which both arms had an agent"
    mean = f"{interval.mean:+,.2f} USD an agent and window over {interval.windows} compared windows"
    if interval.lo is None or interval.hi is None:
        return f"{mean}, too few for an interval"
    return f"{mean}, always-valid interval {interval.lo:+,.2f} to {interval.hi:+,.2f}"


def _lacks_agents(windows: Sequence[WindowEvidence]) -> bool:
    last = [{a.arm for a in w.agents} for w in windows if w.agents][-WIDEN_AFTER_WINDOWS:]
    return len(last) == WIDEN_AFTER_WINDOWS and all(Arm.CANDIDATE not in arms for arms in last)


def _judge(windows: Sequence[WindowEvidence], settings: DeploymentSettings) -> list[Guard]:
    alpha = settings.alpha * GUARD_SHARE
    return [
        judge_errors(windows, alpha),
        judge_invalid(windows, alpha),
        judge_latency(windows, alpha),
        judge_drawdown(windows, alpha, settings.max_drawdown_usd),
    ]


def _money_alpha(settings: DeploymentSettings) -> float:
    return settings.alpha * (1 - 4 * GUARD_SHARE)


def _compare(windows: Sequence[WindowEvidence], settings: DeploymentSettings) -> Comparison:
    comparison = Comparison(alpha=_money_alpha(settings))
    for w in windows:
        comparison.add(w)
    return comparison


def _collect_facts(windows: Sequence[WindowEvidence], interval: Interval | None, guards: Sequence[Guard]) -> Json:
    facts: Json = {g.name: f"{g.state.value}: {g.sentence}" for g in guards}
    volumes: dict[Arm, float | None] = {}
    for arm in (Arm.CANDIDATE, Arm.INCUMBENT):
        agents = [a for w in windows for a in w.agents if a.arm is arm and math.isfinite(a.pnl_usd)]
        numbers = _describe_arm(agents)
        calls = [c for w in windows if (c := candidate_calls(w) if arm is Arm.CANDIDATE else w.calls.get(arm))]
        latency = sorted(ms for c in calls for ms in c.latency_ms if math.isfinite(ms))
        numbers |= {
            "error_share": _share(sum(c.errors for c in calls), sum(c.calls for c in calls)),
            "latency_p50_ms": quantile(latency, 0.5) if latency else None,
            "latency_p95_ms": quantile(latency, 0.95) if latency else None,
        }
        traded = [a.volume_usd for a in agents if a.volume_usd is not None and math.isfinite(a.volume_usd)]
        volumes[arm] = math.fsum(traded) if traded else None
        facts |= {f"{arm.value}_{k}": v for k, v in numbers.items() if v is not None}
    candidate, incumbent = volumes[Arm.CANDIDATE], volumes[Arm.INCUMBENT]
    if candidate is not None and incumbent is not None and candidate + incumbent > 0:
        facts["candidate_volume_share"] = candidate / (candidate + incumbent)
    if interval is not None:
        facts |= {
            "windows_compared": interval.windows,
            "effective_windows": interval.effective_windows,
            "cuped_theta": interval.theta,
        }
        if interval.lasting_usd is not None:
            facts["lasting_usd"] = interval.lasting_usd
    facts["agent_hours_excluded"] = sum(len(w.excluded) for w in windows)
    facts["agent_hours_unknown_pnl"] = sum(not math.isfinite(a.pnl_usd) for w in windows for a in w.agents)
    return facts


def _describe_arm(agents: Sequence[AgentResult]) -> Json:
    hours = len(agents)
    return {
        "agents": len({a.agent_id for a in agents}),
        "agent_hours": hours,
        "mean_pnl_usd": math.fsum(a.pnl_usd for a in agents) / hours if hours else None,
        "win_rate": _share(sum(a.pnl_usd > 0 for a in agents), hours),
        "timing_share": _share(sum(a.timed_right for a in agents), sum(a.timed for a in agents)),
        "invalid_share": _share(sum(a.invalid for a in agents), sum(a.decisions for a in agents)),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _require_order(windows: Sequence[WindowEvidence]) -> None:
    for before, after in itertools.pairwise(windows):
        if after.window_id <= before.window_id:
            raise DataError(
                f"window {after.window_id!r} of a rollout comes after {before.window_id!r}; expected each hour once, in time "
                "order; sort the evidence by window",
                facts={"window": after.window_id, "before": before.window_id},
            )
