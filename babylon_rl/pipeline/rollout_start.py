"""Whether a rollout begins, with which checkpoint, and by which hour; or why none does.

By itself the platform tries the newest checkpoint that passed its evaluation, once `FEWEST_AGENTS` agents call the gateway: without any, a
trial could only wait while newer checkpoints come. A checkpoint that an operator chose before its evaluation was made waits for that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from babylon_rl.deployment.stages import Deployment, MoveKind, Stage
from babylon_rl.pipeline.evaluation_gate import Gate, GateResult, judge_evaluations
from babylon_rl.pipeline.moves import find_agents
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.deployments import Move
from babylon_rl.store.looks import read_looks_of
from babylon_rl.store.rollout_hours import newest_prepared
from babylon_rl.windows import HourWindow

FEWEST_AGENTS: Final = 3
"""With fewer there is never an interval (docs/deployment.md): a trial would end undecided, after meeting half of them or all."""
_DECIDED: Final = (MoveKind.PROMOTED, MoveKind.ROLLED_BACK, MoveKind.ENDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStart:
    """A checkpoint's turn.

    Attributes:
        hour: The hour that makes the move.
        reason: A sentence.
        is_refused: An operator chose it, and its evaluation speaks against it: it is chosen no longer.
        shadow: Whether an operator asked for a shadow first.
    """

    hour: HourWindow
    step: int
    reason: str
    is_refused: bool = False
    shadow: bool = False


def find_start(workspace: Workspace, deployment: Deployment, moves: Sequence[Move]) -> RolloutStart | str:
    """What begins now, where no rollout is under way; else a sentence that says why nothing does.

    Args:
        workspace: Its ledger and evaluations.
        deployment: After the last of `moves`.
        moves: Every move of the lineage.
    """
    answering = f"{deployment.incumbent_name} answers everybody"
    if deployment.paused:
        return f"{answering}; paused: `babylon-rl resume` lets rollouts begin again"
    if deployment.stage is Stage.CANDIDATE and deployment.candidate is not None:
        chosen = judge_evaluations(workspace, [deployment.candidate])[deployment.candidate]
        if chosen.gate is Gate.UNKNOWN:
            return (
                f"{answering}; an operator chose {deployment.candidate_name}, which waits: {chosen.sentence}; "
                f"`babylon-rl deploy {chosen.step} --without-evaluation` does not wait"
            )
    else:
        found = _choose(workspace, deployment, moves)
        if isinstance(found, str):
            return f"{answering}; {found}"
        chosen = found
    engine, start = workspace.store.engine, HourWindow.parse(workspace.settings.start)
    newest = newest_prepared(engine, up_to=HourWindow.containing(workspace.now()).next(-1))
    last = max([start.next(-1), *(HourWindow.parse(m.window_id) for m in moves if m.window_id is not None)])
    if newest is None or newest <= last or read_looks_of(engine, deployment.lineage, newest):
        return f"{answering}; {chosen.sentence}; it is tried with the next prepared hour"
    if chosen.gate is not Gate.PASSED:
        advice = f"`babylon-rl deploy {chosen.step} --without-evaluation` tries it all the same"
        return RolloutStart(hour=newest, step=chosen.step, reason=f"{chosen.sentence}; {advice}", is_refused=True)
    begun = next((m for m in reversed(moves) if m.kind is MoveKind.CANDIDATE), None)
    return RolloutStart(
        hour=newest,
        step=chosen.step,
        reason=f"passed its evaluation: {chosen.sentence}",
        shadow=deployment.stage is Stage.CANDIDATE and begun is not None and bool((begun.facts or {}).get("shadow")),
    )


def _choose(workspace: Workspace, deployment: Deployment, moves: Sequence[Move]) -> GateResult | str:
    """The newest checkpoint that passed and was not tried; else why there is none."""
    if workspace.settings.deployment.mode == "manual":
        return "BABYLON_DEPLOY is manual: `babylon-rl deploy` begins a rollout"
    tried = {m.subject for m in moves if m.kind in _DECIDED}
    # One that is older than a former incumbent was passed over, also where that was rolled back since.
    newest_served = max([deployment.incumbent, *(m.subject for m in moves if m.kind is MoveKind.PROMOTED)])
    untried = [s for s in workspace.ledger.steps_after(newest_served) if s not in tried]
    if not untried:
        return "there is no newer checkpoint that was not tried"
    results = judge_evaluations(workspace, untried)
    passed = next((results[s] for s in reversed(untried) if results[s].gate is Gate.PASSED), None)
    if passed is None:
        return results[untried[-1]].sentence
    if (agents := len(find_agents(workspace))) < FEWEST_AGENTS:
        return f"{passed.sentence}; it is tried once {FEWEST_AGENTS} agents call the gateway ({agents} did)"
    return passed
