"""What a rollout's hours show of its arms: who answered each agent from the served calls, what it earned from the game's rows.

An agent's hour counts for an arm where every answered call of it was that arm's under this rollout, and the policy that
its own rows name is the same. Every other agent of the hour is left out with a reason: each is in one of the two. Agents that
another lineage's gateway answered are none of this one's.

The unit is the hour. An agent that met several scenarios in it has the sum of their P&L; arms are drawn without regard to
scenarios, so this widens the interval and favours neither.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from babylon_rl.common.canonical import digest
from babylon_rl.deployment.evidence import AgentResult, ArmCalls, WindowEvidence, is_money
from babylon_rl.deployment.stages import Arm, Deployment, is_test_agent
from babylon_rl.pipeline.each_window import explain_failure, is_of_one_window
from babylon_rl.pipeline.live_decisions import count_decisions
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.deployments import Move
from babylon_rl.store.looks import Evidence, read_evidence, write_evidence
from babylon_rl.store.rollout_hours import count_calls_by_hour, earlier_pnl_usd, read_versions
from babylon_rl.store.served_calls import RecordedCall, find_agents_of_others, read_calls
from babylon_rl.training.foreign_turns import find_speaker
from babylon_rl.types import Trajectory, policy_name
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

_VERSION: Final = "1"  # of what is collected: another one collects every hour anew
_LATENCIES: Final = 200  # kept of an arm's hour, evenly over its quantiles
ANSWERED: Final = (200, 499)  # a caller that left may have read some of it
_NOT_THE_CALLERS_FAULT: Final = (408, 429, 499)


def collect_evidence(
    workspace: Workspace, deployment: Deployment, moves: Sequence[Move], *, up_to: HourWindow
) -> list[Evidence]:
    """Collect every hour of a rollout up to one, in time order; an hour that has not changed since it was looked at is read back.

    Args:
        workspace: Its store has the hours' trajectories and outcomes.
        deployment: The rollout.
        moves: All of the lineage, which tell the stage of an earlier hour.
        up_to: The last hour.
    """
    engine, rollout = workspace.store.engine, deployment.rollout or ""
    hours = count_calls_by_hour(engine, rollout, up_to=up_to)
    prepared, kept = read_versions(engine, list(hours)), read_evidence(engine, deployment.lineage, rollout)
    collected, changed = [], []
    for hour, calls in hours.items():
        version = digest([_VERSION, prepared.get(hour), calls])[:16]
        evidence = kept.get(hour)
        if evidence is None or evidence.version != version:
            first = HourWindow.parse(next(iter(hours)))
            try:
                window = collect_window(workspace, deployment, moves, HourWindow.parse(hour), first=first)
            except Exception as e:
                if not is_of_one_window(e):
                    raise
                logger.warning("could not collect window=%s rollout=%s error=%s", hour, rollout, type(e).__name__)
                version, window = "", _make_unreadable(workspace, deployment, hour, explain_failure(e))
            evidence = Evidence(version=version, window=window)
            changed += [evidence] if hour in kept else []
        collected.append(evidence)
    write_evidence(engine, deployment.lineage, rollout, changed)
    return collected


def _make_unreadable(workspace: Workspace, deployment: Deployment, hour: str, reason: str) -> WindowEvidence:
    """An hour that cannot be read counts for nobody, and does not stop the rollout; it is tried again at each look."""
    calls = read_calls(workspace.store.engine, deployment.lineage, [hour])
    return WindowEvidence(
        window_id=hour,
        stage=deployment.stage,
        number=deployment.number,
        agents=(),
        excluded={c.agent_id: f"its hour cannot be read: {reason}" for c in calls if c.agent_id is not None},
    )


def collect_window(
    workspace: Workspace, deployment: Deployment, moves: Sequence[Move], window: HourWindow, *, first: HourWindow
) -> WindowEvidence:
    """Collect one hour of a rollout.

    Args:
        workspace: Its store has the hour's trajectories and outcomes.
        deployment: The rollout.
        moves: All of the lineage.
        window: The hour.
        first: The rollout's first hour: what an agent earned before it is its earlier P&L.
    """
    store = workspace.store
    calls = read_calls(store.engine, deployment.lineage, [str(window)])
    by_agent: defaultdict[str, list[RecordedCall]] = defaultdict(list)
    for call in calls:
        if call.agent_id is not None and call.arm is not Arm.SHADOW:
            by_agent[call.agent_id].append(call)
    played: defaultdict[str, list[Trajectory]] = defaultdict(list)
    theirs = find_agents_of_others(store.engine, deployment.lineage, str(window)) - set(by_agent)
    for trajectory in store.trajectories(window):
        if trajectory.agent_id not in theirs:
            played[trajectory.agent_id].append(trajectory)
    agents = sorted({*by_agent, *played})
    earlier = earlier_pnl_usd(store.engine, agents, before=first)
    outcomes, patterns = store.outcomes(window), workspace.settings.deployment.test_agent_patterns
    results, excluded = [], {}
    for agent in agents:
        arm = find_arm(deployment, by_agent[agent], played[agent])
        pnl = _sum_pnl(played[agent])
        if isinstance(arm, str) and not isinstance(arm, Arm):
            excluded[agent] = arm
        elif pnl is None:
            excluded[agent] = "what it earned inside the hour is unknown"
        else:
            counted = count_decisions(played[agent], outcomes)
            results.append(
                AgentResult(
                    agent_id=agent,
                    arm=Arm(arm),
                    is_test=is_test_agent(agent, patterns),
                    pnl_usd=pnl,
                    earlier_pnl_usd=earlier.get(agent),
                    decisions=counted.decisions,
                    invalid=counted.invalid,
                    timed=counted.timed,
                    timed_right=counted.timed_right,
                    volume_usd=counted.volume_usd,
                )
            )
    number = max((c.deployment for c in calls if c.rollout == deployment.rollout), default=deployment.number)
    then = next((m.after for m in moves if m.after.number == number), deployment)
    return WindowEvidence(
        window_id=str(window),
        stage=then.stage,
        number=number,
        agents=tuple(results),
        calls=_count_calls(deployment, calls),
        excluded=excluded,
    )


def find_arm(deployment: Deployment, calls: Sequence[RecordedCall], played: Sequence[Trajectory]) -> Arm | str:
    """The arm that an agent's whole hour belongs to, or why it belongs to none.

    Args:
        deployment: The rollout.
        calls: The agent's calls of the hour, without shadow calls.
        played: Its trajectories of the hour.
    """
    answered = [c for c in calls if c.status in ANSWERED]
    steps = {c.step for c in answered}
    arms = {c.arm for c in answered}
    if not calls:
        return "it bypassed the gateway: no call of the hour names it"
    if any(c.fell_back_from is not None for c in calls):
        return "the incumbent answered some of its calls in the candidate's place"
    if not answered:
        return "none of its calls was answered"
    if Arm.PINNED in arms:
        return "some of its calls named the step that answered"
    if any(c.rollout != deployment.rollout for c in answered):
        return "it was answered in part before the rollout began or after it ended"
    if len(arms) > 1:
        return "it was answered by both arms"
    [arm] = arms
    if steps != {deployment.step_of(arm)}:
        return f"it was answered by {_name(deployment, steps)} in the {arm.value}'s place"
    return find_disagreement(deployment.lineage, answered, played) or arm


def find_disagreement(lineage: str, answered: Sequence[RecordedCall], played: Sequence[Trajectory]) -> str | None:
    """Where an agent's rows and the gateway do not say the same of who answered it, or None.

    Rows that name no policy, or the lineage and no step of it, say nothing: then each decision needs a call at the gateway.
    """
    if not played:
        return "the game has no usable row of its hour"
    said = [_read_name(turn.policy_version, lineage) for trajectory in played for turn in trajectory.turns]
    names = {policy_name(lineage, c.step) for c in answered}
    others = {name for name in said if name is not None} - names
    if others:
        return f"its rows name {', '.join(sorted(others))}, and the gateway answered as {', '.join(sorted(names))}"
    if None in said and len(answered) < len(said):
        return f"it bypassed the gateway in part: {len(answered)} calls for {len(said)} decisions"
    return None


def _read_name(version: str | None, lineage: str) -> str | None:
    """The policy that a row names, as `babylon-mmo@3` where it is the lineage's under a client's prefix; None: it names no step."""
    name = (version or "").strip()
    if not name or name.rpartition("/")[2] == lineage:
        return None
    step = find_speaker(name, lineage).step
    return name if step is None else policy_name(lineage, step)


def _count_calls(deployment: Deployment, calls: Iterable[RecordedCall]) -> Mapping[Arm, ArmCalls]:
    """Calls that an arm should have answered; those that the caller got wrong itself count for nobody."""
    counted: defaultdict[Arm, list[RecordedCall]] = defaultdict(list)
    for c in calls:
        if c.rollout != deployment.rollout or (400 <= c.status < 500 and c.status not in _NOT_THE_CALLERS_FAULT):
            continue
        fell_back = c.fell_back_from is not None and c.fell_back_from == deployment.candidate
        arm = Arm.CANDIDATE if fell_back and c.arm is not Arm.SHADOW else c.arm
        if arm in (Arm.INCUMBENT, Arm.CANDIDATE, Arm.SHADOW):
            counted[arm].append(c)
    return {arm: _make_arm_calls(own) for arm, own in counted.items()}


def _make_arm_calls(calls: Sequence[RecordedCall]) -> ArmCalls:
    good = [c for c in calls if c.status == 200 and c.fell_back_from is None]
    latency = sorted(c.latency_ms for c in good if math.isfinite(c.latency_ms))
    if len(latency) > _LATENCIES:
        latency = [latency[round(i * (len(latency) - 1) / (_LATENCIES - 1))] for i in range(_LATENCIES)]
    return ArmCalls(calls=len(calls), errors=len(calls) - len(good), latency_ms=tuple(latency))


def _sum_pnl(played: Sequence[Trajectory]) -> float | None:
    known = [t.pnl_usd for t in played if is_money(t.pnl_usd)]
    return math.fsum(known) if played and len(known) == len(played) else None


def _name(deployment: Deployment, steps: Iterable[int]) -> str:
    return ", ".join(policy_name(deployment.lineage, s) for s in sorted(steps))
