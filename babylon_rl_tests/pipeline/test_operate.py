"""What an operator may do with a deployment, as functions and as commands."""

import json
import os
from typing import Any

import pytest
from typer.testing import CliRunner

from babylon_rl.cli.demo_rollout import describe_rollout
from babylon_rl.cli.deployment_screen import wrap
from babylon_rl.cli.main import app
from babylon_rl.deployment.stages import Arm, Stage
from babylon_rl.errors import ConfigError, DataError
from babylon_rl.pipeline import operate
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.report.charts import WIDE
from babylon_rl.report.live_chart import draw_interval
from babylon_rl.store.deployments import read_moves, servable_steps
from babylon_rl_tests.live_game import FIRST, LiveGame


@pytest.fixture
def ten(workspace: Workspace) -> LiveGame:
    """Ten checkpoints; @9 is worse than its base, and @10, the newest, has no evaluation."""
    game = LiveGame(workspace)
    for step in range(1, 9):
        game.add_checkpoint(step)
    game.add_checkpoint(9, lift_usd=-50.0)
    game.add_checkpoint(10, lift_usd=None)
    game.play_next()
    return game


def test_the_default_is_the_newest_and_it_needs_an_evaluation(ten: LiveGame) -> None:
    with pytest.raises(DataError, match=r"babylon-mmo@10 has no evaluation; .* --without-evaluation"):
        operate.deploy(ten.workspace, None, at_once=True)
    with pytest.raises(DataError, match=r"babylon-mmo@9 earns -50.00 .* which is not above 0; .* --without-evaluation"):
        operate.deploy(ten.workspace, 9)
    move = operate.deploy(ten.workspace, None, without_evaluation=True)
    assert (move.subject, move.made_by, move.after.stage) == (10, "operator", Stage.CANARY)
    assert move.window_id is None


@pytest.mark.parametrize(("lift_usd", "stage"), [(20.0, Stage.SHADOW), (-20.0, Stage.NONE)])
def test_an_unevaluated_one_waits_for_its_evaluation(ten: LiveGame, lift_usd: float, stage: Stage) -> None:
    move = operate.deploy(ten.workspace, None, shadow=True)
    assert (move.kind.value, move.after.stage, ten.deployed.candidate) == ("candidate", Stage.CANDIDATE, 10)
    assert 10 not in servable_steps([move], move.after)
    assert {move.after.arm_of(a) for a in ten.agents} == {Arm.INCUMBENT}
    waits = ten.play_and_look()
    assert waits.move is None
    assert "an operator chose babylon-mmo@10, which waits" in waits.reason
    ten.evaluate(10, lift_usd)
    result = ten.play_and_look()
    assert (result.after.stage, result.move is not None) == (stage, True)
    assert ("--without-evaluation" in result.reason) is (stage is Stage.NONE)
    assert ten.deployed.incumbent == 0


def test_what_only_waits_can_be_tried_or_replaced(ten: LiveGame) -> None:
    """Its evaluation may never come; it is on trial nowhere, and was refused as if it were."""
    operate.deploy(ten.workspace, 10)
    assert "`babylon-rl deploy 10 --without-evaluation` does not wait" in ten.play_and_look().reason
    with pytest.raises(DataError, match=r"babylon-mmo@10 waits for its evaluation already.* --without-evaluation"):
        operate.deploy(ten.workspace, 10)
    begun = operate.deploy(ten.workspace, 10, without_evaluation=True)
    assert (begun.after.stage, begun.after.candidate) == (Stage.CANARY, 10)
    operate.roll_back(ten.workspace)
    operate.deploy(ten.workspace, 10, again=True)
    assert operate.deploy(ten.workspace, 8).after.candidate == 8


def test_a_trial_in_progress_is_not_replaced(ten: LiveGame) -> None:
    operate.deploy(ten.workspace, 7, shadow=True)
    assert ten.deployed.stage is Stage.SHADOW
    with pytest.raises(DataError, match=r"babylon-mmo@7 is on trial \(shadow\); .* babylon-rl rollback"):
        operate.deploy(ten.workspace, 8)
    with pytest.raises(DataError, match="babylon-rl deploy 7 --at-once"):
        operate.deploy(ten.workspace, 7)
    operate.deploy(ten.workspace, 7, at_once=True)
    assert (ten.deployed.incumbent, ten.deployed.candidate) == (7, None)
    with pytest.raises(DataError, match="babylon-mmo@7 answers everybody already"):
        operate.deploy(ten.workspace, 7)


def test_what_was_rolled_back_needs_a_second_word(ten: LiveGame) -> None:
    operate.deploy(ten.workspace, 8)
    operate.roll_back(ten.workspace, reason="it buys everything")
    with pytest.raises(DataError, match=r"was rolled back \(it buys everything\).* --again"):
        operate.deploy(ten.workspace, 8)
    assert operate.deploy(ten.workspace, 8, again=True).after.candidate == 8


def test_without_a_trial_the_incumbent_itself_is_taken_back(ten: LiveGame) -> None:
    """To the newest former incumbent that was not rolled back, else to the base."""
    for step in (3, 5, 6):
        operate.deploy(ten.workspace, step, at_once=True)
    assert [operate.roll_back(ten.workspace)[0].after.incumbent for _ in range(3)] == [5, 3, 0]
    with pytest.raises(DataError, match="nothing to roll back: the base answers everybody"):
        operate.roll_back(ten.workspace)


def test_a_target_is_what_was_in_service_before(ten: LiveGame) -> None:
    for step in (3, 5):
        operate.deploy(ten.workspace, step, at_once=True)
    operate.deploy(ten.workspace, 6)
    with pytest.raises(
        DataError, match=r"babylon-mmo@4 was never in service.* babylon-mmo@0, babylon-mmo@3, babylon-mmo@5"
    ):
        operate.roll_back(ten.workspace, 4)
    moves = operate.roll_back(ten.workspace, 3)
    assert [(m.subject, m.after.incumbent) for m in moves] == [(6, 5), (5, 3)]
    assert ten.deployed.candidate is None


def test_pausing_twice_is_refused(ten: LiveGame) -> None:
    operate.pause(ten.workspace, paused=True, reason="holidays")
    with pytest.raises(DataError, match="is paused already"):
        operate.pause(ten.workspace, paused=True)
    assert ten.deployed.paused
    # What a terminal of another character set gives, a traceback before.
    operate.pause(ten.workspace, paused=False, reason="caf\udce9")
    assert not ten.deployed.paused
    assert read_moves(ten.workspace.store.engine, "babylon-mmo")[-1].reason == "caf\ufffd"


def test_a_trial_that_ends_before_its_interval_is_drawn(game: LiveGame) -> None:
    """A guard rail may end it in the first windows; the report's picture used to raise IndexError then."""
    game.gain_usd = -100.0
    game.look(FIRST)
    game.play_until_decided()
    told = describe_rollout(game.workspace, 1)
    assert {p.lo for p in told.points} == {None}
    assert draw_interval(told.points, WIDE) == ""


@pytest.fixture
def command(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command on the test's database; its output, or the error that ends it."""
    for name in environment.keys() - os.environ.keys():
        monkeypatch.setenv(name, environment[name])

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_the_commands_do_it_and_the_screen_says_it(ten: LiveGame, command: Any) -> None:
    assert "#1 canary @8 (operator): an operator put babylon-mmo@8 on trial; babylon-mmo@8 earns +50.00" in command(
        "deploy", "babylon-mmo@8"
    )
    ten.play_and_look()
    screen = command("deployment")
    assert "incumbent   babylon-mmo@0 (the base)" in screen
    assert "candidate   babylon-mmo@8, stage canary: it answers a tenth" in screen or "stage half" in screen
    assert "interval    after 1 window" in screen
    assert "#1 canary @8 (operator)" in screen
    assert len(screen.splitlines()) <= 24
    said = json.loads(command("deployment", "--json"))
    assert (said["incumbent"], said["candidate"]) == ("babylon-mmo@0", "babylon-mmo@8")
    assert said["look"]["window_id"] == str(FIRST.next())
    assert command("rollback", "--reason", "enough").endswith("babylon-mmo@0 answers everybody\n")
    assert "paused" in command("pause")
    assert "paused      nothing moves by itself" in command("deployment")
    assert "resumed" in command("resume")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("deploy", "other@3"), "'other@3' is of lineage 'other'; this one is 'babylon-mmo'"),
        (("deploy", "newest"), "'newest' is no step; expected a number such as 3"),
        (("deploy", "3", "--shadow", "--at-once"), "choose one"),
        (("deploy", "3"), "lineage 'babylon-mmo' has no checkpoint to deploy; run: babylon-rl train"),
    ],
)
def test_a_wrong_argument_is_one_sentence(command: Any, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        command(*arguments)


def test_a_long_line_goes_on_under_its_text() -> None:
    reason = "passed its evaluation: babylon-mmo@12 earns +383.63 USD a held-out window beside its base"
    lines = wrap(f"moves       #1 canary @12: {reason}", 60).splitlines()
    assert [line[:14] for line in lines] == ["moves       #1", " " * 12 + "ba", " " * 12 + "wi"]
    assert max(map(len, lines)) <= 60
    assert " ".join(line.strip() for line in lines) == f"moves       #1 canary @12: {reason}"
