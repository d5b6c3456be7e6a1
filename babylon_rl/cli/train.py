"""`babylon-rl train`: materializes the Dagster assets iteration by iteration; prints what the game's `train_mmo.py` prints."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from babylon_rl.errors import ConfigError, DataError
from babylon_rl.pipeline.evaluate import describe_evaluation, unevaluated
from babylon_rl.pipeline.foreign_windows import release_foreign_windows
from babylon_rl.pipeline.readiness import contiguous, unprepared_windows
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.report import formatting
from babylon_rl.report.screen import RunProgress, run_progress
from babylon_rl.training.factory import locate_policy
from babylon_rl.types import Checkpoint
from babylon_rl.windows import HourWindow

if TYPE_CHECKING:
    from babylon_rl.cli.runner import Runner

RULE = "=" * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The guide's flags. `windows_per_iteration` None: BABYLON_MIN_WINDOWS."""

    iterations: int
    min_agents: int
    windows_per_iteration: int | None
    learning_rate: float | None
    evaluate: bool


def train(workspace: Workspace, options: TrainOptions, console: Console) -> bool:
    """Train up to `iterations` checkpoints from what is recorded, oldest windows first.

    A batch that an interrupted training had planned is trained first, with the windows planned for it.

    Returns:
        Whether anything was trained, or evaluated that a kill had left without an evaluation.

    Raises:
        DataError: Not even one checkpoint could be trained; the message says what is missing.
    """
    from babylon_rl.cli.runner import open_runner

    made: list[Checkpoint] = []
    evaluated = False
    with open_runner() as runner:
        for iteration in range(1, options.iterations + 1):
            checkpoint = _iterate(workspace, options, console, runner, iteration)
            if checkpoint is None:
                break
            made.append(checkpoint)
        if options.evaluate:
            evaluated = _evaluate_newest_missing(workspace, console, runner, tried={c.step for c in made})
    latest = workspace.ledger.latest()
    if not made and latest is None:
        raise DataError(_explain_missing(workspace, options))
    if not made:
        console.print(_explain_missing(workspace, options), highlight=False, markup=False)
    console.print(f"\nTRAINING COMPLETE\n{RULE}", highlight=False)
    console.print(f"Final step: {0 if latest is None else latest.step}", highlight=False)
    console.print(f"Checkpoints trained: {len(made)}\n", highlight=False)
    if latest is not None:
        _print_endpoint(workspace, latest, console)
    return bool(made) or evaluated


def _print_endpoint(workspace: Workspace, latest: Checkpoint, console: Console) -> None:
    settings, started = workspace.settings, "http://127.0.0.1:8000/v1"
    ours = latest.trainer == "cpu"
    try:
        served = locate_policy(
            settings.training, latest, inference_url=started if ours else settings.serving.inference_url
        )
    except ConfigError as e:
        console.print(f"Inference endpoint: {e}", highlight=False, markup=False, soft_wrap=True)
        return
    how = "   (start it: babylon-rl serve)" if ours else ""
    console.print("Inference endpoint:", highlight=False)
    console.print(f"  {served.base_url}{how}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"  Model: {served.model}", highlight=False, markup=False, soft_wrap=True)


def _iterate(
    workspace: Workspace, options: TrainOptions, console: Console, runner: "Runner", iteration: int
) -> Checkpoint | None:
    ledger = workspace.ledger
    size = options.windows_per_iteration or workspace.settings.training.min_windows
    release_foreign_windows(workspace)
    planned = ledger.resumable_batch()
    console.print(f"\nITERATION {iteration}/{options.iterations}\n{RULE}", highlight=False)
    with run_progress(console) as run:
        if planned is None:
            _prepare(workspace, options, run=run, runner=runner, need=size, first_time=iteration == 1)
        else:
            console.print(
                f"Resuming checkpoint {planned.step}, which an interrupted training had planned with "
                f"{len(planned.windows)} windows",
                highlight=False,
            )
        before = ledger.latest()
        step = 1 if before is None else before.step + 1
        target = ledger.next_partition(size)
        if target is None:
            console.print(
                f"Found {len(ledger.ready())} unused windows with {options.min_agents}+ agents", highlight=False
            )
            return None
        batch = (
            list(planned.windows) if planned is not None else [r.window_id for r in ledger.ready(up_to=target)[:size]]
        )
        console.print(f"Found {len(batch)} windows with {options.min_agents}+ agents", highlight=False)
        _print_windows(workspace, batch, console)
        console.print(f"\nTraining on {len(batch)} windows...", highlight=False)
        with run.phase("train", f"iteration {iteration} of {options.iterations}") as phase:
            runner.materialize(
                "policy",
                target,
                target,
                assets=["trained_checkpoint"],
                config={
                    "trained_checkpoint": {
                        "windows_per_iteration": size,
                        "learning_rate": options.learning_rate,
                        "max_checkpoints": 1,
                    }
                },
                resources={"workspace": workspace, "progress": phase},
            )
        # Another process may have trained this step, and later ones, while this one waited for its turn.
        checkpoint = next((c for c in ledger.checkpoints() if c.step == step), None)
        if checkpoint is None:
            raise DataError(f"partition {target} trained nothing although {size} windows were ready; run it again")
        said = _evaluate(workspace, checkpoint, run=run, runner=runner) if options.evaluate else None
    if said is not None:
        console.print(f"Evaluation: {said}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"✅ Iteration {iteration} complete! Checkpoint: step {checkpoint.step}", highlight=False)
    return checkpoint


def _evaluate(workspace: Workspace, checkpoint: Checkpoint, *, run: RunProgress, runner: "Runner") -> str | None:
    """Evaluate one checkpoint; what was said of it."""
    partition = HourWindow.parse(checkpoint.window_id)
    decisions = workspace.settings.serving.evaluation_windows * 3
    with run.phase("evaluate", checkpoint.name, total=decisions) as phase:
        resources = {"workspace": workspace, "progress": phase}
        runner.materialize("policy", partition, partition, assets=["policy_evaluation"], resources=resources)
    return describe_evaluation(workspace, checkpoint.lineage, checkpoint.step)


def _evaluate_newest_missing(
    workspace: Workspace, console: Console, runner: "Runner", *, tried: Collection[int]
) -> bool:
    """Evaluate the newest checkpoint that a kill, or a run without evaluation, left without a result: one a call.

    `tried` are the steps that this call has evaluated already, whether anything could be said of them or not. Returns
    whether something was said of it.
    """
    missing = [step for step in unevaluated(workspace, even_if_refused=True) if step not in tried]
    if not missing:
        return False
    checkpoint = next(c for c in workspace.ledger.checkpoints() if c.step == missing[0])
    console.print(f"\nEvaluating {checkpoint.name}, which has no evaluation yet", highlight=False)
    with run_progress(console) as run:
        said = _evaluate(workspace, checkpoint, run=run, runner=runner)
    if said is not None:
        console.print(f"Evaluation: {said}", highlight=False, markup=False, soft_wrap=True)
    return checkpoint.step not in unevaluated(workspace, even_if_refused=True)


def _prepare(
    workspace: Workspace,
    options: TrainOptions,
    *,
    run: RunProgress,
    runner: "Runner",
    need: int,
    first_time: bool,
) -> None:
    """Materialize groups and scores of recorded windows that have none yet.

    Windows that wait for another try are tried at once, because a person asks, but not again in every iteration.
    """
    if len(workspace.ledger.ready()) >= need:
        return
    now = workspace.now()
    unprepared = unprepared_windows(workspace, min_agents=options.min_agents)
    pending = [u.window for u in unprepared if not u.rows_only and (first_time or u.is_due(now))]
    for first, last in contiguous(pending):
        total = sum(1 for _ in first.until(last))
        with run.phase("judge", f"{first} to {last}" if first != last else str(first), total=total) as phase:
            config = {"contextualized_groups": {"min_agents": options.min_agents}}
            resources = {"workspace": workspace, "progress": phase}
            runner.materialize("windows", first, last, config=config, resources=resources)


def _print_windows(workspace: Workspace, batch: list[str], console: Console) -> None:
    shown = batch[:5]
    for window_id in shown:
        window = HourWindow.parse(window_id)
        judgment, hindsight = workspace.store.judgment(window), workspace.store.hindsight(window)
        if judgment is None or hindsight is None:
            continue
        values = [s.value for s in judgment.scores]
        best = max(judgment.scores, key=lambda s: (s.value, s.trajectory_id))
        pnl = next(m.pnl_usd for m in hindsight.members if m.trajectory_id == best.trajectory_id)
        money = "unknown" if pnl is None else formatting.money(pnl)
        mean = sum(values) / len(values)
        agent = best.trajectory_id.split("/", 1)[-1]
        unranked = f", {len(judgment.left_out)} more left out of the ranking" if judgment.left_out else ""
        for line in (
            f"Processing {window_id}",
            f"  Found {len(judgment.scores)} simultaneous agents{unranked}",
            f"  RULER scores: min={min(values):.2f}, max={max(values):.2f}, avg={mean:.2f}",
            f"  Best: {agent} (score: {best.value:.2f}, P&L: {money})",
        ):
            console.print(line, highlight=False, markup=False)
    if len(batch) > len(shown):
        console.print(f"  … and {len(batch) - len(shown)} more windows", highlight=False)


def _explain_missing(workspace: Workspace, options: TrainOptions) -> str:
    size = options.windows_per_iteration or workspace.settings.training.min_windows
    ready = len(workspace.ledger.ready())
    return (
        f"{ready} unused windows with {options.min_agents}+ agents are ready, {size} make one training; "
        "run `babylon-rl check-windows`: it names what is missing and the next command"
    )
