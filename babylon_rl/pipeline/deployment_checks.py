"""The asset checks of `deployment`, an hour each. They warn people; no window is kept from training by them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from babylon_rl.deployment.rules import Decision
from babylon_rl.deployment.stages import Arm, Deployment
from babylon_rl.pipeline.live_windows import ANSWERED, find_disagreement
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.deployments import Move, read_moves, servable_steps
from babylon_rl.store.looks import read_looks_of
from babylon_rl.store.served_calls import RecordedCall, find_agents_of_others, read_calls
from babylon_rl.types import CheckResult, Json, Trajectory, policy_name
from babylon_rl.windows import HourWindow

GRACE: Final = timedelta(seconds=10)
"""A gateway follows a move within 2 seconds, and clocks differ."""
_NAMED: Final = 20  # agents in the facts of a check

DeploymentCheck = Callable[[HourWindow, Workspace], CheckResult]


def live_agents_are_answered_by_the_deployed_policy(window: HourWindow, workspace: Workspace) -> CheckResult:
    """Every agent of the hour asked the gateway for each decision, and was answered by a policy that was in service then. Where no agent plays through the gateway, and no checkpoint was in service or on trial when the hour began, it passes and says so."""
    engine, lineage = workspace.store.engine, workspace.settings.lineage
    calls = [c for c in read_calls(engine, lineage, [str(window)]) if c.arm is not Arm.SHADOW and c.status in ANSWERED]
    moves = read_moves(engine, lineage)
    if not calls and not _was_deployed(moves, window):
        return CheckResult(passed=True, facts={"uses_gateway": False})
    wrong = _find_unservable(lineage, moves, calls)
    by_agent: defaultdict[str, list[RecordedCall]] = defaultdict(list)
    for call in calls:
        if call.agent_id is not None:
            by_agent[call.agent_id].append(call)
    played: defaultdict[str, list[Trajectory]] = defaultdict(list)
    theirs = find_agents_of_others(engine, lineage, str(window)) - set(by_agent)
    for trajectory in workspace.store.trajectories(window):
        if trajectory.agent_id not in theirs:
            played[trajectory.agent_id].append(trajectory)
    bypassed = {
        agent: "no call of the hour names it"
        if agent not in by_agent
        else find_disagreement(lineage, by_agent[agent], own) or ""
        for agent, own in sorted(played.items())
    }
    bypassed = {agent: why for agent, why in bypassed.items() if why}
    facts: Json = {
        "uses_gateway": bool(calls),
        "calls": len(calls),
        "agents": len({*by_agent, *played}),
        "bypassed_the_gateway": len(bypassed),
        "answered_out_of_service": len(wrong),
    }
    if bypassed:
        facts["bypassing_agents"] = dict(list(bypassed.items())[:_NAMED])
    if wrong:
        facts["agents_answered_out_of_service"] = dict(list(wrong.items())[:_NAMED])
    return CheckResult(passed=not bypassed and not wrong, facts=facts)


def candidate_is_not_worse(window: HourWindow, workspace: Workspace) -> CheckResult:
    """No look at the hour found the candidate worse than the incumbent: neither in money, with the whole interval below 0, nor by a guard rail."""
    looks = read_looks_of(workspace.store.engine, workspace.settings.lineage, window)
    if not looks:
        return CheckResult(passed=True, facts={"on_trial": False})
    look = looks[-1]
    worse = look.decision == Decision.ROLL_BACK or (look.hi_usd is not None and look.hi_usd < 0)
    return CheckResult(
        passed=not worse,
        facts={
            "on_trial": True,
            "rollout": look.rollout,
            "decision": look.decision,
            "reason": look.reason,
            "windows": look.windows,
            "difference_usd": look.mean_usd,
            "difference_lo_usd": look.lo_usd,
            "difference_hi_usd": look.hi_usd,
        },
    )


DEPLOYMENT_CHECKS: Final[tuple[DeploymentCheck, ...]] = (
    live_agents_are_answered_by_the_deployed_policy,
    candidate_is_not_worse,
)


def _was_deployed(moves: Sequence[Move], window: HourWindow) -> bool:
    """Whether a checkpoint was in service or on trial when the hour began."""
    made = [m.after for m in moves if m.at is not None and m.at <= window.start_at]
    return bool(made) and (made[-1].incumbent != 0 or made[-1].rollout is not None)


def _find_unservable(lineage: str, moves: Sequence[Move], calls: Iterable[RecordedCall]) -> dict[str, str]:
    """Agent → the policy that answered it although it was not in service when it was asked."""
    found: dict[str, str] = {}
    for call in calls:
        if not any(call.step in steps for steps in _servable_at(lineage, moves, call.asked_at)):
            found[call.agent_id or "(unnamed)"] = f"{policy_name(lineage, call.step)} at {call.asked_at:%H:%M:%S} UTC"
    return dict(sorted(found.items()))


def _servable_at(lineage: str, moves: Sequence[Move], at: datetime) -> list[frozenset[int]]:
    """What could be answered with around an instant: before and after each move that is not `GRACE` away."""
    states = []
    for i in range(len(moves) + 1):
        begins = moves[i - 1].at if i else None
        ends = moves[i].at if i < len(moves) else None
        if (begins is None or begins <= at + GRACE) and (ends is None or ends >= at - GRACE):
            deployment = moves[i - 1].after if i else Deployment(lineage=lineage)
            states.append(servable_steps(moves[:i], deployment))
    return states
