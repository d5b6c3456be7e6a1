"""The whole flow in one file, an asset per step. Each body serves one window or a range; the partition key is the windowId.

raw_trajectories ─┐
market_outcomes ──┴─► contextualized_groups ─► ruler_scores ─► trained_checkpoint ─► policy_evaluation ─► deployment
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import dagster as dg

from babylon_rl.common.progress import Progress
from babylon_rl.defs.failures import dagster_failures
from babylon_rl.defs.partitions import HOURLY
from babylon_rl.ingest.game_facts import find_game_facts
from babylon_rl.judging.judge import Judge
from babylon_rl.pipeline import evaluate
from babylon_rl.pipeline.deploy import look_at_hour
from babylon_rl.pipeline.each_window import for_each_window
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window, note_changes
from babylon_rl.pipeline.outcomes import snapshot_outcomes, sync_windows
from babylon_rl.pipeline.score import score_range
from babylon_rl.pipeline.train import train_range
from babylon_rl.pipeline.window_result import WindowResult
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.report import row_outcomes
from babylon_rl.report.live_chart import interval_picture, make_points
from babylon_rl.report.pictures import lift_curve
from babylon_rl.store.log_evaluations import NotEvaluated
from babylon_rl.store.looks import read_looks
from babylon_rl.store.row_outcomes import count_row_outcomes
from babylon_rl.types import Json
from babylon_rl.windows import HourWindow

RANGE = dg.BackfillPolicy.single_run()
# A run that nobody watches leaves windows alone whose next try is later; a person who asks has them tried at once.
UNATTENDED_TAGS: Final = frozenset({"dagster/schedule_name", "dagster/sensor_name"})


class GroupingConfig(dg.Config):
    """How groups are made."""

    min_agents: int | None = None
    """Distinct usable agents that a group needs; unset: BABYLON_MIN_AGENTS."""


class TrainingConfig(dg.Config):
    """How a checkpoint is trained."""

    windows_per_iteration: int | None = None
    """Windows one checkpoint consumes; unset: BABYLON_MIN_WINDOWS."""

    learning_rate: float | None = None
    """Unset: BABYLON_LEARNING_RATE, or the trainer's own."""

    max_checkpoints: int | None = None
    """Stop after so many; unset: train every full batch."""


@dg.asset(partitions_def=HOURLY, backfill_policy=RANGE, group_name="windows", kinds={"postgres"}, code_version="1")
def raw_trajectories(
    context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
) -> dg.MaterializeResult[None]:
    """One stitched trajectory per usable agent of the window; every source row is accounted for."""
    game, store = workspace.game, workspace.store
    with dagster_failures():
        seen = note_changes(HourWindow.parse_all(context.partition_keys), game, store)
    _prepare_each(context, workspace, lambda window: ingest_window(window, game, store, changes_seen=seen[window]))
    return dg.MaterializeResult()


@dg.asset(partitions_def=HOURLY, backfill_policy=RANGE, group_name="windows", kinds={"postgres"}, code_version="1")
def market_outcomes(
    context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
) -> dg.MaterializeResult[None]:
    """What each market of the closed window did. For judges only: no policy ever reads it."""
    game, store, now, sync = workspace.game, workspace.store, workspace.now(), workspace.owns_game
    with dagster_failures():
        facts = find_game_facts(game)
        windows = HourWindow.parse_all(context.partition_keys)
        seen = sync_windows(windows, game, store, now=now, sync=sync, facts=facts)
    _prepare_each(
        context,
        workspace,
        lambda window: snapshot_outcomes(
            window, game, store, now=now, sync=sync, changes_seen=seen.get(window), facts=facts
        ),
    )
    return dg.MaterializeResult()


@dg.asset(
    partitions_def=HOURLY,
    deps=[raw_trajectories, market_outcomes],
    backfill_policy=RANGE,
    group_name="windows",
    kinds={"postgres"},
    code_version="1",
)
def contextualized_groups(
    context: dg.AssetExecutionContext, config: GroupingConfig, workspace: dg.ResourceParam[Workspace]
) -> dg.MaterializeResult[None]:
    """At most one group per window: what its agents were shown and answered; stored apart, hindsight for the judge."""
    min_agents = config.min_agents or workspace.settings.training.min_agents
    windows = _prepare_each(
        context, workspace, lambda window: group_window(window, workspace.store, min_agents=min_agents)
    )
    # Once a run, on its last window: a picture for each would swell the event log.
    with dagster_failures():
        context.add_asset_metadata(_row_outcome_metadata(workspace, windows), partition_key=str(windows[-1]))
    return dg.MaterializeResult()


@dg.asset(
    partitions_def=HOURLY,
    deps=[contextualized_groups],
    backfill_policy=RANGE,  # each judgment is stored the moment it arrives, so a retry of a range costs nothing
    group_name="windows",
    kinds={"llm", "postgres"},
    code_version="1",
)
def ruler_scores(
    context: dg.AssetExecutionContext,
    workspace: dg.ResourceParam[Workspace],
    judge: dg.ResourceParam[Judge],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[None]:
    """One score in [0, 1] per member of a group, comparable only inside the group. No group is judged twice."""
    with dagster_failures():
        windows = HourWindow.parse_all(context.partition_keys)
        unattended = not UNATTENDED_TAGS.isdisjoint(context.run.tags)
        results = asyncio.run(score_range(workspace, judge, windows, unattended=unattended, progress=progress))
        for window, result in results.items():
            _add_window_metadata(context, window, result)
    return dg.MaterializeResult()


@dg.asset(
    partitions_def=HOURLY,
    deps=[ruler_scores],
    backfill_policy=RANGE,
    group_name="policy",
    kinds={"art"},
    code_version="1",
)
def trained_checkpoint(
    context: dg.AssetExecutionContext,
    config: TrainingConfig,
    workspace: dg.ResourceParam[Workspace],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[None]:
    """Checkpoints of the policy: one for each full batch of unused, judged windows up to the hour; often none.

    Old windows that fill up late train in the hour of the newest of their batch, whatever was trained before.
    """
    with dagster_failures():
        outcomes = train_range(
            workspace,
            HourWindow.parse_all(context.partition_keys),
            batch_size=config.windows_per_iteration,
            learning_rate=config.learning_rate,
            max_checkpoints=config.max_checkpoints,
            progress=progress,
        )
        for window, outcome in outcomes.items():
            context.add_asset_metadata(outcome.facts(), partition_key=str(window))
    return dg.MaterializeResult()


@dg.asset(
    partitions_def=HOURLY,
    deps=[trained_checkpoint],
    backfill_policy=RANGE,
    group_name="policy",
    kinds={"python"},
    code_version="1",
)
def policy_evaluation(
    context: dg.AssetExecutionContext,
    workspace: dg.ResourceParam[Workspace],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[None]:
    """Each new checkpoint compared with its base on held-out windows: in the simulator, where it was trained there, by the
    money that both earn; else by how both answer the log. Where nothing can be said: the reason.
    """
    with dagster_failures():
        for window in HourWindow.parse_all(context.partition_keys):
            results = [
                evaluate.evaluate(workspace, checkpoint, progress=progress)
                for checkpoint in workspace.ledger.trained_in(window)
            ]
            if not results:
                reason = "this hour trained no checkpoint"
                context.add_asset_metadata({"evaluated": False, "reason": reason}, partition_key=str(window))
                continue
            facts = results[-1].facts() | {
                "checkpoints_evaluated": sum(not isinstance(r, NotEvaluated) for r in results)
            }
            if isinstance(results[-1], evaluate.Comparison):
                facts["curve"] = dg.MetadataValue.md(lift_curve(evaluate.lift_by_step(workspace)))
            _add_metadata(context, window, facts)
    return dg.MaterializeResult()


@dg.asset(
    partitions_def=HOURLY,
    deps=[raw_trajectories, policy_evaluation],
    backfill_policy=RANGE,
    group_name="policy",
    kinds={"postgres"},
    code_version="1",
)
def deployment(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult[None]:
    """Which checkpoint answers the game's agents: after each closed hour a rollout begins, moves on, is held, is rolled back
    or promoted, with the reason. An hour that was looked at before moves nothing again.
    """
    with dagster_failures():
        rollout = None
        for window in HourWindow.parse_all(context.partition_keys):
            result = look_at_hour(workspace, window)
            rollout = result.look.rollout if result.look is not None else rollout
            _add_metadata(context, window, result.facts())
        if rollout is not None:  # once a run, on its last window
            looks = read_looks(workspace.store.engine, workspace.settings.lineage, rollout)
            picture = dg.MetadataValue.md(interval_picture(make_points(looks)))
            context.add_asset_metadata({"interval": picture}, partition_key=max(context.partition_keys))
    return dg.MaterializeResult()


WINDOW_ASSETS = [raw_trajectories, market_outcomes, contextualized_groups, ruler_scores]
POLICY_ASSETS = [trained_checkpoint, policy_evaluation]
ASSETS = [*WINDOW_ASSETS, *POLICY_ASSETS, deployment]


def _prepare_each(
    context: dg.AssetExecutionContext, workspace: Workspace, work: Callable[[HourWindow], WindowResult]
) -> list[HourWindow]:
    """Do the asset's work on each window of the run and show what was done; returns the windows."""
    windows = HourWindow.parse_all(context.partition_keys)
    with dagster_failures():
        results = for_each_window(workspace, windows, context.asset_key.to_user_string(), work)
        for window, result in results.items():
            _add_window_metadata(context, window, result)
    return windows


def _add_window_metadata(context: dg.AssetExecutionContext, window: HourWindow, result: WindowResult) -> None:
    """Show what was done with one window; a range run shows it for each of its windows."""
    _add_metadata(
        context,
        window,
        {
            "dagster/row_count": result.count,
            "data_version": result.data_version[:12],
            "changed": result.changed,
            **result.facts,
        },
    )


def _add_metadata(context: dg.AssetExecutionContext, window: HourWindow, facts: Json) -> None:
    """Attach small values to one partition; None means unknown, and is shown as such."""
    context.add_asset_metadata(
        {k: dg.MetadataValue.null() if v is None else v for k, v in facts.items()}, partition_key=str(window)
    )


def _row_outcome_metadata(workspace: Workspace, windows: Sequence[HourWindow]) -> dict[str, dg.MetadataValue]:
    """How many rows of the run's windows have which status and reason, as a table and a picture."""
    counts = count_row_outcomes(workspace.store.engine, windows)
    records = [dg.TableRecord(r) for r in row_outcomes.table(counts)]
    return {
        "rows_accounted_for": dg.MetadataValue.int(sum(c.total for c in counts)),
        "row_outcomes": dg.MetadataValue.table(records, schema=_ROW_OUTCOMES),
        "row_outcomes_by_window": dg.MetadataValue.md(row_outcomes.picture(counts)),
    }


_ROW_OUTCOMES = dg.TableSchema(
    [
        dg.TableColumn("status", "string"),
        dg.TableColumn("reason", "string"),
        dg.TableColumn("rows", "int"),
        dg.TableColumn("share_pct", "float"),
    ]
)
