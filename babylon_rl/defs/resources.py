"""Resources: each opens a plain object of the domain and closes it. Assets ask for the plain object."""

from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg

from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.judging.judge import Judge
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings


class WorkspaceResource(dg.ConfigurableResource[Workspace]):
    """Open the databases for one run, from the environment's settings."""

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[Workspace]:
        """Dispose of the pools even when the run fails."""
        with open_workspace(Settings.load()) as workspace:
            yield workspace


class JudgeResource(dg.ConfigurableResource[Judge]):
    """Open the judge that the settings name: RULER with a key, else the hindsight judge."""

    def create_resource(self, context: dg.InitResourceContext) -> Judge:
        """The judge opens its connection at the first call and `score` closes it."""
        from babylon_rl.judging.factory import open_judge  # RULER brings numpy and an HTTP client along

        del context
        return open_judge(Settings.load().judge)


class ProgressResource(dg.ConfigurableResource[Progress]):
    """Reports progress to nobody; a command passes its own callback instead."""

    def create_resource(self, context: dg.InitResourceContext) -> Progress:
        """Ignore progress."""
        return ignore_progress
