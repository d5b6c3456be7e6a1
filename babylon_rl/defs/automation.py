"""What runs without anyone watching: each closed hour is prepared by a schedule, and a sensor asks for training.

The sensor is safe to kill: what it asks for is computed from the ledger, so a tick repeated asks for the same
run under the same key. A key used once is used for ever, so a retry after a failed run counts the failures.
"""

from typing import Final

import dagster as dg

from babylon_rl.defs.assets import ASSETS, WINDOW_ASSETS
from babylon_rl.defs.checks import CHECKS
from babylon_rl.workspace import Workspace

MAX_ATTEMPTS: Final = 3
STEP_TAG: Final = "babylon_rl/step"

windows_job = dg.define_asset_job(
    "windows",
    selection=dg.AssetSelection.assets(*WINDOW_ASSETS),
    executor_def=dg.in_process_executor,
    description="Rows → outcomes → groups → scores, with their checks, for one hour or a range.",
)

policy_job = dg.define_asset_job(
    "policy",
    selection=dg.AssetSelection.assets(*ASSETS[4:]),
    executor_def=dg.in_process_executor,
    description="Train when enough windows wait, then evaluate the new checkpoint.",
)

hourly_windows = dg.build_schedule_from_partitioned_job(
    windows_job,
    name="hourly_windows",
    minute_of_hour=5,
    description="Prepares the hour that has just closed; an empty hour is materialized as empty.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
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
    """Requests one training when BABYLON_MIN_WINDOWS unused, judged windows wait."""
    ledger, needed = workspace.ledger, workspace.settings.min_windows
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
            f"training {ledger.lineage}@{step} failed {failures} times; look at its last run, mend the cause and "
            f"materialize trained_checkpoint for {due} by hand"
        )
    return dg.RunRequest(
        run_key=f"{tag}/{due}/{failures}",
        partition_key=str(due),
        tags={STEP_TAG: tag},
    )


JOBS = [windows_job, policy_job]
SCHEDULES = [hourly_windows]
SENSORS = [train_when_ready]
__all__ = ["CHECKS", "JOBS", "SCHEDULES", "SENSORS"]
