"""One look at what is deployed, after each closed and prepared hour: it begins a rollout, moves it, holds it, or ends it.

Rules that make a look safe to repeat:

- A look and its move are one transaction, so a kill leaves both or neither; two processes that decide at once collide on the
  move's number, and the second reads what the first did.
- An hour that was looked at keeps its look. It makes no move again: backfills, retries and late rows change what the next
  hours decide.
- Only an hour newer than every hour that has made a move, and than every hour that was looked at, may move anything.
- An hour whose rows are not read yet is waited for, and all hours after it with it, for `PATIENCE` after it has closed.
- An hour in which nobody was answered under the rollout is none of its hours.
"""

import logging
from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from babylon_rl.deployment import rules
from babylon_rl.deployment.stages import Deployment, Stage
from babylon_rl.errors import DataError, TransientError
from babylon_rl.pipeline.live_windows import collect_evidence
from babylon_rl.pipeline.moves import PLATFORM, begin_rollout, end_candidate, move_by_decision
from babylon_rl.pipeline.rollout_start import find_start
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.policy.process import base_of
from babylon_rl.store.deployments import Move, read_moves, write_move
from babylon_rl.store.looks import Evidence, Look, newest_looked, read_looks_of, write_look
from babylon_rl.store.rollout_hours import next_hours, read_versions
from babylon_rl.training.checkpoint_store import base_digest, verify
from babylon_rl.types import Json, policy_name
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

PATIENCE: Final = timedelta(hours=6)
_TRIES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LookResult:
    """What one hour's look did.

    Attributes:
        after: What is deployed after it.
        reason: A sentence.
        look: What was stored of the hour, now or before; None: the hour is none of a rollout's.
        move: What this very look moved.
        is_waiting: Whether the hour is looked at later, by itself.
        problem: What is wrong with the incumbent's checkpoint; None: nothing.
    """

    window: HourWindow
    after: Deployment
    reason: str
    look: Look | None = None
    move: Move | None = None
    is_waiting: bool = False
    problem: str | None = None

    def facts(self) -> Json:
        """Small values for the asset's metadata."""
        d = self.after
        facts: Json = {
            "reason": self.reason,
            "moved": self.move is not None,
            "move": None if self.move is None else self.move.kind.value,
            "deployment": d.number,
            "stage": d.stage.value,
            "incumbent": d.incumbent_name,
            "candidate": d.candidate_name,
            "paused": d.paused,
            "waiting": self.is_waiting,
        }
        if self.problem is not None:
            facts["incumbent_problem"] = self.problem
        if (look := self.look) is not None:
            facts |= {"decision": look.decision, "windows": look.windows, "difference_usd": _round(look.mean_usd)}
            facts |= {"difference_lo_usd": _round(look.lo_usd), "difference_hi_usd": _round(look.hi_usd)}
            facts |= {k: _round(v) for k, v in look.facts.items()}
        return facts


def look_at_hour(workspace: Workspace, window: HourWindow) -> LookResult:
    """Look at what is deployed as one hour shows it, and make at most one move.

    Raises:
        TransientError: Other processes moved it again and again meanwhile; nothing was written.
    """
    for _ in range(_TRIES):
        result = _look(workspace, window.hour)
        if result is not None:
            return result
    raise TransientError(
        f"what is deployed of {workspace.settings.lineage} moved {_TRIES} times while hour {window.hour} was looked at; "
        "nothing was written; it is looked at again"
    )


def find_due_hours(workspace: Workspace, *, limit: int) -> tuple[list[HourWindow], str]:
    """The hours to look at now, oldest first, and why there are none or what they are for. A few indexed queries."""
    engine, lineage, now = workspace.store.engine, workspace.settings.lineage, workspace.now()
    moves = read_moves(engine, lineage)
    deployment = moves[-1].after if moves else Deployment(lineage=lineage)
    if deployment.rollout is None:
        start = find_start(workspace, deployment, moves)
        return ([], start) if isinstance(start, str) else ([start.hour], start.reason)
    looked, moved = newest_looked(engine, lineage, deployment.rollout), _newest_move(moves)
    # Hours before BABYLON_START are no partitions.
    after = max(filter(None, (looked, moved, HourWindow.parse(workspace.settings.start).next(-1))))
    hours = [w for w in next_hours(engine, deployment.rollout, after=after, limit=limit) if w.closed_at(now)]
    prepared = read_versions(engine, [str(w) for w in hours])
    if (waits := next((w for w in hours if _is_awaited(w, prepared, now)), None)) is not None:
        hours = [w for w in hours if w < waits]
    if hours:
        return hours, f"{deployment.candidate_name} is on trial ({deployment.stage.value})"
    if waits is not None:
        return [], _explain_wait(waits)
    return [], f"{deployment.candidate_name} is on trial ({deployment.stage.value}); no newer hour of it has closed"


def find_problem(workspace: Workspace, step: int) -> str | None:
    """What is wrong with the checkpoint of a step that answers agents, in a sentence; None: nothing, or it is the base."""
    if step == 0:
        return None
    ledger, name = workspace.ledger, policy_name(workspace.settings.lineage, step)
    checkpoint = next((c for c in ledger.checkpoints() if c.step == step), None)
    if checkpoint is None:
        return f"{name} answers agents and the ledger has no such checkpoint; run: babylon-rl rollback"
    base = base_of(workspace.settings.training)
    if checkpoint.trainer != "cpu" or not (base / "config.json").is_file():
        return None  # its weights are elsewhere
    try:
        verify(
            workspace.settings.checkpoints_dir,
            ledger.lineage,
            step,
            base=base_digest(base),
            manifest=ledger.manifest(step),
        )
    except DataError as e:
        return str(e)
    return None


def _look(workspace: Workspace, window: HourWindow) -> LookResult | None:
    """One try; None: another process moved first."""
    engine, lineage, now = workspace.store.engine, workspace.settings.lineage, workspace.now()
    moves = read_moves(engine, lineage)
    deployment = moves[-1].after if moves else Deployment(lineage=lineage)
    looks = read_looks_of(engine, lineage, window)
    problem = find_problem(workspace, deployment.incumbent)

    def say(reason: str, *, look: Look | None = None, is_waiting: bool = False) -> LookResult:
        return LookResult(
            window=window, after=deployment, reason=reason, look=look, is_waiting=is_waiting, problem=problem
        )

    if not window.closed_at(now):
        return say(f"the hour {window} is not over", is_waiting=True)
    if deployment.rollout is None:
        if looks:
            return say(_say_again(looks[-1]), look=looks[-1])
        return _begin(workspace, deployment, moves, window, problem)
    if known := [look for look in looks if look.rollout == deployment.rollout]:
        return say(_say_again(known[-1]), look=known[-1])
    hours = next_hours(engine, deployment.rollout, after=None, limit=100_000)
    if window not in hours:
        return say(f"no agent was answered under {deployment.candidate_name}'s rollout in {window}")
    before = [w for w in hours if w <= window]
    prepared, start = read_versions(engine, [str(w) for w in before]), HourWindow.parse(workspace.settings.start)
    partitions = [w for w in before if w >= start]  # no other hour's rows are ever read by themselves
    if (waits := next((w for w in partitions if _is_awaited(w, prepared, now)), None)) is not None:
        return say(_explain_wait(waits), is_waiting=True)
    evidence = collect_evidence(workspace, deployment, moves, up_to=window)
    decided = rules.decide(deployment, [e.window for e in evidence], workspace.settings.deployment)
    newest = max(filter(None, (newest_looked(engine, lineage, deployment.rollout), _newest_move(moves))), default=None)
    move, kept = None, decided.reason
    if newest is not None and window <= newest:
        kept = f"looked at late, after {newest}, so it moves nothing: {decided.reason}"
    elif deployment.paused:
        kept = f"paused, so nothing moves: {decided.reason}"
    else:
        move = move_by_decision(
            workspace,
            deployment,
            decided.decision,
            reason=decided.reason,
            window=window,
            evidence=[e.window for e in evidence],
            facts=_summarize(decided),
        )
    look = _make_look(deployment, window, decided, kept, evidence[-1])
    if move is None:
        write_look(engine, look)
        return say(kept, look=look)
    if not write_move(engine, move, look=look):
        return None
    logger.info("moved lineage=%s move=%s subject=%d window=%s", lineage, move.kind.value, move.subject, window)
    return LookResult(window=window, after=move.after, reason=kept, look=look, move=move, problem=problem)


def _begin(
    workspace: Workspace, deployment: Deployment, moves: Sequence[Move], window: HourWindow, problem: str | None
) -> LookResult | None:
    """Begin a rollout, if one is to begin and the hour is the newest."""
    start = find_start(workspace, deployment, moves)
    if isinstance(start, str):
        return LookResult(window=window, after=deployment, reason=start, problem=problem)
    if window != start.hour:
        waits = f"{policy_name(deployment.lineage, start.step)} is tried with the newest prepared hour, {start.hour}"
        return LookResult(window=window, after=deployment, reason=waits, problem=problem)
    if start.is_refused:
        move = end_candidate(deployment, reason=start.reason, window=window)
    else:
        shadow = start.shadow or workspace.settings.deployment.shadow_windows
        move = begin_rollout(
            workspace,
            deployment,
            start.step,
            stage=Stage.SHADOW if shadow else Stage.CANARY,
            reason=start.reason,
            made_by=PLATFORM,
            window=window,
        )
    if not write_move(workspace.store.engine, move):
        return None
    logger.info("moved lineage=%s move=%s subject=%d", deployment.lineage, move.kind.value, start.step)
    return LookResult(window=window, after=move.after, reason=start.reason, move=move, problem=problem)


def _make_look(
    deployment: Deployment, window: HourWindow, decided: rules.Look, reason: str, evidence: Evidence
) -> Look:
    return Look(
        lineage=deployment.lineage,
        rollout=deployment.rollout or "",
        window_id=str(window),
        number=deployment.number,
        stage=deployment.stage,
        decision=decided.decision.value,
        reason=reason,
        windows=decided.windows,
        mean_usd=decided.mean,
        lo_usd=decided.lo,
        hi_usd=decided.hi,
        facts=dict(decided.facts),
        evidence=evidence,
    )


def _summarize(decided: rules.Look) -> Json:
    return {"windows": decided.windows, "mean_usd": decided.mean, "lo_usd": decided.lo, "hi_usd": decided.hi}


def _newest_move(moves: Sequence[Move]) -> HourWindow | None:
    """The newest hour that has made a move, of any rollout."""
    return max((HourWindow.parse(m.window_id) for m in moves if m.window_id is not None), default=None)


def _is_awaited(window: HourWindow, prepared: Container[str], now: datetime) -> bool:
    return str(window) not in prepared and now < window.end_at + PATIENCE


def _explain_wait(window: HourWindow) -> str:
    return (
        f"waits until the rows of {window} are read, at the longest until {window.end_at + PATIENCE:%Y-%m-%d %H:%M} UTC"
    )


def _say_again(look: Look) -> str:
    return f"looked at before, and moves nothing again: {look.reason}"


def _round(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value
