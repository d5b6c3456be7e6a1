"""The sensor requests each training once, under a run key of its own."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster_factories import FIRST, CountingJudge, spawn_windows

from babylon_rl.cli.runner import Runner
from babylon_rl.database import tables as t
from babylon_rl.defs.automation import (
    RANGE_END,
    RANGE_START,
    STEP_TAG,
    evaluate_checkpoints,
    prepare_missed_windows,
    train_when_ready,
)
from babylon_rl.ingest.window_summary import refresh
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.eligibility import State
from babylon_rl.store.row_outcomes import find_row_outcome
from babylon_rl.types import RowReason, RowStatus
from babylon_rl.windows import HourWindow
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
def test_a_training_that_fails_is_asked_for_again_for_ever(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    """It used to end after three failures. The waits grow to an hour and stay there."""
    clock = Clock(workspace.now())
    watched = replace(workspace, now=clock)
    waits = []
    for attempt in range(9):
        asked_at, said = clock.now, tick(instance, watched)
        while isinstance(said, dg.SkipReason):
            assert f"was asked for {attempt} times" in str(said.skip_message)
            clock.now += timedelta(seconds=30)
            said = tick(instance, watched)
        waits.append((clock.now - asked_at) / timedelta(minutes=1))
        assert str(said.run_key).endswith(f"/{attempt}")
        instance.create_run_for_job(_job(), tags=said.tags, status=dg.DagsterRunStatus.FAILURE)
    assert waits == [0, 1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.usefixtures("three_ready")
def test_an_hour_that_is_still_open_is_never_requested(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    open_hour = replace(workspace, now=Clock(FIRST.next(2).start_at + timedelta(minutes=30)))
    said = tick(instance, open_hour)
    assert isinstance(said, dg.SkipReason)
    assert said.skip_message == "2 of 3 windows are ready; waiting for more"
    closed = replace(workspace, now=Clock(FIRST.next(3).start_at))
    assert isinstance(tick(instance, closed), dg.RunRequest)


def test_a_backlog_trains_ten_checkpoints_in_a_run(
    workspace: Workspace, runner: Runner, resources: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(workspace.settings.training.__dict__, "min_windows", 1)
    spawn_windows(workspace, 12, agents=5)
    runner.materialize("windows", FIRST, FIRST.next(11), resources=resources)
    said = tick(runner.instance, workspace)
    assert isinstance(said, dg.RunRequest)
    assert said.partition_key == str(FIRST.next(9))


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
    # The fourth has too few agents: its rows are read all the same, so that each has its outcome.
    assert (asked.tags[RANGE_START], asked.tags[RANGE_END]) == (str(FIRST), str(FIRST.next(3)))
    again = missed(runner.instance, workspace)
    assert isinstance(again, dg.RunRequest)
    assert again.run_key == asked.run_key

    runner.materialize("windows", FIRST, FIRST.next(3), resources=resources)
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
    """300 hours in a row: what fails in the first 200 must not keep the others from being prepared."""
    spawn_windows(workspace, 1, agents=5)
    refresh(workspace.game, workspace.store.engine, now=workspace.now())
    copy = sa.text(
        "INSERT INTO babylon_rl.window_summary (window_id, rows, agents, outcomes, fingerprint, changes) "
        "SELECT w, rows, agents, outcomes, fingerprint, 1 FROM babylon_rl.window_summary, unnest(CAST(:ids AS text[])) AS w"
    )
    with workspace.game.begin() as conn:
        conn.execute(copy, {"ids": [str(FIRST.next(i)) for i in range(1, 300)]})
    clock = Clock(workspace.now())
    watched = replace(workspace, now=clock)
    spans = []
    for _ in range(2):
        asked = missed(instance, watched)
        assert isinstance(asked, dg.RunRequest)
        spans.append((asked.tags[RANGE_START], asked.tags[RANGE_END]))
        instance.create_run_for_job(_job(), tags=asked.tags, status=dg.DagsterRunStatus.FAILURE)
    assert spans == [(str(FIRST), str(FIRST.next(199))), (str(FIRST.next(200)), str(FIRST.next(299)))]
    said = missed(instance, watched)
    assert isinstance(said, dg.SkipReason)
    assert f"{FIRST} (asked 1 times, again after" in str(said.skip_message)
    clock.now += timedelta(minutes=1)
    again = missed(instance, watched)
    assert isinstance(again, dg.RunRequest)
    assert (again.tags[RANGE_START], str(again.run_key).rpartition("/")[2]) == (str(FIRST), "1")


def test_a_range_that_always_dies_is_asked_for_half_by_half(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    """A window that takes the whole process with it leaves no reason behind: its siblings are prepared without it."""
    spawn_windows(workspace, 4, agents=5)
    deadly = FIRST.next(2)
    clock = Clock(workspace.now())
    spans = []
    while len(workspace.ledger.ready()) < 3:
        asked = missed(runner.instance, replace(workspace, now=clock))
        assert isinstance(asked, dg.RunRequest)
        first, last = (HourWindow.parse(asked.tags[name]) for name in (RANGE_START, RANGE_END))
        spans.append((first.start_at.hour, last.start_at.hour))
        if first <= deadly <= last:
            runner.instance.create_run_for_job(_job(), tags=asked.tags, status=dg.DagsterRunStatus.FAILURE)
        else:
            runner.materialize("windows", first, last, resources=resources, tags=asked.tags)
        clock.now += timedelta(minutes=5)
    assert spans == [(0, 3)] * 3 + [(0, 1)] + [(2, 3)] * 3 + [(2, 2), (3, 3)]


def test_outcomes_that_come_late_are_noticed_and_judged(
    workspace: Workspace, runner: Runner, resources: dict[str, object], judge: CountingJudge
) -> None:
    """The normal case of a live game: outcomes land after the schedule has run."""
    spawn_windows(workspace, 1)
    facts = take_facts(workspace)
    clock = Clock(FIRST.end_at + timedelta(minutes=11))
    watched = resources | {"workspace": replace(workspace, now=clock)}
    runner.materialize("windows", FIRST, FIRST, resources=watched)
    assert judge.asked == [str(FIRST)]  # it refused: nothing to judge by
    [state] = workspace.ledger.eligibility.states([FIRST])
    assert (state.state, state.failures) == (State.WAITING_FOR_OUTCOMES, 1)
    assert state.not_before == clock.now + timedelta(minutes=5)
    said = missed(runner.instance, replace(workspace, now=clock))
    assert isinstance(said, dg.SkipReason)
    assert "1 waiting_for_outcomes; the next is tried after 2025-01-15 01:16 UTC" in str(said.skip_message)

    clock.now += timedelta(minutes=5)
    assert isinstance(missed(runner.instance, replace(workspace, now=clock)), dg.RunRequest)
    runner.materialize("windows", FIRST, FIRST, resources=watched)
    [state] = workspace.ledger.eligibility.states([FIRST])
    assert (state.failures, state.not_before) == (2, clock.now + timedelta(minutes=10))

    give_facts(workspace, facts)
    clock.now += timedelta(minutes=10)
    assert isinstance(missed(runner.instance, replace(workspace, now=clock)), dg.RunRequest)
    runner.materialize("windows", FIRST, FIRST, resources=watched)
    [state] = workspace.ledger.eligibility.states([FIRST])
    assert (state.state, state.reason, state.not_before) == (State.JUDGED, None, None)


def test_a_window_whose_checks_never_ran_is_requested(
    workspace: Workspace, runner: Runner, resources: dict[str, object], judge: CountingJudge
) -> None:
    """A run killed between the judgments and their checks left them neither ready nor asked for."""
    spawn_windows(workspace, 1)
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    with workspace.store.engine.begin() as conn:
        conn.execute(sa.text("DELETE FROM babylon_rl.check_results"))
    assert isinstance(missed(runner.instance, workspace), dg.RunRequest)
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    assert isinstance(missed(runner.instance, workspace), dg.SkipReason)
    assert [r.window_id for r in workspace.ledger.ready()] == [str(FIRST)]
    assert judge.asked == [str(FIRST)], "nothing is judged again"


def test_a_window_that_can_never_be_grouped_starves_nobody(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    """Five agents are recorded, four usable."""
    spawn_windows(workspace, 1, agents=4)
    insert_row(workspace.game, "without-calls", window=FIRST, steps_json=[])
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    [state] = workspace.ledger.eligibility.states([FIRST])
    assert state.state == State.TOO_FEW_AGENTS
    far = FIRST.next(30)
    spawn_windows(workspace, 1, first=far)
    asked = missed(runner.instance, workspace)
    assert isinstance(asked, dg.RunRequest)
    assert asked.tags[RANGE_START] == str(far)


def test_a_late_row_of_a_trained_window_is_read_and_not_judged(
    workspace: Workspace, runner: Runner, resources: dict[str, object], judge: CountingJudge
) -> None:
    """Nothing vanishes: it used to end in no outcome at all, because the window is never prepared for training again."""
    spawn_windows(workspace, 1)
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    batch = workspace.ledger.plan(FIRST, 1, learning_rate=None)
    assert batch is not None
    workspace.ledger.record(batch, trainer="t", base_model="b", path="p", manifest={}, metrics={})
    row = insert_row(workspace.game, "late", window=FIRST)
    asked = missed(runner.instance, workspace)
    assert isinstance(asked, dg.RunRequest)
    tags = {"dagster/sensor_name": "prepare_missed_windows"}
    runner.materialize("windows", FIRST, FIRST, resources=resources, tags=tags)
    assert isinstance(missed(runner.instance, workspace), dg.SkipReason)
    outcome = find_row_outcome(workspace.store.engine, row["id"])
    assert outcome is not None
    assert (outcome.status, outcome.reason) == (RowStatus.GROUPED, RowReason.HAS_TURN)
    assert judge.asked == [str(FIRST)], "a judgment that nothing will learn from is not paid for"
    assert workspace.ledger.stale() == [str(FIRST)]


def test_an_evaluation_that_a_killed_run_left_out_is_asked_for(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    spawn_windows(workspace, 1)
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    batch = workspace.ledger.plan(FIRST, 1, learning_rate=None)
    assert batch is not None
    workspace.ledger.record(batch, trainer="cpu", base_model="b", path="p", manifest={}, metrics={})

    def ask(at: datetime) -> dg.RunRequest | dg.SkipReason:
        watched = {"workspace": replace(workspace, now=lambda: at)}
        said = evaluate_checkpoints(dg.build_sensor_context(instance=runner.instance, resources=watched))
        assert isinstance(said, dg.RunRequest | dg.SkipReason)
        return said

    now = workspace.now()
    asked = ask(now)
    assert isinstance(asked, dg.RunRequest)
    assert (asked.partition_key, asked.run_key) == (str(FIRST), "evaluate/babylon-mmo@1/0")
    assert asked.asset_selection == [dg.AssetKey("policy_evaluation")]
    training = runner.instance.create_run_for_job(
        _job(), tags={STEP_TAG: "babylon-mmo/2"}, status=dg.DagsterRunStatus.STARTED
    )
    assert "under way" in str(ask(now).skip_message)  # it evaluates its own checkpoint, and runs beside nothing
    runner.instance.report_run_failed(training)
    runner.instance.create_run_for_job(_job(), tags=asked.tags, status=dg.DagsterRunStatus.FAILURE)
    assert "again after" in str(ask(now).skip_message)
    again = ask(now + timedelta(minutes=1))
    assert isinstance(again, dg.RunRequest)
    assert again.run_key == "evaluate/babylon-mmo@1/1"


def test_windows_of_a_run_that_is_under_way_are_left_to_it(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    """The schedule's run, or somebody's by hand."""
    spawn_windows(workspace, 1)
    tags = {"dagster/partition": str(FIRST)}
    instance.create_run_for_job(windows_run(), tags=tags, status=dg.DagsterRunStatus.STARTED)
    assert isinstance(missed(instance, workspace), dg.SkipReason)
    spawn_windows(workspace, 1, first=FIRST.next(48))
    asked = missed(instance, workspace)
    assert isinstance(asked, dg.RunRequest)
    assert asked.tags[RANGE_START] == str(FIRST.next(48))


def test_the_schedule_has_its_ten_minutes(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    spawn_windows(workspace, 1)
    for minutes, kind in ((9, dg.SkipReason), (10, dg.RunRequest)):
        clock = Clock(FIRST.end_at + timedelta(minutes=minutes))
        assert isinstance(missed(instance, replace(workspace, now=clock)), kind)


@dataclass
class Clock:
    """A clock that stands until it is moved."""

    now: datetime

    def __call__(self) -> datetime:
        return self.now


def take_facts(workspace: Workspace) -> list[tuple[object, ...]]:
    """Take the facts of the world away, so that no outcomes can be computed."""
    with workspace.game.begin() as conn:
        conn.execute(sa.text("DELETE FROM babylon_rl.prediction_facts"))
        return [tuple(r) for r in conn.execute(sa.text("DELETE FROM babylon_rl.price_facts RETURNING *"))]


def give_facts(workspace: Workspace, facts: list[tuple[object, ...]]) -> None:
    with workspace.game.begin() as conn:
        rows = [dict(zip(("ticker", "at", "price"), f, strict=True)) for f in facts]
        conn.execute(sa.insert(t.price_facts), rows)


def windows_run() -> dg.JobDefinition:
    @dg.op
    def nothing() -> None: ...

    @dg.job(name="windows")
    def windows() -> None:
        nothing()

    return windows


def _job() -> dg.JobDefinition:
    @dg.op
    def nothing() -> None: ...

    @dg.job
    def some_job() -> None:
        nothing()

    return some_job
