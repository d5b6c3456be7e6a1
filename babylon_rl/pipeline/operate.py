"""What an operator may do with a deployment: put a checkpoint on trial or at once in service, take it back, pause, resume.

Each function makes one move (taking back with a target may make two), or refuses with a sentence that says what to do instead.
"""

from collections.abc import Callable, Sequence

from babylon_rl.deployment.stages import Deployment, MoveKind, Stage
from babylon_rl.errors import DataError, TransientError
from babylon_rl.ingest.steps import replace_lone_surrogates
from babylon_rl.pipeline.deploy import find_problem
from babylon_rl.pipeline.evaluation_gate import Gate, GateResult, judge_evaluations
from babylon_rl.pipeline.moves import (
    OPERATOR,
    begin_rollout,
    choose_candidate,
    pause_or_resume,
    promote_at_once,
    take_back,
)
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.deployments import Move, read_moves, servable_steps, write_move
from babylon_rl.types import policy_name

_TRIES = 5


def deploy(
    workspace: Workspace,
    step: int | None,
    *,
    shadow: bool = False,
    at_once: bool = False,
    without_evaluation: bool = False,
    again: bool = False,
) -> Move:
    """Put a checkpoint on trial, or in service. One without an evaluation is chosen, and goes on trial when that is made.

    Args:
        workspace: Its ledger has the checkpoint.
        step: None: the newest checkpoint.
        shadow: Ask it beside the incumbent first; nobody sees its answers.
        at_once: Let it answer everybody from now on, without a rollout.
        without_evaluation: Also where its evaluation is missing, or does not show it to be better than its base.
        again: Also where it was rolled back before.

    Raises:
        DataError: There is no such checkpoint, or it may not be deployed; the message says why and what to do.
    """

    def decide(deployment: Deployment, moves: Sequence[Move]) -> Move:
        chosen, name = _choose(workspace, step)
        _refuse_unfit(workspace, deployment, moves, chosen, again=again, at_once=at_once)
        result = judge_evaluations(workspace, [chosen])[chosen]
        if result.gate is Gate.UNKNOWN and not without_evaluation and not at_once:
            if deployment.candidate == chosen:
                raise DataError(
                    f"{name} waits for its evaluation already: {result.sentence}; to put it on trial without, repeat with "
                    "--without-evaluation"
                )
            reason = f"an operator chose {name}, which waits for its evaluation: {result.sentence}"
            return choose_candidate(deployment, chosen, reason=reason, facts={"shadow": shadow})
        said = _refuse_unproven(result, without_evaluation=without_evaluation)
        if at_once:
            return promote_at_once(deployment, chosen, reason=f"an operator put {name} in service at once; {said}")
        stage = Stage.SHADOW if shadow else Stage.CANARY
        reason = f"an operator put {name} on trial; {said}"
        return begin_rollout(workspace, deployment, chosen, stage=stage, reason=reason, made_by=OPERATOR)

    return _move(workspace, decide)


def roll_back(workspace: Workspace, to: int | None = None, *, reason: str | None = None) -> list[Move]:
    """Take the candidate out of service or, without a rollout, the incumbent.

    Args:
        workspace: What is deployed of its lineage.
        to: Step that answers everybody afterwards; None: the incumbent of the rollout or, without one, the newest former
            incumbent that was not rolled back, else the base.
        reason: A person's words, which are kept.

    Raises:
        DataError: There is nothing to take back, or `to` was never in service.
    """
    said = _make_reason(reason)

    def decide(deployment: Deployment, moves: Sequence[Move]) -> Move:
        servable = servable_steps(moves, deployment) - {deployment.candidate}
        if to is not None and to not in servable:
            names = ", ".join(policy_name(deployment.lineage, s) for s in sorted(servable))
            raise DataError(
                f"{policy_name(deployment.lineage, to)} was never in service, or was rolled back; expected one of {names}; "
                "to try another checkpoint, run: babylon-rl deploy STEP"
            )
        if deployment.candidate is not None:
            return take_back(deployment, incumbent=deployment.incumbent, subject=deployment.candidate, reason=said)
        if deployment.incumbent == 0:
            raise DataError("nothing to roll back: the base answers everybody, and no checkpoint is on trial")
        if to == deployment.incumbent:
            raise DataError(f"{deployment.incumbent_name} answers everybody already; there is nothing to roll back")
        incumbent = _find_former(deployment, moves) if to is None else to
        return take_back(deployment, incumbent=incumbent, subject=deployment.incumbent, reason=said)

    made = [_move(workspace, decide)]
    if to is not None and made[0].after.incumbent != to:
        made.append(_move(workspace, decide))
    return made


def pause(workspace: Workspace, *, paused: bool, reason: str | None = None) -> Move:
    """Stop moves that the platform makes by itself, or let it make them again; what is deployed stays.

    Raises:
        DataError: It is so already.
    """

    def decide(deployment: Deployment, _: Sequence[Move]) -> Move:
        if deployment.paused is paused:
            raise DataError(
                f"the deployment of {deployment.lineage} {'is paused already' if paused else 'is not paused'}"
            )
        return pause_or_resume(deployment, paused=paused, reason=_make_reason(reason))

    return _move(workspace, decide)


def _move(workspace: Workspace, decide: Callable[[Deployment, Sequence[Move]], Move]) -> Move:
    engine, lineage = workspace.store.engine, workspace.settings.lineage
    for _ in range(_TRIES):
        moves = read_moves(engine, lineage)
        move = decide(moves[-1].after if moves else Deployment(lineage=lineage), moves)
        if write_move(engine, move):
            return move
    raise TransientError(
        f"what is deployed of {lineage} moved {_TRIES} times meanwhile; nothing was written; try again"
    )


def _make_reason(reason: str | None) -> str:
    """A person's words as they are kept; a shell of another character set gives what is no text."""
    return replace_lone_surrogates(reason) if reason else "an operator gave no reason"


def _choose(workspace: Workspace, step: int | None) -> tuple[int, str]:
    steps = workspace.ledger.steps_after(0)
    lineage = workspace.settings.lineage
    if not steps:
        raise DataError(f"lineage {lineage!r} has no checkpoint to deploy; run: babylon-rl train")
    if step is None:
        step = steps[-1]
    if step not in steps:
        raise DataError(
            f"the ledger has no checkpoint {policy_name(lineage, step)}; its newest is {policy_name(lineage, steps[-1])}"
        )
    return step, policy_name(lineage, step)


def _refuse_unfit(
    workspace: Workspace, deployment: Deployment, moves: Sequence[Move], step: int, *, again: bool, at_once: bool
) -> None:
    """Refuse what is in service or on trial already, was rolled back, or is damaged."""
    name = policy_name(deployment.lineage, step)
    if step == deployment.incumbent:
        raise DataError(f"{name} answers everybody already")
    is_on_trial = deployment.rollout is not None
    if is_on_trial and not (at_once and deployment.candidate == step):
        advice = f"babylon-rl deploy {step} --at-once" if deployment.candidate == step else "babylon-rl rollback"
        raise DataError(
            f"{deployment.candidate_name} is on trial ({deployment.stage.value}); wait for its end, or run: {advice}"
        )
    back = next((m for m in reversed(moves) if m.kind is MoveKind.ROLLED_BACK and m.subject == step), None)
    if back is not None and not again:
        raise DataError(f"{name} was rolled back ({back.reason}); to deploy it all the same, repeat with --again")
    if (problem := find_problem(workspace, step)) is not None:
        raise DataError(problem)


def _refuse_unproven(result: GateResult, *, without_evaluation: bool) -> str:
    if result.gate in (Gate.UNKNOWN, Gate.NOT_BETTER) and not without_evaluation:
        raise DataError(f"{result.sentence}; to deploy it all the same, repeat with --without-evaluation")
    return result.sentence


def _find_former(deployment: Deployment, moves: Sequence[Move]) -> int:
    """The newest former incumbent that was not rolled back; else the base."""
    servable = servable_steps(moves, deployment) - {deployment.incumbent}
    promoted = [m.subject for m in moves if m.kind is MoveKind.PROMOTED and m.subject in servable]
    return promoted[-1] if promoted else 0
