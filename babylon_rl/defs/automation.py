"""Schedules and sensors: a schedule prepares each hour once it has closed, a sensor prepares the hours that the schedule
missed (late rows, hours during which nothing ran), and another sensor requests training.

A sensor may be killed at any time: its request follows from the database, so a repeated tick requests the same run under
the same run key. Dagster accepts a run key only once, so the key counts the failures of earlier attempts.
"""

from datetime import UTC, datetime
from typing import Final

import dagster as dg

from babylon_rl.defs.assets import ASSETS, WINDOW_ASSETS
from babylon_rl.ingest.window_summary import count_changes
from babylon_rl.pipeline.readiness import contiguous, recorded_but_not_judged
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.windows import HourWindow

MAX_ATTEMPTS: Final = 3
STEP_TAG: Final = "babylon_rl/step"
MISSED_TAG: Final = "babylon_rl/missed_windows"
REQUEST_KEY_TAG: Final = "babylon_rl/asked_for"  # as in stored runs: attempts made before are counted
RANGE_START: Final = "dagster/asset_partition_range_start"
RANGE_END: Final = "dagster/asset_partition_range_end"
WINDOWS_PER_RUN: Final = 200

windows_job = dg.define_asset_job(
    "windows",
    selection=dg.AssetSelection.assets(*WINDOW_ASSETS),
    executor_def=dg.in_process_executor,
    description="Trajectories, outcomes, groups and scores with their checks, for one hour or a range.",
)

policy_job = dg.define_asset_job(
    "policy",
    selection=dg.AssetSelection.assets(*ASSETS[4:]),
    executor_def=dg.in_process_executor,
    description="Train when enough windows are ready, then evaluate the new checkpoint.",
)

hourly_windows = dg.build_schedule_from_partitioned_job(
    windows_job,
    name="hourly_windows",
    minute_of_hour=5,
    description="Prepares the hour that has just closed; an empty hour is materialized as empty.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)


@dg.sensor(
    name="prepare_missed_windows",
    job=windows_job,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def prepare_missed_windows(
    context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]
) -> dg.RunRequest | dg.SkipReason:
    """Requests one range run over closed windows that have enough agents and no judgment yet."""
    open_hour = HourWindow.containing(datetime.now(UTC))
    first_partition = HourWindow.parse(workspace.settings.start)
    pending = [
        w
        for w in recorded_but_not_judged(workspace, min_agents=workspace.settings.training.min_agents)
        if first_partition <= w < open_hour
    ]
    if not pending:
        return dg.SkipReason("every recorded window with enough agents is judged or kept out by a check")
    runs = context.instance.get_runs(filters=dg.RunsFilter(tags={MISSED_TAG: "yes"}), limit=20)
    if any(not r.is_finished for r in runs):
        return dg.SkipReason("a run over missed windows is under way")
    failed: list[str] = []
    for first, last in contiguous(pending):
        last = min(last, first.next(WINDOWS_PER_RUN - 1))
        requested = [w for w in pending if first <= w <= last]
        # Rows that come later make another version of the same windows: requested again, under another key.
        request_key = f"{first}/{last}/{len(requested)}/{count_changes(workspace.store.engine, requested)}"
        tried = context.instance.get_runs(filters=dg.RunsFilter(tags={REQUEST_KEY_TAG: request_key}))
        failures = sum(r.is_failure_or_canceled for r in tried)
        if failures < MAX_ATTEMPTS:
            return dg.RunRequest(
                run_key=f"missed/{request_key}/{failures}",
                tags={MISSED_TAG: "yes", REQUEST_KEY_TAG: request_key, RANGE_START: str(first), RANGE_END: str(last)},
            )
        failed.append(str(first))  # other ranges do not wait for it
    return dg.SkipReason(
        f"preparing {', '.join(failed)} failed {MAX_ATTEMPTS} times; look at the last run and fix the cause"
    )


@dg.sensor(
    name="train_when_ready",
    job=policy_job,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def train_when_ready(
    context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]
) -> dg.RunRequest | dg.SkipReason:
    """Requests one training when BABYLON_MIN_WINDOWS unused, judged windows are ready."""
    ledger, needed = workspace.ledger, workspace.settings.training.min_windows
    due = ledger.next_partition(needed)
    if due is None:
        return dg.SkipReason(f"{len(ledger.ready())} of {needed} windows are ready; waiting for more")
    latest = ledger.latest()
    step = 1 if latest is None else latest.step + 1
    tag = f"{ledger.lineage}/{step}"
    runs = context.instance.get_runs(filters=dg.RunsFilter(tags={STEP_TAG: tag}))
    if any(not r.is_finished for r in runs):
        return dg.SkipReason(f"a run that trains {ledger.lineage}@{step} is under way")
    failures = sum(r.is_failure_or_canceled for r in runs)
    if failures >= MAX_ATTEMPTS:
        return dg.SkipReason(
            f"training {ledger.lineage}@{step} failed {failures} times; look at its last run, fix the cause and "
            f"materialize trained_checkpoint for {due} by hand"
        )
    return dg.RunRequest(
        run_key=f"{tag}/{due}/{failures}",
        partition_key=str(due),
        tags={STEP_TAG: tag},
    )


JOBS = [windows_job, policy_job]
SCHEDULES = [hourly_windows]
SENSORS = [prepare_missed_windows, train_when_ready]
