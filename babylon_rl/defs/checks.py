"""Dagster's asset checks, made of the registry in `pipeline/checks.py`: one result per window, in any run.

Those of `deployment` (`pipeline/deployment_checks.py`) tell people, and keep no window from training.

In a range run a plain `AssetCheckResult` writes one row without a partition, which counts for every window. So
a check here yields one `AssetCheckEvaluation` per partition, aimed at that partition's materialization
(without the target Dagster takes the check for not run), and stores the result, which decides whether the window trains.
The evaluation does not block the run, but the spec blocks automation: one bad window stops only itself.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)

from babylon_rl.defs.assets import contextualized_groups, deployment, ruler_scores
from babylon_rl.defs.failures import dagster_failures
from babylon_rl.pipeline import checks
from babylon_rl.pipeline.deployment_checks import DEPLOYMENT_CHECKS, DeploymentCheck
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.windows import HourWindow

RunCheck = Callable[[list[HourWindow], Workspace], Mapping[HourWindow, checks.CheckedWindow]]


def asset_check(
    asset: dg.AssetsDefinition, name: str, description: str, run: RunCheck, *, blocking: bool
) -> dg.AssetChecksDefinition:
    """The asset check of one declared check; `run` gives a result for each window of a run."""
    spec = dg.AssetCheckSpec(
        name, asset=asset.key, partitions_def=asset.partitions_def, blocking=blocking, description=description
    )

    @dg.multi_asset_check(specs=[spec], name=f"check_{name}")
    def run_check(
        context: dg.AssetCheckExecutionContext, workspace: dg.ResourceParam[Workspace]
    ) -> Iterator[dg.Output[None] | dg.AssetCheckEvaluation]:
        keys = list(context.partition_keys)
        yield dg.Output(None, output_name=next(iter(context.op_execution_context.selected_output_names)))
        latest = context.instance.get_latest_storage_id_by_partition(
            asset.key, dg.DagsterEventType.ASSET_MATERIALIZATION, set(keys)
        )
        with dagster_failures():
            for window, checked in run(HourWindow.parse_all(keys), workspace).items():
                key, result = str(window), checked.result
                target = None
                if key in latest:
                    target = AssetCheckEvaluationTargetMaterializationData(
                        storage_id=latest[key], run_id=context.run.run_id, timestamp=0.0
                    )
                yield dg.AssetCheckEvaluation(
                    asset_key=asset.key,
                    check_name=name,
                    passed=result.passed,
                    partition=key,
                    metadata={k: _metadata_value(v) for k, v in result.facts.items()},
                    # A window that waits to be judged has not failed: it is tried again, and its facts say when.
                    severity=dg.AssetCheckSeverity.ERROR if checked.kept else dg.AssetCheckSeverity.WARN,
                    blocking=False,
                    target_materialization_data=target,
                )

    return run_check


def _check_window(check: checks.Check) -> dg.AssetChecksDefinition:
    run = partial(checks.run_check, check)
    return asset_check(_ASSETS[check.asset], check.name, check.description, run, blocking=True)


def _check_deployment(check: DeploymentCheck) -> dg.AssetChecksDefinition:
    def run(windows: list[HourWindow], workspace: Workspace) -> dict[HourWindow, checks.CheckedWindow]:
        return {w: checks.CheckedWindow(result=check(w, workspace), kept=True) for w in windows}

    return asset_check(deployment, check.__name__, (check.__doc__ or "").strip(), run, blocking=False)


def _metadata_value(value: object) -> dg.MetadataValue:
    """Numbers stay numbers (Dagster charts them); lists and objects show as JSON."""
    match value:
        case None:
            return dg.MetadataValue.null()
        case bool():
            return dg.MetadataValue.bool(value)
        case int():
            return dg.MetadataValue.int(value)
        case float():
            return dg.MetadataValue.float(value)
        case str():
            return dg.MetadataValue.text(value)
        case list() | tuple() | dict():
            return dg.MetadataValue.json(value)
        case _:
            return dg.MetadataValue.text(str(value))


_ASSETS = {"contextualized_groups": contextualized_groups, "ruler_scores": ruler_scores}
WINDOW_CHECKS = [_check_window(check) for check in checks.CHECKS]
CHECKS = [*WINDOW_CHECKS, *map(_check_deployment, DEPLOYMENT_CHECKS)]
