"""Resources: each opens a plain object of the domain and closes it. Assets ask for the plain object."""

from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg

from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.defs.dead_runs import tag_run
from babylon_rl.judging.judge import Judge
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl.store.judge_calls import PostgresCallLog


class WorkspaceResource(dg.ConfigurableResource[Workspace]):
    """Open the databases for one run, from the environment's settings."""

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[Workspace]:
        """Dispose of the pools even when the run fails; the run, if there is one, learns which process executes it."""
        if context.instance is not None and context.run is not None:
            tag_run(context.instance, context.run)
        with open_workspace(Settings.load()) as workspace:
            yield workspace


@dg.resource(required_resource_keys={"workspace"})
def judge_resource(context: dg.InitResourceContext) -> Judge:
    """The judge that the settings name: RULER with a key, else the hindsight judge.

    It logs its requests in the run's database, under the day's budget. Nothing is open yet and nothing is left to
    close: `score_groups` opens connections in the event loop that judges, and closes them there, also when the run fails.
    """
    from babylon_rl.judging.factory import open_judge  # RULER brings an HTTP client along

    workspace: Workspace = context.resources.workspace
    settings = workspace.settings.judge
    return open_judge(settings, call_log=PostgresCallLog(workspace.store.engine, budget_usd=settings.budget_usd))


class ProgressResource(dg.ConfigurableResource[Progress]):
    """Shows no progress; a command passes its own callback instead."""

    def create_resource(self, context: dg.InitResourceContext) -> Progress:
        """Ignore progress."""
        return ignore_progress
