from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster_factories import CountingJudge

from babylon_rl.cli.runner import Runner
from babylon_rl.common.progress import ignore_progress
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
