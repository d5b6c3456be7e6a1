"""Dagster's asset checks, made of the registry in `pipeline/checks.py`: one result per window, in any run.

In a range run a plain `AssetCheckResult` writes one row without a partition, which counts for every window. So
a check here yields one `AssetCheckEvaluation` per partition, aimed at that partition's materialization
(without the target Dagster takes the check for not run), and stores the result, which decides whether the window trains.
The evaluation does not block the run, but the spec blocks automation: one bad window stops only itself.
"""

from collections.abc import Iterator

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)

from babylon_rl.defs.assets import contextualized_groups, ruler_scores
from babylon_rl.defs.failures import dagster_failures
from babylon_rl.pipeline import checks
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.windows import HourWindow


def asset_check(check: checks.Check, asset: dg.AssetsDefinition) -> dg.AssetChecksDefinition:
    """The asset check of one declared check."""
    spec = dg.AssetCheckSpec(
        check.name, asset=asset.key, partitions_def=asset.partitions_def, blocking=True, description=check.description
    )

    @dg.multi_asset_check(specs=[spec], name=f"check_{check.name}")
    def run_check(
        context: dg.AssetCheckExecutionContext, workspace: dg.ResourceParam[Workspace]
    ) -> Iterator[dg.Output[None] | dg.AssetCheckEvaluation]:
        keys = list(context.partition_keys)
        yield dg.Output(None, output_name=next(iter(context.op_execution_context.selected_output_names)))
        latest = context.instance.get_latest_storage_id_by_partition(
            asset.key, dg.DagsterEventType.ASSET_MATERIALIZATION, set(keys)
        )
        with dagster_failures():
            for window, checked in checks.run_check(check, HourWindow.parse_all(keys), workspace).items():
                key, result = str(window), checked.result
                target = None
                if key in latest:
                    target = AssetCheckEvaluationTargetMaterializationData(
                        storage_id=latest[key], run_id=context.run.run_id, timestamp=0.0
                    )
                yield dg.AssetCheckEvaluation(
                    asset_key=asset.key,
                    check_name=check.name,
                    passed=result.passed,
                    partition=key,
                    metadata={k: _metadata_value(v) for k, v in result.facts.items()},
                    # A window that waits to be judged has not failed: it is tried again, and its facts say when.
                    severity=dg.AssetCheckSeverity.ERROR if checked.kept else dg.AssetCheckSeverity.WARN,
                    blocking=False,
                    target_materialization_data=target,
                )

    return run_check


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
CHECKS = [asset_check(check, _ASSETS[check.asset]) for check in checks.CHECKS]
