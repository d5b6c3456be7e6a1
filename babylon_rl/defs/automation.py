"""Schedules and sensors: a schedule prepares each hour once it has closed; sensors prepare the hours that it missed or that
wait for another try, request trainings, evaluate checkpoints whose evaluation is missing, and look at what is deployed.

What is due is read from the database: the view and function of `store/eligibility.py` say of each window how far it has
come and before which time it is not tried again. So a sensor may be killed at any time, and a repeated tick requests the
same run under the same run key. Dagster accepts a run key only once, so the key counts the runs made before. Nothing is
ever given up: a request that keeps failing is made again after longer and longer waits.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Final, NamedTuple

import dagster as dg

from babylon_rl.common.backoff import backoff
from babylon_rl.common.canonical import digest
from babylon_rl.defs.assets import POLICY_ASSETS, WINDOW_ASSETS, deployment
from babylon_rl.defs.dead_runs import end_dead_runs
from babylon_rl.pipeline.deploy import find_due_hours
from babylon_rl.pipeline.evaluate import unevaluated
from babylon_rl.pipeline.foreign_windows import release_foreign_windows
from babylon_rl.pipeline.readiness import contiguous, unprepared_windows
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.eligibility import UnpreparedWindow
from babylon_rl.windows import HourWindow

STEP_TAG: Final = "babylon_rl/step"
MISSED_TAG: Final = "babylon_rl/missed_windows"
EVALUATION_TAG: Final = "babylon_rl/evaluation"
LOOK_TAG: Final = "babylon_rl/look"
REQUEST_KEY_TAG: Final = "babylon_rl/asked_for"  # as in stored runs: attempts made before are counted
ASKED_AT_TAG: Final = "babylon_rl/asked_at"
RANGE_START: Final = "dagster/asset_partition_range_start"
RANGE_END: Final = "dagster/asset_partition_range_end"
WINDOWS_PER_RUN: Final = 200
CHECKPOINTS_PER_RUN: Final = 10
FAILURES_BEFORE_SPLIT: Final = 3
GRACE: Final = timedelta(minutes=10)  # the schedule prepares an hour 5 minutes after it has closed
FIRST_WAIT: Final = timedelta(minutes=1)
LONGEST_WAIT: Final = timedelta(hours=1)
_UNFINISHED: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

windows_job = dg.define_asset_job(
    "windows",
    selection=dg.AssetSelection.assets(*WINDOW_ASSETS),
    executor_def=dg.in_process_executor,
    description="Trajectories, outcomes, groups and scores with their checks, for one hour or a range.",
)

policy_job = dg.define_asset_job(
    "policy",
    selection=dg.AssetSelection.assets(*POLICY_ASSETS),
    executor_def=dg.in_process_executor,
    description="Train when enough windows are ready, then evaluate the new checkpoint.",
)

deployment_job = dg.define_asset_job(
    "deploy",  # the asset has the other name, and Dagster keeps both in one list
    selection=dg.AssetSelection.assets(deployment),
    executor_def=dg.in_process_executor,
    description="Look at what is deployed after a closed hour or a range of them, and move it, with its checks.",
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
    description="Prepares closed hours that the schedule missed, whose rows or outcomes came late, that wait for a judge "
    "or for outcomes and whose time has come, or whose checks are missing.",
)
def prepare_missed_windows(
    context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]
) -> dg.RunRequest | dg.SkipReason:
    """Requests one range run over the oldest windows that are due."""
    end_dead_runs(context.instance)
    now = workspace.now()
    first_partition = HourWindow.parse(workspace.settings.start)
    unprepared = [
        u
        for u in unprepared_windows(workspace, min_agents=workspace.settings.training.min_agents)
        if first_partition <= u.window and u.window.end_at + GRACE <= now
    ]
    under_way = _find_windows_under_way(context.instance)
    due = [u for u in unprepared if u.is_due(now) and not any(a <= u.window <= b for a, b in under_way)]
    if not due:
        return dg.SkipReason(_describe_waiting(unprepared, now))
    if any(r.tags.get(MISSED_TAG) for r in context.instance.get_runs(filters=dg.RunsFilter(statuses=_UNFINISHED))):
        return dg.SkipReason("a run over missed windows is under way")
    ready: list[tuple[int, dg.RunRequest]] = []
    waiting: list[str] = []
    runs = list(_split_into_runs(due))
    while runs:
        requested = runs.pop(0)
        first, last = requested[0].window, requested[-1].window
        # Rows or outcomes that come later make another version of the same windows: requested at once, under another key.
        versions = digest([[str(u.window), u.version] for u in requested])[:12]
        request = f"{first}/{last}/{versions}"
        attempts = _count_attempts(context.instance, {REQUEST_KEY_TAG: request})
        if attempts.failures >= FAILURES_BEFORE_SPLIT and len(requested) > 1:
            # Something in it ends the whole run, such as a window that takes all memory: half by half, it is found.
            half = len(requested) // 2
            runs[:0] = [requested[:half], requested[half:]]
        elif attempts.again_at is not None and attempts.again_at > now:
            waiting.append(f"{first} (asked {attempts.runs} times, again after {attempts.again_at:%H:%M} UTC)")
        else:
            tags = {
                MISSED_TAG: "yes",
                REQUEST_KEY_TAG: request,
                ASKED_AT_TAG: now.isoformat(),
                RANGE_START: str(first),
                RANGE_END: str(last),
            }
            ready.append((attempts.runs, dg.RunRequest(run_key=f"missed/{request}/{attempts.runs}", tags=tags)))
    if ready:
        return min(ready, key=itemgetter(0))[1]  # what was never tried goes first, then the oldest windows
    return dg.SkipReason(f"waiting before windows are asked for again: {', '.join(waiting[:5])}; the last run says why")


@dg.sensor(
    name="train_when_ready",
    job=policy_job,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Trains when BABYLON_MIN_WINDOWS unused, judged windows are ready, up to ten checkpoints in a run.",
)
def train_when_ready(
    context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]
) -> dg.RunRequest | dg.SkipReason:
    """Requests one training run when a full batch is ready."""
    end_dead_runs(context.instance)
    now = workspace.now()
    release_foreign_windows(workspace)
    ledger, needed = workspace.ledger, workspace.settings.training.min_windows
    last_partition = HourWindow.containing(now).next(-1)  # the open hour is no partition yet
    due = ledger.next_partition(needed, batches=CHECKPOINTS_PER_RUN, up_to=last_partition)
    if due is None:
        return dg.SkipReason(
            f"{len(ledger.ready(up_to=last_partition))} of {needed} windows are ready; waiting for more"
        )
    latest = ledger.latest()
    step = 1 if latest is None else latest.step + 1
    tag = f"{ledger.lineage}/{step}"
    if _is_under_way(context.instance, {STEP_TAG: tag}):
        return dg.SkipReason(f"a run that trains {ledger.lineage}@{step} is under way")
    return _ask(context.instance, now, {STEP_TAG: tag}, f"{tag}/{due}", due)


@dg.sensor(
    name="evaluate_checkpoints",
    job=policy_job,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Evaluates the newest checkpoint whose evaluation is missing, because a run died or was stopped.",
)
def evaluate_checkpoints(
    context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]
) -> dg.RunRequest | dg.SkipReason:
    """Requests one evaluation, while no training is under way: that would evaluate its checkpoint itself."""
    end_dead_runs(context.instance)
    now = workspace.now()
    missing = unevaluated(workspace)
    if not missing:
        return dg.SkipReason("of every checkpoint is said what can be said")
    if any(
        r.tags.get(STEP_TAG) or r.tags.get(EVALUATION_TAG)
        for r in context.instance.get_runs(filters=dg.RunsFilter(statuses=_UNFINISHED))
    ):
        return dg.SkipReason("a run that trains or evaluates is under way")
    checkpoint = next(c for c in workspace.ledger.checkpoints() if c.step == missing[0])
    return _ask(
        context.instance,
        now,
        {EVALUATION_TAG: checkpoint.name},
        f"evaluate/{checkpoint.name}",
        HourWindow.parse(checkpoint.window_id),
        assets=["policy_evaluation"],
    )


@dg.sensor(
    name="watch_deployment",
    job=deployment_job,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks at closed, prepared hours of a rollout, and begins one for a checkpoint that passed its evaluation.",
)
def watch_deployment(
    context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]
) -> dg.RunRequest | dg.SkipReason:
    """Requests one range run over the hours that are due; while nothing is deployed or on trial, a few small queries."""
    end_dead_runs(context.instance)
    hours, why = find_due_hours(workspace, limit=WINDOWS_PER_RUN)
    if not hours:
        return dg.SkipReason(why)
    if any(r.tags.get(LOOK_TAG) for r in context.instance.get_runs(filters=dg.RunsFilter(statuses=_UNFINISHED))):
        return dg.SkipReason("a run that looks at the deployment is under way")
    first, last = hours[0], min(hours[-1], hours[0].next(WINDOWS_PER_RUN - 1))
    key = f"{workspace.settings.lineage}/{first}/{last}"
    return _ask(
        context.instance,
        workspace.now(),
        {LOOK_TAG: key, RANGE_START: str(first), RANGE_END: str(last)},
        f"look/{key}",
        None,
    )


JOBS = [windows_job, policy_job, deployment_job]
ASSETS_OF_JOBS: Final = {
    windows_job.name: WINDOW_ASSETS,
    policy_job.name: POLICY_ASSETS,
    deployment_job.name: [deployment],
}
SCHEDULES = [hourly_windows]
SENSORS = [prepare_missed_windows, train_when_ready, evaluate_checkpoints, watch_deployment]


def _split_into_runs(due: Sequence[UnpreparedWindow]) -> Iterator[list[UnpreparedWindow]]:
    """The windows of each run, oldest first: neighbours share a run of at most `WINDOWS_PER_RUN` hours."""
    for first, last in contiguous([u.window for u in due]):
        while first <= last:
            end = min(last, first.next(WINDOWS_PER_RUN - 1))
            if requested := [u for u in due if first <= u.window <= end]:
                yield requested
            first = end.next()


def _find_windows_under_way(instance: dg.DagsterInstance) -> list[tuple[HourWindow, HourWindow]]:
    """The hours, first and last, of each unfinished run that prepares windows."""
    runs = instance.get_runs(filters=dg.RunsFilter(job_name=windows_job.name, statuses=_UNFINISHED))
    spans = []
    for run in runs:
        one = run.tags.get("dagster/partition")
        first, last = run.tags.get(RANGE_START, one), run.tags.get(RANGE_END, one)
        if first and last:
            spans.append((HourWindow.parse(first), HourWindow.parse(last)))
    return spans


def _is_under_way(instance: dg.DagsterInstance, tags: dict[str, str]) -> bool:
    return bool(instance.get_runs(filters=dg.RunsFilter(tags=tags, statuses=_UNFINISHED), limit=1))


def _ask(
    instance: dg.DagsterInstance,
    now: datetime,
    tags: dict[str, str],
    key: str,
    partition: HourWindow | None,
    *,
    assets: Sequence[str] | None = None,
) -> dg.RunRequest | dg.SkipReason:
    """Ask for a run of one partition, or of the range that its tags name, unless its last attempt was too short a while ago."""
    attempts = _count_attempts(instance, tags)
    if attempts.again_at is not None and attempts.again_at > now:
        return dg.SkipReason(
            f"{key} was asked for {attempts.runs} times and is not done; it is asked for again after "
            f"{attempts.again_at:%H:%M} UTC; its last run says why"
        )
    return dg.RunRequest(
        run_key=f"{key}/{attempts.runs}",
        partition_key=None if partition is None else str(partition),
        asset_selection=None if assets is None else [dg.AssetKey(a) for a in assets],
        tags={**tags, ASKED_AT_TAG: now.isoformat()},
    )


class _Attempts(NamedTuple):
    """Runs that were asked for, how many of them failed, and when the next may be asked for; None: at once."""

    runs: int
    failures: int
    again_at: datetime | None


def _count_attempts(instance: dg.DagsterInstance, tags: dict[str, str]) -> _Attempts:
    runs = instance.get_runs(filters=dg.RunsFilter(tags=tags))
    asked = [datetime.fromisoformat(r.tags[ASKED_AT_TAG]) for r in runs if ASKED_AT_TAG in r.tags]
    again_at = max(asked) + backoff(len(runs), first=FIRST_WAIT, longest=LONGEST_WAIT) if asked else None
    return _Attempts(len(runs), sum(r.is_failure_or_canceled for r in runs), again_at)


def _describe_waiting(unprepared: Sequence[UnpreparedWindow], now: datetime) -> str:
    waiting = [u for u in unprepared if not u.is_due(now)]
    if not waiting:
        return "every recorded window with enough agents is judged, kept out by a check, or being prepared"
    counts = ", ".join(f"{n} {reason}" for reason, n in sorted(Counter(u.reason.value for u in waiting).items()))
    again_at = min(u.not_before for u in waiting if u.not_before is not None)
    return f"no window is due: {counts}; the next is tried after {again_at:%Y-%m-%d %H:%M} UTC"
