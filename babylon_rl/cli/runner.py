"""Run our jobs in this process, against the same Dagster instance that the webserver shows."""

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any, TextIO, cast

import dagster as dg

from babylon_rl.definitions import build_defs
from babylon_rl.defs.automation import RANGE_END, RANGE_START
from babylon_rl.defs.dead_runs import PROCESS_TAG, end_dead_runs, make_process_tag
from babylon_rl.defs.partitions import HOURLY
from babylon_rl.errors import BabylonRLError, ConfigError, DataError, TransientError
from babylon_rl.windows import HourWindow


@contextmanager
def open_runner() -> Iterator["Runner"]:
    """Open a runner on the instance of DAGSTER_HOME (`services.prepare_dagster` sets it), without Dagster's console log."""
    warnings.filterwarnings("ignore", category=dg.PreviewWarning)
    warnings.filterwarnings("ignore", category=dg.BetaWarning)
    logging.getLogger("dagster").setLevel(logging.ERROR)
    with dg.DagsterInstance.get() as instance:
        end_dead_runs(instance)
        yield Runner(instance)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What one run did."""

    run_id: str
    materializations: int
    failed_checks: int


class Runner:
    """Runs jobs and waits for them; everything they do is recorded in the instance."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance

    def materialize(self, job: str, first: HourWindow, last: HourWindow, **options: Any) -> RunSummary:
        """`materialize_range` on this instance."""
        result = materialize_range(self.instance, job, first, last, **options)
        return RunSummary(
            run_id=result.run_id,
            materializations=len(result.get_asset_materialization_events()),
            failed_checks=sum(not e.passed for e in result.get_asset_check_evaluations()),
        )


def materialize_range(
    instance: dg.DagsterInstance,
    job: str,
    first: HourWindow,
    last: HourWindow,
    *,
    assets: Sequence[str] | None = None,
    config: Mapping[str, Mapping[str, Any]] | None = None,
    resources: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
) -> dg.ExecuteInProcessResult:
    """One Dagster run over the windows `first` to `last`.

    Args:
        instance: Where the materializations are recorded.
        job: Name of a job of `defs/automation.py`.
        first: First window of the range.
        last: Last window, included.
        assets: Names of the job's assets to run, with their checks; None: all.
        config: Asset name → its config.
        resources: Plain objects instead of the resources of `definitions.py`.
        tags: Of the run, besides those of its range.

    Raises:
        ConfigError: A window or an asset is not among the partitions or the job's assets.
        BabylonRLError: The run failed; the message is the cause in one sentence.
    """
    for w in (first, last):
        if not HOURLY.has_partition_key(str(w)):
            raise ConfigError(
                f"window {str(w)!r} is no partition: partitions run from {HOURLY.get_first_partition_key()} to "
                f"{HOURLY.get_last_partition_key()} (closed hours); set BABYLON_START or choose another window"
            )
    definition = build_defs(**(resources or {})).resolve_job_def(job)
    known = {k.to_user_string() for k in definition.asset_layer.selected_asset_keys}
    if unknown := sorted(set(assets or ()) - known):
        raise ConfigError(f"asset {unknown[0]!r} is not in job {job!r}; expected some of {', '.join(sorted(known))}")
    with _hide_warnings(), redirect_stderr(cast(TextIO, _WithoutEventLogErrors(sys.stderr))):
        result = definition.execute_in_process(
            instance=instance,
            tags={**(tags or {}), RANGE_START: str(first), RANGE_END: str(last), PROCESS_TAG: make_process_tag()},
            asset_selection=None if assets is None else [dg.AssetKey(a) for a in assets],
            run_config={
                "ops": {name: {"config": dict(c)} for name, c in (config or {}).items()},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            raise_on_error=False,
        )
    if not result.success:
        raise _read_failure(result)
    return result


def _read_failure(result: dg.ExecuteInProcessResult) -> BabylonRLError:
    for event in result.get_step_failure_events():
        error = event.step_failure_data.error
        if error is not None:
            cause = error
            while cause.cause is not None:
                cause = cause.cause
            if cause.cls_name in ("OperationalError", "InterfaceError"):
                reason = cause.message.strip().splitlines()[0]
                return TransientError(
                    f"{event.step_key}: the database went away ({reason}); what was committed is kept; run the same "
                    "command again"
                )
            ours = event.step_failure_data.user_failure_data
            text = ours.description if ours else None
            return DataError(
                f"{event.step_key}: {text or cause.message.strip()} (run {result.run_id[:8]}; `babylon-rl up` shows its log)"
            )
    return DataError(f"run {result.run_id[:8]} failed before any step ran; `babylon-rl up` shows its log")


class _WithoutEventLogErrors:
    """stderr without what Dagster writes there, SQL and all, on an event that it cannot store; the error ends the run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Exception while writing logger call") else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _hide_warnings() -> Iterator[None]:
    """Hide the preview warnings that Dagster repeats whenever a definition is built."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
