"""The moves of a deployment, made of the state before: what each changes, and which agents its thresholds are chosen among."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from babylon_rl.deployment.evidence import WindowEvidence
from babylon_rl.deployment.rules import WIDEN_AFTER_WINDOWS, Decision
from babylon_rl.deployment.stages import (
    SHARES,
    TEST_SHARES,
    Deployment,
    MoveKind,
    Stage,
    choose_threshold,
    is_test_agent,
)
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.deployments import Move
from babylon_rl.store.rollout_hours import recent_agents
from babylon_rl.types import Json, policy_name
from babylon_rl.windows import HourWindow

PLATFORM: Final = "platform"
OPERATOR: Final = "operator"
_NEXT: Final = {Stage.SHADOW: Stage.CANARY, Stage.CANARY: Stage.HALF}


def begin_rollout(
    workspace: Workspace,
    before: Deployment,
    step: int,
    *,
    stage: Stage,
    reason: str,
    made_by: str,
    window: HourWindow | None = None,
    facts: Json | None = None,
) -> Move:
    """The move that puts a checkpoint on trial. Its rollout's id names it and the move, so no two are alike."""
    number = before.number + 1
    rollout = f"{policy_name(before.lineage, step)}#{number}"
    bare = replace(
        before, number=number, stage=stage, candidate=step, rollout=rollout, threshold=0.0, test_threshold=0.0
    )
    after = _choose_thresholds(workspace, bare, _find_agents(workspace))
    return Move(
        kind=MoveKind(stage.value),
        after=after,
        subject=step,
        reason=reason,
        made_by=made_by,
        window_id=None if window is None else str(window),
        facts=facts,
    )


def move_by_decision(
    workspace: Workspace,
    before: Deployment,
    decision: Decision,
    *,
    reason: str,
    window: HourWindow,
    evidence: Sequence[WindowEvidence],
    facts: Json,
) -> Move | None:
    """The move that a look decided; None: it decided none, or the share cannot grow among the agents that are there."""
    candidate = before.candidate or 0
    match decision:
        case Decision.HOLD:
            return None
        case Decision.ADVANCE:
            stage = _NEXT[before.stage]
            agents = _find_agents(workspace)
            after = _choose_thresholds(workspace, replace(_next(before), stage=stage), agents)
            kind = MoveKind(stage.value)
        case Decision.WIDEN:
            played = [w for w in evidence if w.agents][-WIDEN_AFTER_WINDOWS:]
            present = {a.agent_id for w in played for a in w.agents}
            after, kind = _choose_thresholds(workspace, _next(before), present), MoveKind.WIDENED
            if (after.threshold, after.test_threshold) == (before.threshold, before.test_threshold):
                return None
        case Decision.PROMOTE:
            after, kind = _end(before, incumbent=candidate), MoveKind.PROMOTED
        case Decision.ROLL_BACK:
            after, kind = _end(before, incumbent=before.incumbent), MoveKind.ROLLED_BACK
        case _:  # END
            after, kind = _end(before, incumbent=before.incumbent), MoveKind.ENDED
    return Move(
        kind=kind, after=after, subject=candidate, reason=reason, made_by=PLATFORM, window_id=str(window), facts=facts
    )


def promote_at_once(before: Deployment, step: int, *, reason: str) -> Move:
    """An operator's move: the step answers everybody from now on."""
    return Move(
        kind=MoveKind.PROMOTED, after=_end(before, incumbent=step), subject=step, reason=reason, made_by=OPERATOR
    )


def take_back(before: Deployment, *, incumbent: int, subject: int, reason: str) -> Move:
    """An operator's move: `subject` is out of service, and `incumbent` answers everybody."""
    after = _end(before, incumbent=incumbent)
    return Move(kind=MoveKind.ROLLED_BACK, after=after, subject=subject, reason=reason, made_by=OPERATOR)


def pause_or_resume(before: Deployment, *, paused: bool, reason: str) -> Move:
    """An operator's move: nothing moves by itself, or does again."""
    return Move(
        kind=MoveKind.PAUSED if paused else MoveKind.RESUMED,
        after=replace(_next(before), paused=paused),
        subject=before.incumbent if before.candidate is None else before.candidate,
        reason=reason,
        made_by=OPERATOR,
    )


def _find_agents(workspace: Workspace) -> list[str]:
    now = HourWindow.containing(workspace.now())  # a caller may name an hour of the far future
    return recent_agents(workspace.store.engine, workspace.settings.lineage, up_to=now)


def _next(before: Deployment) -> Deployment:
    return replace(before, number=before.number + 1)


def _end(before: Deployment, *, incumbent: int) -> Deployment:
    return Deployment(lineage=before.lineage, number=before.number + 1, incumbent=incumbent, paused=before.paused)


def _choose_thresholds(workspace: Workspace, deployment: Deployment, agents: Iterable[str]) -> Deployment:
    """Thresholds for the deployment's stage among the agents that are there; neither falls."""
    patterns, rollout, everybody = (
        workspace.settings.deployment.test_agent_patterns,
        deployment.rollout or "",
        list(agents),
    )
    tests = [a for a in everybody if is_test_agent(a, patterns)]
    others = [a for a in everybody if not is_test_agent(a, patterns)]
    stage = deployment.stage
    return replace(
        deployment,
        threshold=choose_threshold(rollout, others, SHARES[stage], at_least=deployment.threshold),
        test_threshold=choose_threshold(rollout, tests, TEST_SHARES[stage], at_least=deployment.test_threshold),
    )
