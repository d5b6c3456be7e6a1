"""A Dagster run of `deployment` in a process of its own, which kills itself at one commit; run by test_deployment."""

import dagster as dg

from babylon_rl.cli.runner import materialize_range
from babylon_rl.pipeline.workspace import open_workspace
from babylon_rl.settings import Settings
from babylon_rl.windows import HourWindow
from babylon_rl_tests.kill_at_commit import kill_at_commit


def run(home: str, url: str, window: str, point: str) -> None:
    """Look at one hour, and die at the first passage of `point`."""
    settings = Settings.load(BABYLON_HOME=home, DATABASE_URL=url, BABYLON_CANARY_WINDOWS="1")
    hour = HourWindow.parse(window)
    with dg.DagsterInstance.ephemeral() as instance, open_workspace(settings) as workspace:
        kill_at_commit(workspace.store.engine, point, 1)
        materialize_range(instance, "deploy", hour, hour, resources={"workspace": workspace})
