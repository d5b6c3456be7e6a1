"""`deployment` through Dagster: the asset, its sensor, its checks, and SIGKILL at each move."""

import base64
import re
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster_factories import open_forkserver

from babylon_rl.cli.runner import Runner
from babylon_rl.defs.automation import LOOK_TAG, RANGE_END, RANGE_START, watch_deployment
from babylon_rl.deployment.comparison import BURN_IN_WINDOWS
from babylon_rl.deployment.stages import Arm, Stage
from babylon_rl.pipeline import operate
from babylon_rl.pipeline.deployment_checks import live_agents_are_answered_by_the_deployed_policy
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.served_calls import write_calls
from babylon_rl.types import Json
from babylon_rl.windows import HourWindow
from babylon_rl_tests.dagster import killed_deployment
from babylon_rl_tests.live_game import AGENTS, FIRST, LiveGame, name_policy

ANSWERED, NOT_WORSE = "live_agents_are_answered_by_the_deployed_policy", "candidate_is_not_worse"


@pytest.fixture
def game(workspace: Workspace) -> LiveGame:
    """Ten agents that have played one hour with the base, and a checkpoint that passed its evaluation."""
    game = LiveGame(replace(workspace, settings=workspace.settings.changed(deployment={"canary_windows": 1})))
    game.add_checkpoint(1)
    game.play_next()
    return game


def materialize(runner: Runner, game: LiveGame, first: HourWindow, last: HourWindow | None = None) -> None:
    runner.materialize("deploy", first, last or first, resources={"workspace": game.workspace})


def read_metadata(runner: Runner, window: HourWindow) -> Json:
    records = runner.instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey("deployment"), asset_partitions=[str(window)]), limit=1
    )
    materialization = records.records[0].asset_materialization
    assert materialization is not None
    return {name: value.value for name, value in materialization.metadata.items()}


def read_check(runner: Runner, name: str) -> tuple[bool, Json]:
    """Whether the newest result of a check passed, and its facts."""
    [record] = runner.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey("deployment"), name), limit=1
    )
    assert record.event is not None
    evaluation = record.event.asset_check_evaluation
    assert evaluation is not None
    return evaluation.passed, {k: v.value for k, v in evaluation.metadata.items()}


def test_the_asset_says_why_and_draws_the_interval(runner: Runner, game: LiveGame) -> None:
    game.gain_usd = 100.0
    materialize(runner, game, FIRST)
    shown = read_metadata(runner, FIRST)
    assert (shown["move"], shown["stage"], shown["candidate"]) == ("canary", "canary", "babylon-mmo@1")
    assert shown["reason"].startswith("passed its evaluation")
    compared = game.play_next()
    materialize(runner, game, compared)
    assert read_metadata(runner, compared)["interval"] == (
        "no interval yet: too few windows or agents have been compared"
    )
    last = game.play_until_decided().window
    materialize(runner, game, last.next(-1), last)
    shown = read_metadata(runner, last)
    assert (shown["moved"], shown["decision"], shown["incumbent"]) == (False, "promote", "babylon-mmo@1")
    assert shown["difference_lo_usd"] > 80
    svg = base64.b64decode(re.findall(r"base64,([^)]*)\)", shown["interval"])[0]).decode()
    assert "windows of the rollout" in svg
    assert str(last) in svg
    assert read_metadata(runner, last.next(-1))["decision"] == "hold"
    assert read_check(runner, NOT_WORSE)[0]
    assert read_check(runner, ANSWERED) == (
        True,
        {
            "uses_gateway": True,
            "calls": 30,
            "agents": 10,
            "bypassed_the_gateway": 0,
            "answered_out_of_service": 0,
        },
    )


def test_a_candidate_that_is_worse_fails_its_check(runner: Runner, game: LiveGame) -> None:
    game.gain_usd = -100.0
    game.look(FIRST)
    while game.deployed.candidate is not None:
        hour = game.play_next()
        materialize(runner, game, hour)
    passed, facts = read_check(runner, NOT_WORSE)
    assert (passed, facts["decision"], facts["rollout"]) == (False, "roll_back", "babylon-mmo@1#1")
    assert facts["reason"] == read_metadata(runner, hour)["reason"]


# ── the check of who answered ──────────────────────────────────────────────────────────────────────


def test_where_nobody_asks_the_gateway_the_check_says_so(runner: Runner, game: LiveGame) -> None:
    hour = game.play_next(bypass=AGENTS)
    materialize(runner, game, hour)
    assert read_check(runner, ANSWERED) == (True, {"uses_gateway": False})


def test_all_agents_may_not_bypass_what_is_deployed(runner: Runner, game: LiveGame) -> None:
    """The gateway was down for an hour: that every agent bypassed it is worse than that one did."""
    operate.deploy(game.workspace, 1, at_once=True)
    hour = HourWindow.containing(datetime.now(UTC)).next()
    game.prepare(hour)
    later = replace(game.workspace, now=lambda: hour.end_at + timedelta(minutes=10))
    found = live_agents_are_answered_by_the_deployed_policy(hour, later)
    assert (found.passed, found.facts["uses_gateway"], found.facts["bypassed_the_gateway"]) == (False, False, 10)


def test_agents_of_another_lineage_bypass_nothing(game: LiveGame) -> None:
    """Two lineages, each with a gateway of its own, in one game."""
    theirs = [f"theirs-{i}" for i in range(3)]
    hour = game.play_next()
    game.serve(game.deployed, hour, theirs, lineage="other")
    played = [game.make_trajectory(game.deployed, hour, a) for a in AGENTS]
    played += [replace(game.make_trajectory(game.deployed, hour, a), turns=(name_policy("other@0"),)) for a in theirs]
    game.workspace.store.write_ingest(hour, played, [], rows=len(played))
    for lineage in ("babylon-mmo", "other"):
        settings = game.workspace.settings.model_copy(update={"lineage": lineage})
        found = live_agents_are_answered_by_the_deployed_policy(hour, replace(game.workspace, settings=settings))
        assert found.facts.get("bypassing_agents") is None


def test_agents_that_bypass_the_gateway_are_named(runner: Runner, game: LiveGame) -> None:
    hour = game.play_next(bypass=AGENTS[:1])
    game.prepare(
        hour, but={AGENTS[1]: {"turns": (name_policy("gpt-4o"),)}, AGENTS[2]: {"turns": (name_policy(None),) * 5}}
    )
    materialize(runner, game, hour)
    passed, facts = read_check(runner, ANSWERED)
    assert (passed, facts["bypassed_the_gateway"]) == (False, 3)
    assert facts["bypassing_agents"] == {
        AGENTS[0]: "no call of the hour names it",
        AGENTS[1]: "its rows name gpt-4o, and the gateway answered as babylon-mmo@0",
        AGENTS[2]: "it bypassed the gateway in part: 3 calls for 5 decisions",
    }


@pytest.mark.parametrize(("seconds", "passed"), [(5, True), (15, False)])
def test_an_answer_by_what_was_out_of_service_fails(runner: Runner, game: LiveGame, seconds: int, passed: bool) -> None:
    """A gateway follows a move within seconds; one that still answers by the old one later is found."""
    game.look(FIRST)
    trial = game.deployed
    operate.roll_back(game.workspace)
    hour = game.play_next()
    agent = next(a for a in AGENTS if game.arm_of(trial, a) is Arm.CANDIDATE)
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    game.prepare(hour, but={agent: {"turns": ()}})
    write_calls(game.workspace.store.engine, [game.make_call(trial, hour, agent, asked_at=at)])
    materialize(runner, game, hour)
    found, facts = read_check(runner, ANSWERED)
    assert found is passed
    named = facts.get("agents_answered_out_of_service", {})
    assert named == ({} if passed else {agent: f"babylon-mmo@1 at {at:%H:%M:%S} UTC"})


# ── the sensor ─────────────────────────────────────────────────────────────────────────────────────


def tick(instance: dg.DagsterInstance, workspace: Workspace) -> dg.RunRequest | dg.SkipReason:
    said = watch_deployment(dg.build_sensor_context(instance=instance, resources={"workspace": workspace}))
    assert isinstance(said, dg.RunRequest | dg.SkipReason)
    return said


def launch(runner: Runner, game: LiveGame, request: dg.RunRequest) -> None:
    first, last = (HourWindow.parse(request.tags[t]) for t in (RANGE_START, RANGE_END))
    tags = {k: v for k, v in request.tags.items() if not k.startswith("dagster/")}
    runner.materialize("deploy", first, last, resources={"workspace": game.workspace}, tags=tags)


def test_each_prepared_hour_is_looked_at_by_itself(runner: Runner, game: LiveGame) -> None:
    def ask() -> dg.RunRequest:
        said = tick(runner.instance, game.workspace)
        assert isinstance(said, dg.RunRequest), said
        return said

    launch(runner, game, ask())
    assert [m[0] for m in game.moves] == ["canary"]
    waiting = tick(runner.instance, game.workspace)
    assert isinstance(waiting, dg.SkipReason)
    assert waiting.skip_message == "babylon-mmo@1 is on trial (canary); no newer hour of it has closed"
    hours = [game.play_next() for _ in range(3)]
    request = ask()
    assert (request.tags[RANGE_START], request.tags[RANGE_END]) == (str(hours[0]), str(hours[-1]))
    launch(runner, game, request)
    assert [look.window_id for look in game.looks] == [str(w) for w in hours]
    assert isinstance(tick(runner.instance, game.workspace), dg.SkipReason)


def test_without_rollout_or_new_checkpoint_nothing_runs(instance: dg.DagsterInstance, workspace: Workspace) -> None:
    game = LiveGame(workspace)
    for _ in range(3):
        game.play_next()
    said = tick(instance, workspace)
    assert isinstance(said, dg.SkipReason)
    assert said.skip_message == "babylon-mmo@0 answers everybody; there is no newer checkpoint that was not tried"


def test_a_look_that_fails_is_asked_for_after_longer_waits(instance: dg.DagsterInstance, game: LiveGame) -> None:
    asked = tick(instance, game.workspace)
    assert isinstance(asked, dg.RunRequest)
    assert asked.run_key == f"look/babylon-mmo/{FIRST}/{FIRST}/0"
    run = instance.create_run_for_job(_job(), tags=asked.tags, status=dg.DagsterRunStatus.STARTED)
    assert "under way" in str(tick(instance, game.workspace))
    instance.report_run_failed(run)
    assert "again after" in str(tick(instance, game.workspace))
    later = replace(game.workspace, now=lambda: datetime.now(UTC) + timedelta(minutes=1))
    again = tick(instance, later)
    assert isinstance(again, dg.RunRequest)
    assert again.run_key == f"look/babylon-mmo/{FIRST}/{FIRST}/1"
    assert set(again.tags) >= {LOOK_TAG, RANGE_START, RANGE_END}


# ── killed ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_kill_at_any_move_leaves_one_state_and_no_second_move(game: LiveGame) -> None:
    """Killed before the commit of each move and after it, run again each time; and at an hour that only holds."""
    database = game.workspace.settings.database
    assert database.url is not None
    home, url = str(game.workspace.settings.home), database.url.get_secret_value()

    def kill(window: HourWindow, point: str) -> int | None:
        process = open_forkserver().Process(target=killed_deployment.run, args=(home, url, str(window), point))
        process.start()
        process.join(timeout=60)
        return process.exitcode

    def die_twice(window: HourWindow, table: str) -> None:
        before, looks = game.moves, len(game.looks)
        assert kill(window, f"insert {table}/before") == -signal.SIGKILL
        assert (game.moves, len(game.looks)) == (before, looks), "nothing of it is left"
        assert kill(window, f"insert {table}/after") == -signal.SIGKILL
        made, kept = game.moves, len(game.looks)
        assert not game.look(window).is_waiting
        assert (game.moves, len(game.looks)) == (made, kept), "nothing is done twice"

    game.gain_usd = 100.0
    die_twice(FIRST, "deployment_events")
    die_twice(game.play_next(), "deployment_events")
    die_twice(game.play_next(), "deployment_looks")
    # The interval needs so many windows; one more decides.
    game.play_and_look(hours=BURN_IN_WINDOWS - 1 - len(game.looks))
    last = game.play_next()
    die_twice(last, "deployment_events")
    assert game.moves == [
        ("canary", 1, str(FIRST)),
        ("half", 1, str(FIRST.next())),
        ("promoted", 1, str(last)),
    ]
    assert (game.deployed.number, game.deployed.incumbent, game.deployed.candidate) == (3, 1, None)
    assert {look.decision for look in game.looks[1:-1]} == {"hold"}
    assert [game.looks[0].decision, game.looks[-1].decision] == ["advance", "promote"]

    game.add_checkpoint(2)
    game.gain_usd = -100.0
    assert game.play_and_look().after.candidate == 2
    assert game.play_and_look().after.stage is Stage.HALF
    assert game.play_and_look().after.candidate == 2
    die_twice(game.play_next(), "deployment_events")  # so much worse that the drawdown takes it back
    kinds = [kind for kind, subject, _ in game.moves if subject == 2]
    assert kinds == ["canary", "half", "rolled_back"]
    assert game.deployed.incumbent == 1


def _job() -> dg.JobDefinition:
    @dg.op
    def nothing() -> None: ...

    @dg.job
    def some_job() -> None:
        nothing()

    return some_job
