"""Runs whose process was killed are ended; runs of living processes are not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.test_utils import create_run_for_test
from dagster_factories import FIRST

from babylon_rl.cli.services import dagster_home
from babylon_rl.defs.dead_runs import PROCESS_TAG, end_dead_runs, make_process_tag, tag_run
from babylon_rl.settings import Settings
from babylon_rl.simulator.spawn import AgentLineup, spawn

STARTED = dg.DagsterRunStatus.STARTED
DEAD = make_process_tag().replace(f"/{os.getpid()}/", "/1/")  # process 1 has another start


def status_of(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_a_run_killed_in_the_middle_is_ended(
    settings: Settings,
    environment: dict[str, str],
    engine: sa.Engine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    windows = [FIRST.next(i) for i in range(12)]
    spawn(engine, windows, AgentLineup(learners=6, policy="habits", stand_in=True), seed=1)
    main = [sys.executable, "-m", "babylon_rl.cli.main"]
    subprocess.run([*main, "env"], env=environment, check=True, capture_output=True)
    monkeypatch.setenv("BABYLON_DAGSTER_URL", environment["BABYLON_DAGSTER_URL"])
    log = tmp_path / "log"
    with dg.DagsterInstance.from_config(str(dagster_home(settings))) as instance, log.open("w") as out:
        command = [*main, "materialize", "--from", str(windows[0]), "--to", str(windows[-1])]
        with subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
            end = time.monotonic() + 60
            while not (runs := instance.get_runs(filters=dg.RunsFilter(statuses=[STARTED]))):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.02)
            process.send_signal(signal.SIGSTOP)
            assert end_dead_runs(instance, untagged=True) == [], "it is alive"
            process.kill()
        assert status_of(instance, runs[0].run_id) == STARTED

        assert end_dead_runs(instance) == [runs[0].run_id]
        assert status_of(instance, runs[0].run_id) == dg.DagsterRunStatus.FAILURE
        assert end_dead_runs(instance) == []


def test_a_run_knows_the_process_that_executes_it(instance: dg.DagsterInstance) -> None:
    run = create_run_for_test(instance, status=STARTED, tags={PROCESS_TAG: DEAD})
    tag_run(instance, run)
    tagged = instance.get_run_by_id(run.run_id)
    assert tagged is not None
    assert tagged.tags[PROCESS_TAG] == make_process_tag()
    assert end_dead_runs(instance, untagged=True) == []


@pytest.mark.parametrize("status", [STARTED, dg.DagsterRunStatus.NOT_STARTED])
def test_a_run_whose_process_is_gone_is_ended(instance: dg.DagsterInstance, status: dg.DagsterRunStatus) -> None:
    run = create_run_for_test(instance, status=status, tags={PROCESS_TAG: DEAD})
    assert end_dead_runs(instance) == [run.run_id]
    assert status_of(instance, run.run_id) == dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize("status", [STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING])
def test_a_run_without_a_process_ends_where_none_is_ours(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    run = create_run_for_test(instance, status=status)
    assert end_dead_runs(instance) == []
    assert end_dead_runs(instance, untagged=True) == [run.run_id]


def test_a_run_again_is_not_ended_for_its_parents_process(instance: dg.DagsterInstance) -> None:
    """Dagster copies the tags of the run that is run again: they name a process that is gone."""
    parent = create_run_for_test(instance, status=dg.DagsterRunStatus.FAILURE, tags={PROCESS_TAG: DEAD})
    create_run_for_test(
        instance, status=STARTED, tags={PROCESS_TAG: DEAD}, parent_run_id=parent.run_id, root_run_id=parent.run_id
    )
    assert end_dead_runs(instance) == []


@pytest.mark.parametrize(
    ("status", "tags"),
    [
        (dg.DagsterRunStatus.NOT_STARTED, {}),
        (STARTED, {PROCESS_TAG: f"elsewhere/{DEAD.split('/', 1)[1]}"}),
        (STARTED, {PROCESS_TAG: make_process_tag()}),
        (dg.DagsterRunStatus.SUCCESS, {PROCESS_TAG: DEAD}),
    ],
    ids=["not started, by no process", "another machine", "alive", "finished"],
)
def test_other_runs_are_left_alone(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus, tags: dict[str, str]
) -> None:
    create_run_for_test(instance, status=status, tags=tags)
    assert end_dead_runs(instance, untagged=True) == []
