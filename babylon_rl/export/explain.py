"""What became of one source row or trajectory, in sentences: window, outcome, group, judgment, checkpoint.

Reads what the assets stored and the row itself; decides nothing. Where the way of a row stops, the last sentence says
why and, if a command would continue it, which.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import sqlalchemy as sa

from babylon_rl.errors import DataError
from babylon_rl.ingest.columns import find_column_names
from babylon_rl.ingest.queries import select_row_by_id, window_of
from babylon_rl.ingest.steps import has_lone_surrogate
from babylon_rl.pipeline.evaluate import describe_evaluation
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.report import formatting
from babylon_rl.store.eligibility import Reason, WindowState
from babylon_rl.store.ledger import find_trainings
from babylon_rl.store.row_outcomes import find_row_outcome, row_outcomes_of
from babylon_rl.training.rewards import rewards_of
from babylon_rl.types import Judgment, RowOutcome, RowReason, Trajectory, TrajectoryGroup, policy_name
from babylon_rl.windows import HourWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class _GameRow:
    """The columns of the game's `trajectories` that an explanation needs."""

    source_id: str
    trajectory_id: str
    agent_id: str
    own_window_id: str | None
    start_at: datetime
    end_at: datetime | None

    @property
    def window(self) -> HourWindow:
        return window_of(self.own_window_id, self.start_at)


def refuse_unreadable(id_: str) -> None:
    """Refuse what no database holds: a shell of another character set gives such an argument.

    Raises:
        DataError: It is no UTF-8 text.
    """
    if has_lone_surrogate(id_):
        raise DataError(f"{id_!r} is no UTF-8 text, so no record has that id; copy it again, or set the shell to UTF-8")


def explain(workspace: Workspace, row_or_trajectory_id: str) -> list[str]:
    """Explain what became of one row or trajectory.

    Args:
        workspace: The game's database and ours.
        row_or_trajectory_id: `id` or `trajectoryId` of a source row, or a stitched trajectory's `<window>/<agent>`.

    Returns:
        Sentences in the order in which things happened.

    Raises:
        DataError: The id is unknown.
    """
    refuse_unreadable(row_or_trajectory_id)
    known = _find_row(workspace, row_or_trajectory_id)
    if known is not None:
        row, outcome = known
        return list(_explain_row(workspace, row, outcome))
    window_id, _, agent_id = row_or_trajectory_id.partition("/")
    if agent_id:
        try:
            window = HourWindow.parse(window_id)
        except DataError:
            window = None
        if window is not None:
            outcomes = [o for o in row_outcomes_of(workspace.store.engine, window) if o.agent_id == agent_id]
            trajectory = _find_trajectory(workspace, window, row_or_trajectory_id)
            if window.scenario:
                outcomes = [o for o in outcomes if trajectory is not None and o.source_id in trajectory.row_ids]
            if outcomes:
                return list(_explain_trajectory(workspace, window, agent_id, outcomes, trajectory))
    raise DataError(
        f"{row_or_trajectory_id!r} is neither the id nor the trajectoryId of a recorded row, nor a trajectory "
        "'<window>/<agent>' that was stitched; take one from `trajectories` or from table `row_outcomes`",
        facts={"id": row_or_trajectory_id},
    )


# ── a row, or all rows of an agent ─────────────────────────────────────────────────────────────────


def _explain_row(workspace: Workspace, row: _GameRow | None, outcome: RowOutcome | None) -> Iterator[str]:
    if row is not None:
        ended = "ended at an unknown time" if row.end_at is None else f"ended {_format_instant(row.end_at)}"
        yield (
            f"Row {row.source_id} ({row.trajectory_id}) was recorded by agent {row.agent_id}; "
            f"it started {_format_instant(row.start_at)} and {ended}."
        )
        yield _explain_window(row)
    elif outcome is not None:
        yield f"Row {outcome.source_id} ({outcome.trajectory_id}) of agent {outcome.agent_id} is no longer in the game's table."
    window = row.window if row is not None else HourWindow.parse(outcome.window_id) if outcome is not None else None
    if window is None:
        return
    if row is not None and (outcome is None or outcome.window_id != str(window)):
        yield from _explain_unread(workspace, window, outcome)
        return
    if outcome is None:
        return
    yield _say_outcome(outcome)
    if outcome.status.is_set_aside:
        yield "So no group holds it, no judge saw it, and nothing trained on it."
        return
    own = next((x for x in workspace.store.trajectories(window) if outcome.source_id in x.row_ids), None)
    if own is not None and outcome.reason is RowReason.NO_TURN:
        yield (
            "So nothing of it was judged or trained on; other rows of its agent made trajectory "
            f"{own.trajectory_id}, which `babylon-rl explain {own.trajectory_id}` explains."
        )
        return
    yield from _explain_from_trajectory_on(workspace, window, outcome.agent_id, own)


def _explain_trajectory(
    workspace: Workspace,
    window: HourWindow,
    agent_id: str,
    outcomes: Sequence[RowOutcome],
    trajectory: Trajectory | None,
) -> Iterator[str]:
    n = len(outcomes)
    yield f"Agent {agent_id} has {n} row{'s' * (n > 1)} in window {window}: {_format_counts(outcomes)}."
    if all(o.status.is_set_aside for o in outcomes):
        yield "So no trajectory was stitched, no judge saw it, and nothing trained on it."
        return
    yield from _explain_from_trajectory_on(workspace, window, agent_id, trajectory)


def _explain_window(row: _GameRow) -> str:
    hour_later = window_of(row.own_window_id, row.start_at + timedelta(hours=1))
    if hour_later == row.window:  # its start does not matter
        also = HourWindow.containing(row.start_at)
        differs = "" if also == row.window else f", although it started in {also}"
        spelled = "" if row.own_window_id == str(row.window) else f" (a spelling of {row.window})"
        return (
            f"It belongs to window {row.window}, because its own window_id is {row.own_window_id!r}{spelled}{differs}."
        )
    own = "null" if row.own_window_id is None else f"{row.own_window_id!r}, which is no hour"
    return f"It belongs to window {row.window}, the UTC hour of its start, because its own window_id is {own}."


def _explain_unread(workspace: Workspace, window: HourWindow, outcome: RowOutcome | None) -> Iterator[str]:
    again = f"`babylon-rl materialize --from {window} --to {window}` reads it"
    if outcome is not None:
        yield f"It was read when it belonged to window {outcome.window_id}, and its times or window_id have changed since: {again}."
    elif workspace.store.data_version(window) is None:
        yield f"That window was not read yet: {again}."
    else:
        yield f"It arrived after that window was read, so it was not read yet: {again}."


def _say_outcome(outcome: RowOutcome) -> str:
    return f"It is {outcome.status} ({outcome.reason}): {outcome.reason.meaning}."


# ── trajectory, group, judgment, checkpoint ────────────────────────────────────────────────────────


def _explain_from_trajectory_on(
    workspace: Workspace, window: HourWindow, agent_id: str, trajectory: Trajectory | None
) -> Iterator[str]:
    if trajectory is None:
        yield f"Agent {agent_id} has no trajectory in {window}: none of its rows holds a call of the policy."
        return
    yield _describe_trajectory(trajectory)
    window = HourWindow.parse(trajectory.window_id)  # with its scenario, if it has one
    group = workspace.store.group(window)
    if group is None or all(m.trajectory_id != trajectory.trajectory_id for m in group.members):
        agents = len({x.agent_id for x in workspace.store.trajectories(window) if x.window_id == trajectory.window_id})
        yield (
            f"No group holds it: {agents} agent{'s' * (agents != 1)} of {window} can train, a group needs "
            f"{workspace.settings.training.min_agents} (BABYLON_MIN_AGENTS); or `contextualized_groups` was not materialized since."
        )
        return
    yield f"It is one of {len(group.members)} members of group {group.group_id}."
    judgment = workspace.store.judgment(window)
    yield _describe_judgment(judgment, group, trajectory.trajectory_id)
    yield from _describe_trainings(workspace, window, judgment, trajectory.trajectory_id)


def _find_trajectory(workspace: Workspace, window: HourWindow, trajectory_id: str) -> Trajectory | None:
    return next((x for x in workspace.store.trajectories(window) if x.trajectory_id == trajectory_id), None)


def _describe_trajectory(x: Trajectory) -> str:
    rows, turns = len(x.row_ids), len(x.turns)
    pnl = "unknown" if x.pnl_usd is None else formatting.money(x.pnl_usd)
    policies = ", ".join(sorted({v.policy_version or "an unnamed policy" for v in x.turns}))
    return (
        f"Trajectory {x.trajectory_id} is stitched from {rows} row{'s' * (rows != 1)}: {turns} "
        f"turn{'s' * (turns != 1)} of {policies}; its P&L inside the hour is {pnl}."
    )


def _describe_judgment(judgment: Judgment | None, group: TrajectoryGroup, trajectory_id: str) -> str:
    if judgment is None:
        return f"That group has no current judgment yet: `babylon-rl materialize --from {group.window_id} --to {group.window_id}` asks for one."
    scores = {s.trajectory_id: s for s in judgment.scores}
    judge = f"{judgment.judge_model} {judgment.judge_version}, judgment {judgment.key[:12]}"
    if trajectory_id in judgment.left_out:
        return (
            f"The judge ({judge}) left it out of the ranking: {judgment.left_out[trajectory_id]}. So nothing trains "
            f"on it; its {len(scores)} siblings are ranked without it."
        )
    if trajectory_id not in scores:
        return f"The judgment ({judge}) has no score for it."
    mine = scores[trajectory_id]
    rewards = rewards_of(judgment)
    reward = rewards[trajectory_id]
    better = 1 + sum(r > reward for r in rewards.values())
    if judgment.outcomes == "none":
        judge += ", made by P&L alone, because no market outcome was known"
    return (
        f"The judge ({judge}) scored it {mine.value:.3f}, place {better} of {len(scores)}, which makes a reward of "
        f"{reward:.2f}: {mine.explanation.strip()}"
    )


def _describe_trainings(
    workspace: Workspace, window: HourWindow, judgment: Judgment | None, trajectory_id: str
) -> Iterator[str]:
    own = workspace.settings.lineage
    used = find_trainings(workspace.store.engine, [window])
    for training in used:
        key = training.judgment_key
        same = judgment is not None and judgment.key == key
        other = f", with judgment {key[:12]}, which is not the current one: what it learned from was changed since"
        by = judgment if same else workspace.store.find_judgment(key)
        left_out = by is not None and trajectory_id in by.left_out
        yield f"Checkpoint {training.policy} was trained on {'its siblings' if left_out else 'it'}{'' if same else other}."
        if (said := describe_evaluation(workspace, training.lineage, training.step)) is not None:
            yield f"Evaluation of {training.policy}: {said}."
    if any(training.lineage == own for training in used) or (judgment and trajectory_id in judgment.left_out):
        return
    state = next(s for s in workspace.ledger.eligibility.states([window]) if s.window_id == str(window))
    if state.planned_step is not None:
        name = policy_name(own, state.planned_step)
        yield f"It is planned for checkpoint {name}, whose training is under way or was interrupted."
        return
    yield _explain_waiting(workspace, window, state)


_NOT_TRAINED: Final[Mapping[Reason, str]] = {
    Reason.ERROR: "preparing its window failed: {why}",
    Reason.WAITING_FOR_OUTCOMES: "its window waits for outcomes: {why}",
    Reason.JUDGE_FAILED: "the judge gave its window nothing usable: {why}",
    Reason.JUDGE_DOWN: "the judge is out of reach: {why}",
    Reason.OVER_BUDGET: "the day's judging budget is spent: {why}",
    Reason.NOT_READ: "its window was not read: {again} reads it",
    Reason.CHANGED: "rows of {window} came or were rewritten since it was read; {again} reads them",
    Reason.STALE: "rows or outcomes of {window} changed since its group was made; {again} makes it anew",
    Reason.CHECK_FAILED: "the window failed {failed}{found}",
    Reason.TOO_FEW_AGENTS: "its window has no group",
    Reason.NOT_GROUPED: "its window has no group",
    Reason.NOT_JUDGED: "a window trains when it is judged",
    Reason.CHECKS_MISSING: "{missing} did not run on the window",
}


def _explain_waiting(workspace: Workspace, window: HourWindow, state: WindowState) -> str:
    own = workspace.settings.lineage
    if state.dropped:
        return f"Lineage {own} does not train on it: dropout left {window} out."
    if state.reason is not None:
        why = _NOT_TRAINED[state.reason].format(
            window=window,
            again=f"`babylon-rl materialize --from {window} --to {window}`",
            failed=", ".join(state.failed_checks),
            missing=", ".join(state.missing_checks),
            why=(state.explanation or "").rstrip("."),
            found=f": {state.explanation}" if state.explanation else "",
        )
        if state.not_before is not None:
            why += f"; it is tried again after {_format_instant(state.not_before)}"
        return f"Lineage {own} does not train on it: {why}."
    ready = len(workspace.ledger.ready())
    need = workspace.settings.training.min_windows
    return (
        f"No checkpoint of lineage {own} has used it yet: its window is ready, one of {ready}, and a training takes "
        f"{need} (BABYLON_MIN_WINDOWS), oldest first."
    )


# ── looking up ─────────────────────────────────────────────────────────────────────────────────────


def _find_row(workspace: Workspace, name: str) -> tuple[_GameRow | None, RowOutcome | None] | None:
    """The game's row of that id and its outcome; either may be gone."""
    row = _read_game_row(workspace.game, name)
    outcome = find_row_outcome(workspace.store.engine, name if row is None else row.source_id)
    return None if row is None and outcome is None else (row, outcome)


def _read_game_row(game: sa.Engine, name: str) -> _GameRow | None:
    with game.connect() as conn:
        record = conn.exec_driver_sql(select_row_by_id(find_column_names(conn)), {"name": name}).mappings().first()
    if record is None:
        return None
    return _GameRow(
        source_id=record["id"],
        trajectory_id=record["trajectory_id"],
        agent_id=record["agent_id"],
        own_window_id=record["window_id"],
        start_at=record["start_time"].replace(tzinfo=UTC),
        end_at=None if record["end_time"] is None else record["end_time"].replace(tzinfo=UTC),
    )


def _format_counts(outcomes: Sequence[RowOutcome]) -> str:
    counts = Counter(f"{o.status} ({o.reason})" for o in outcomes)
    return ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))


def _format_instant(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
