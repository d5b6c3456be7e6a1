"""From an answer in the game back to the rows that its policy learned from, and from a row forward to who is answered by it.

Reads what was stored and decides nothing. What became of a row up to its judgment is `export/explain.py`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from babylon_rl.deployment.stages import Arm
from babylon_rl.errors import DataError
from babylon_rl.export.explain import explain, refuse_unreadable
from babylon_rl.pipeline.published_values import ANSWERED_WITHIN
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.call_traces import (
    AnsweredAgent,
    LearnedWindow,
    TrainedStep,
    read_answered_agents,
    read_descent,
    read_learned_windows,
    stream_learned_rows,
)
from babylon_rl.store.deployments import read_deployment, read_moves
from babylon_rl.store.ledger import TrainedWindow, find_trainings
from babylon_rl.store.row_outcomes import find_row_outcome
from babylon_rl.store.served_calls import RecordedCall, read_call
from babylon_rl.store.service_times import find_placing_move
from babylon_rl.types import Json, policy_name
from babylon_rl.windows import HOUR_ID_LENGTH, HourWindow

_SHOWN: Final = 3
_AGENTS_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What was found.

    Attributes:
        sentences: In order, from the id on.
        facts: The same for programs; with all ids where they were asked for.
    """

    sentences: list[str]
    facts: Json = field(default_factory=dict)


def trace(workspace: Workspace, id_: str, *, with_ids: bool = False) -> Trace:
    """Trace a served call back to source rows, or a row or trajectory forward to the agents answered now.

    Args:
        workspace: The game's database and ours.
        id_: A call's id, or what `explain` takes.
        with_ids: Put the ids of all windows, groups, judgments and rows into the facts.

    Raises:
        DataError: The id is unknown.
    """
    refuse_unreadable(id_)
    call = read_call(workspace.store.engine, id_)
    if call is not None:
        return _trace_call(workspace, call, with_ids=with_ids)
    if id_.startswith("call-"):
        raise DataError(
            f"{id_!r} is no call that the gateway recorded: expected the id of an answer (its field `id`, or header "
            "x-babylon-call); one of the last seconds may still be on its way, so try again",
            facts={"id": id_},
        )
    return _trace_row(workspace, id_)


# ── an answer ──────────────────────────────────────────────────────────────────────────────────────


def _trace_call(workspace: Workspace, call: RecordedCall, *, with_ids: bool) -> Trace:
    engine = workspace.store.engine
    descent = read_descent(engine, call.lineage, call.step) if call.step else []
    windows = read_learned_windows(engine, call.lineage, call.step) if call.step else []
    newest = next((w.window_id for w in windows if w.rows), None)
    rows = (
        list(stream_learned_rows(engine, call.lineage, call.step, window=None if with_ids else newest))
        if newest is not None
        else []
    )
    moves = read_moves(engine, call.lineage)
    move = find_placing_move(moves, call.deployment, call.step)
    sentences = [_describe_call(call)]
    if move is not None and call.arm is not Arm.PINNED:
        by = f"move {move.after.number} ({move.kind.value}) of {_instant(move.at)}, made by the {move.made_by}"
        sentences.append(f"{call.policy} had its place by {by}: {move.reason.rstrip('.')}.")
    elif call.arm is Arm.PINNED:
        sentences.append(f"The caller named {call.policy} itself, under deployment {call.deployment}.")
    else:
        sentences.append("No move gave it its place: the base answers everybody until a checkpoint is deployed.")
    if not descent or descent[0].step != call.step:
        sentences.append(
            "It is the base, which learned from no row of this game."
            if call.step == 0
            else f"Checkpoint {call.policy} is not in the ledger of this database, so what it learned from is not known here."
        )
    else:
        sentences += _describe_learning(call, descent, windows, rows)
    facts: Json = {
        "call": {f.name: getattr(call, f.name) for f in fields(call) if f.name not in ("messages", "response")}
        | {"policy": call.policy},
        "move": None
        if move is None
        else {
            "number": move.after.number,
            "kind": move.kind.value,
            "reason": move.reason,
            "at": move.at,
            "made_by": move.made_by,
        },
        "checkpoints": [{n: getattr(s, n) for n in TrainedStep.__dataclass_fields__} for s in descent],
        "digest_is_recorded": call.digest == descent[0].digest if call.digest and descent else None,
        "counts": {
            "windows": len(windows),
            "groups": len({w.group_id for w in windows if w.group_id}),
            "judgments": len({w.judgment_key for w in windows}),
            "trajectories": sum(w.members for w in windows),
            "rows": sum(w.rows for w in windows),
        },
    }
    if with_ids:
        facts["windows"] = [{n: getattr(w, n) for n in LearnedWindow.__dataclass_fields__} for w in windows]
        facts["row_ids"] = rows
    return Trace(sentences=sentences, facts=facts)


def _describe_call(call: RecordedCall) -> str:
    who = "a caller that named no agent" if call.agent_id is None else f"agent {call.agent_id}"
    asked = f"{call.call_id} was asked on {_instant(call.asked_at)} by {who}, in window {call.window_id}"
    if call.arm is Arm.SHADOW:
        return f"{asked}, and put to {call.policy} beside the incumbent: nobody saw that answer."
    fallen = (
        f", in place of {policy_name(call.lineage, call.fell_back_from)}, which could not"
        if call.fell_back_from is not None
        else ""
    )
    if call.status != 200:
        failed = "the caller left before the end" if call.status == 499 else f"failed with status {call.status}"
        return (
            f"{asked}; {call.policy} ({call.arm.value}) was to answer it{fallen}, and it {failed}."
            if call.status != 499
            else (f"{asked}; {call.policy} ({call.arm.value}) was answering it{fallen} when {failed}.")
        )
    return f"{asked}, and answered by {call.policy} ({call.arm.value}){fallen} after {call.latency_ms:,.0f} ms."


def _describe_learning(
    call: RecordedCall, descent: Sequence[TrainedStep], windows: Sequence[LearnedWindow], rows: Sequence[str]
) -> Iterator[str]:
    own = descent[0]
    if not call.digest:
        check = "the server that answered names no digest, so its files were not compared with the recorded ones"
    elif call.digest == own.digest:
        check = f"the digest that answered, {call.digest[:12]}, is the recorded one"
    else:
        check = (
            f"THE DIGEST DIFFERS: {call.digest[:12]} answered, {own.digest[:12] or 'none'} is recorded; it was not this training "
            "that answered"
        )
    yield f"Checkpoint {call.policy} was trained on {_instant(own.trained_at)} by trainer {own.trainer} on {own.base_model}; {check}."
    per_step = Counter(w.step for w in windows)
    steps = ", ".join(
        f"{policy_name(call.lineage, s.step)} ({_count(per_step[s.step], 'window')})" for s in descent[:_SHOWN]
    )
    more = f" and {len(descent) - _SHOWN:,} before" if len(descent) > _SHOWN else ""
    yield f"It is the result of {_count(len(descent), 'iteration')}, each trained on top of the one before: {steps}{more}."
    ids = [w.window_id for w in windows]
    yield f"They learned from {_count(len(windows), 'window')}{_between(ids)}; the newest: {_name(ids)}."
    groups = list(dict.fromkeys(w.group_id for w in windows if w.group_id))
    yield (
        f"Those were {_count(len(groups), 'group')} with {_count(sum(w.members for w in windows), 'ranked trajectory')}; "
        f"the newest: {_name(groups)}."
    )
    judges = Counter(w.judge for w in windows if w.judge)
    by = ", ".join(f"{judge} ({n:,})" for judge, n in judges.most_common())
    keys = [w.judgment_key[:12] for w in windows]
    yield f"Their rewards come from {_count(len(set(keys)), 'judgment')} by {by or 'a judge whose scores are no longer stored'}; the newest: {_name(keys)}."
    changed = sum(not w.rows for w in windows)
    stored = f"They rest on {_count(sum(w.rows for w in windows), 'source row')} of the game's trajectories; the newest: {_name(rows)}."
    if changed:
        stored += f" The rows of {_count(changed, 'window')} came or changed since, so which of them trained is not known any more."
    yield stored


# ── a row ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class _Learner:
    """What a lineage learned from a trajectory, and who is answered by that now.

    Attributes:
        steps: That trained on it themselves, or on its window before that was grouped anew.
        latest: The lineage's newest step.
    """

    lineage: str
    steps: tuple[int, ...]
    latest: int
    deployed: tuple[tuple[str, int], ...]
    agents: tuple[AnsweredAgent, ...]


def _trace_row(workspace: Workspace, id_: str) -> Trace:
    told = explain(workspace, id_)
    window_id, own, is_row = _find_place(workspace, id_)
    of_hour = (
        f"{(window_id or '')[:HOUR_ID_LENGTH]}/{own.rpartition('/')[2]}"  # of before an hour was split into scenarios
    )
    trainings = [] if window_id is None else find_trainings(workspace.store.engine, [HourWindow.parse(window_id)])
    learned: list[TrainedWindow] = []
    before: list[TrainedWindow] = []
    for training in trainings:
        judgment = workspace.store.find_judgment(training.judgment_key)
        if judgment is None or all(s.trajectory_id not in (own, of_hour) for s in judgment.scores):
            continue
        is_as_trained = not is_row or judgment.group_id == _group_of(workspace, id_)
        (learned if is_as_trained else before).append(training)
    sentences = [told[0]]
    learners = [_find_learner(workspace, lineage, learned) for lineage in sorted({x.lineage for x in learned})]
    for learner in learners:
        sentences += _describe_learner(learner)
    if before:
        names = ", ".join(x.policy for x in before)
        sentences.append(
            f"{names} trained on its agent's trajectory in {window_id} before rows of that came or changed; whether this very "
            "row was part of it then is not known any more."
        )
    if not learned and not before:
        sentences += ["No checkpoint learned from it, so no agent is answered by it.", told[-1]]
    facts: Json = {
        "id": id_,
        "window_id": window_id,
        "trajectory_id": own,
        "learned": [{"policy": x.policy, "judgment_key": x.judgment_key} for x in learned],
        "unknown": [x.policy for x in before],
        "lineages": [
            {
                "lineage": x.lineage,
                "by_descent": [
                    policy_name(x.lineage, s) for s in range(min(x.steps) + 1, x.latest + 1) if s not in x.steps
                ],
                "deployed": dict(x.deployed),
                "agents": {a.agent_id: policy_name(x.lineage, a.step) for a in x.agents},
            }
            for x in learners
        ],
    }
    return Trace(sentences=sentences, facts=facts)


def _find_place(workspace: Workspace, id_: str) -> tuple[str | None, str, bool]:
    """The window and the stitched trajectory of an id, and whether it is a single row's."""
    outcome = find_row_outcome(workspace.store.engine, id_)
    if outcome is not None:
        window = outcome.window_id if outcome.group_id is None else outcome.group_id.partition("#")[0]
        return window, f"{window}/{outcome.agent_id}", True
    window, _, agent = id_.partition("/")
    return (window if agent else None), id_, False


def _group_of(workspace: Workspace, id_: str) -> str | None:
    outcome = find_row_outcome(workspace.store.engine, id_)
    return None if outcome is None or outcome.reason != "has_turn" else outcome.group_id


def _find_learner(workspace: Workspace, lineage: str, learned: Sequence[TrainedWindow]) -> _Learner:
    engine = workspace.store.engine
    steps = tuple(sorted(x.step for x in learned if x.lineage == lineage))
    d = read_deployment(engine, lineage)
    roles = [("incumbent", d.incumbent), *([(d.stage.value, d.candidate)] if d.candidate is not None else [])]
    agents = read_answered_agents(engine, lineage, workspace.now() - ANSWERED_WITHIN)
    return _Learner(
        lineage=lineage,
        steps=steps,
        latest=_latest_step(workspace, lineage),
        deployed=tuple((role, step) for role, step in roles if step >= steps[0]),
        agents=tuple(a for a in agents if a.step >= steps[0]),
    )


def _latest_step(workspace: Workspace, lineage: str) -> int:
    return max((s.step for s in read_descent(workspace.store.engine, lineage, 2**31 - 1)), default=0)


def _describe_learner(x: _Learner) -> Iterator[str]:
    direct = ", ".join(policy_name(x.lineage, s) for s in x.steps)
    later = [s for s in range(x.steps[0] + 1, x.latest + 1) if s not in x.steps]
    if later:
        first, last = policy_name(x.lineage, later[0]), policy_name(x.lineage, later[-1])
        by_descent = f"so did, by descent from it, {first}" + (
            f" to {last}, {_count(len(later), 'checkpoint')}" if len(later) > 1 else ""
        )
    else:
        by_descent = "no later checkpoint descends from it"
    yield f"{direct} learned from it; {by_descent}."
    if x.deployed:
        named = " and ".join(f"{policy_name(x.lineage, step)} ({role})" for role, step in x.deployed)
        yield f"Of those, {named} {'is' if len(x.deployed) == 1 else 'are'} deployed now."
    else:
        yield "None of those is deployed now."
    if not x.agents:
        yield "No agent was answered by one of them in the last 24 hours."
        return
    shown = ", ".join(f"{a.agent_id} ({policy_name(x.lineage, a.step)})" for a in x.agents[:_AGENTS_SHOWN])
    more = f" and {len(x.agents) - _AGENTS_SHOWN:,} more" if len(x.agents) > _AGENTS_SHOWN else ""
    yield f"{_count(len(x.agents), 'agent')} had the last answer of the last 24 hours from them: {shown}{more}."


# ── words ──────────────────────────────────────────────────────────────────────────────────────────


def _count(n: int, what: str) -> str:
    plural = f"{what[:-1]}ies" if what.endswith("ry") else f"{what}s"
    return f"{n:,} {what if n == 1 else plural}"


def _name(ids: Sequence[str]) -> str:
    return ", ".join(islice(ids, _SHOWN)) or "none"


def _between(ids: Sequence[str]) -> str:
    return f", from {ids[-1]} to {ids[0]}" if len(ids) > 1 else ""


def _instant(at: datetime | None) -> str:
    return "an unknown time" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
