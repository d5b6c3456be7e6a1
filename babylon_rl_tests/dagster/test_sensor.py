"""The sensor requests each training once, under a run key of its own."""

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster_factories import FIRST, spawn_windows

from babylon_rl.cli.runner import Runner
from babylon_rl.defs.automation import RANGE_END, RANGE_START, STEP_TAG, prepare_missed_windows, train_when_ready
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl_tests.factories import insert_row


def tick(instance: dg.DagsterInstance, workspace: Workspace) -> dg.RunRequest | dg.SkipReason:
    context = dg.build_sensor_context(instance=instance, resources={"workspace": workspace})
    said = train_when_ready(context)
    assert isinstance(said, dg.RunRequest | dg.SkipReason)
    return said


@pytest.fixture
def three_ready(workspace: Workspace, runner: Runner, resources: dict[str, object]) -> None:
    spawn_windows(workspace, 3)
    runner.materialize("windows", FIRST, FIRST.next(2), resources=resources)


def test_it_waits_and_says_for_what(workspace: Workspace, runner: Runner, resources: dict[str, object]) -> None:
    spawn_windows(workspace, 2)
    runner.materialize("windows", FIRST, FIRST.next(), resources=resources)
    said = tick(runner.instance, workspace)
    assert isinstance(said, dg.SkipReason)
    assert said.skip_message == "2 of 3 windows are ready; waiting for more"


@pytest.mark.usefixtures("three_ready")
def test_a_repeated_tick_requests_the_same_run(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    first, second = tick(instance, workspace), tick(instance, workspace)
    assert isinstance(first, dg.RunRequest)
    assert isinstance(second, dg.RunRequest)
    assert first.partition_key == str(FIRST.next(2))
    assert first.run_key == second.run_key == "babylon-mmo/1/2025-01-15T02:00/0"


@pytest.mark.usefixtures("three_ready")
def test_a_run_that_failed_three_times_is_not_requested_again(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    for failures in range(3):
        said = tick(instance, workspace)
        assert isinstance(said, dg.RunRequest)
        assert said.run_key is not None
        assert said.run_key.endswith(f"/{failures}")
        dg_run = instance.create_run_for_job(
            _job(), tags={STEP_TAG: "babylon-mmo/1"}, status=dg.DagsterRunStatus.FAILURE
        )
        assert dg_run.is_failure_or_canceled
    said = tick(instance, workspace)
    assert isinstance(said, dg.SkipReason)
    assert "failed 3 times" in str(said.skip_message)


@pytest.mark.usefixtures("three_ready")
def test_while_a_run_is_under_way_nothing_is_asked(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    instance.create_run_for_job(_job(), tags={STEP_TAG: "babylon-mmo/1"}, status=dg.DagsterRunStatus.STARTED)
    said = tick(instance, workspace)
    assert isinstance(said, dg.SkipReason)
    assert "under way" in str(said.skip_message)


def missed(instance: dg.DagsterInstance, workspace: Workspace) -> dg.RunRequest | dg.SkipReason:
    said = prepare_missed_windows(dg.build_sensor_context(instance=instance, resources={"workspace": workspace}))
    assert isinstance(said, dg.RunRequest | dg.SkipReason)
    return said


def test_one_range_run_prepares_the_windows_a_schedule_missed(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    assert isinstance(missed(runner.instance, workspace), dg.SkipReason)
    spawn_windows(workspace, 3)
    spawn_windows(workspace, 1, agents=3, first=FIRST.next(3))
    asked = missed(runner.instance, workspace)
    assert isinstance(asked, dg.RunRequest)
    assert (asked.tags[RANGE_START], asked.tags[RANGE_END]) == (str(FIRST), str(FIRST.next(2)))
    again = missed(runner.instance, workspace)
    assert isinstance(again, dg.RunRequest)
    assert again.run_key == asked.run_key

    runner.materialize("windows", FIRST, FIRST.next(2), resources=resources)
    assert isinstance(missed(runner.instance, workspace), dg.SkipReason)
    assert isinstance(tick(runner.instance, workspace), dg.RunRequest)


def test_a_window_is_requested_each_time_rows_come_late(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    """Guards the key: Dagster launches one run per key, ever."""
    spawn_windows(workspace, 1)
    keys = []
    for nth in range(3):
        asked = missed(runner.instance, workspace)
        assert isinstance(asked, dg.RunRequest)
        keys.append(asked.run_key)
        runner.materialize("windows", FIRST, FIRST, resources=resources)
        assert isinstance(missed(runner.instance, workspace), dg.SkipReason)
        insert_row(workspace.game, "late", window=FIRST, tick=nth)
    assert len(set(keys)) == 3


def test_a_range_that_keeps_failing_does_not_hold_up_others(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    spawn_windows(workspace, 1)
    spawn_windows(workspace, 1, first=FIRST.next(24))
    for _ in range(3):
        asked = missed(instance, workspace)
        assert isinstance(asked, dg.RunRequest)
        assert asked.tags[RANGE_START] == str(FIRST)
        instance.create_run_for_job(_job(), tags=asked.tags, status=dg.DagsterRunStatus.FAILURE)
    asked = missed(instance, workspace)
    assert isinstance(asked, dg.RunRequest)
    assert asked.tags[RANGE_START] == str(FIRST.next(24))
    for _ in range(3):
        instance.create_run_for_job(_job(), tags=asked.tags, status=dg.DagsterRunStatus.FAILURE)
    said = missed(instance, workspace)
    assert isinstance(said, dg.SkipReason)
    assert f"preparing {FIRST}, {FIRST.next(24)} failed 3 times" in str(said.skip_message)


def test_a_window_that_cannot_be_judged_is_not_requested_forever(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    spawn_windows(workspace, 1)
    with workspace.game.begin() as conn:
        conn.execute(sa.text("DELETE FROM babylon_rl.price_facts"))
        conn.execute(sa.text("DELETE FROM babylon_rl.prediction_facts"))
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    assert isinstance(missed(runner.instance, workspace), dg.SkipReason)


def _job() -> dg.JobDefinition:
    @dg.op
    def nothing() -> None: ...

    @dg.job
    def some_job() -> None:
        nothing()

    return some_job
