import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster_factories import CountingJudge

from babylon_rl.cli.runner import Runner
from babylon_rl.common.progress import ignore_progress
from babylon_rl.database.embedded import stop_server
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings


@pytest.fixture
def workspace(settings: Settings) -> Iterator[Workspace]:
    with open_workspace(settings) as w:
        yield w


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    home = tmp_path / "dagster"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as i:
        yield i


@pytest.fixture
def runner(instance: dg.DagsterInstance) -> Runner:
    return Runner(instance)


@pytest.fixture
def judge() -> CountingJudge:
    return CountingJudge()


@pytest.fixture
def resources(workspace: Workspace, judge: CountingJudge) -> dict[str, object]:
    return {"workspace": workspace, "judge": judge, "progress": ignore_progress}


@pytest.fixture
def soak_home() -> Iterator[Path]:
    """A BABYLON_HOME with a database server of its own, which a test may kill."""
    # Not below pytest's own directory: it is not readable for the system user that PostgreSQL runs as under root.
    home = Path(tempfile.mkdtemp(prefix="babylon-soak-"))
    yield home
    stop_server(home)
    shutil.rmtree(home, ignore_errors=True)
