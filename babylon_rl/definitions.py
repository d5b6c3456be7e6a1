"""Composes the code location that `workspace.yaml` names. Loading it needs no GPU library and no network."""

from collections.abc import Mapping

import dagster as dg

from babylon_rl.defs.assets import ASSETS
from babylon_rl.defs.automation import JOBS, SCHEDULES, SENSORS
from babylon_rl.defs.checks import CHECKS
from babylon_rl.defs.resources import ProgressResource, WorkspaceResource, judge_resource


def build_defs(**overrides: object) -> dg.Definitions:
    """All definitions; an override replaces a resource by a plain object or another resource."""
    resources: Mapping[str, object] = {
        "workspace": WorkspaceResource(),
        "judge": judge_resource,
        "progress": ProgressResource(),
        **overrides,
    }
    return dg.Definitions(
        assets=ASSETS,
        asset_checks=CHECKS,
        jobs=JOBS,
        schedules=SCHEDULES,
        sensors=SENSORS,
        resources=resources,
        executor=dg.in_process_executor,
    )


defs = build_defs()
