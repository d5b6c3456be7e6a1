"""A batch of other models' turns is refused once, told to a person, and costs later windows nothing."""

from dataclasses import replace

import dagster as dg
import pytest
from dagster_factories import FIRST, spawn_windows
from rich.console import Console

from babylon_rl.cli.runner import Runner
from babylon_rl.cli.train import TrainOptions, _iterate
from babylon_rl.defs.automation import train_when_ready
from babylon_rl.errors import DataError
from babylon_rl.pipeline.readiness import readiness
from babylon_rl.pipeline.train import train_range
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.simulator.spawn import AgentLineup, spawn
from babylon_rl.store.eligibility import State

HOURS = [FIRST.next(i) for i in range(6)]


@pytest.fixture
def judged(workspace: Workspace, runner: Runner, resources: dict[str, object]) -> None:
    """Three hours of nobody known, then three of our own."""
    spawn(workspace.game, HOURS[:3], AgentLineup(learners=6, policy="habits"), seed=1)
    spawn_windows(workspace, 3, first=HOURS[3])
    runner.materialize("windows", HOURS[0], HOURS[-1], resources=resources)


@pytest.mark.usefixtures("judged")
def test_foreign_windows_never_starve_later_own_ones(workspace: Workspace) -> None:
    outcomes = train_range(workspace, HOURS)

    assert [(c.step, c.windows) for c in workspace.ledger.checkpoints()] == [(1, tuple(map(str, HOURS[3:])))]
    facts = outcomes[HOURS[2]].facts()
    assert facts["windows_set_aside"] == [str(w) for w in HOURS[:3]]
    assert "BABYLON_MIN_OWN_SHARE=0" in facts["refused"]
    shown = outcomes[HOURS[5]].facts()
    assert (shown["data/own_share"], shown["data/turns_own"], shown["data/turns_foreign"]) == (1.0, 54, 0)
    states = workspace.ledger.eligibility.states(HOURS)
    assert [s.state for s in states] == [State.KEPT_OUT] * 3 + [State.TRAINED] * 3
    assert all("0 of its 18 turns are own" in (s.explanation or "") for s in states[:3])
    lines = readiness(workspace, min_agents=5, min_windows=3, now=workspace.now()).lines
    assert lines[0].state == "kept out: 0 of its 18 turns are own"
    assert "BABYLON_MIN_OWN_SHARE=0" in str(lines[0].explanation)


@pytest.mark.usefixtures("judged")
def test_a_refusal_ends_and_the_setting_it_names_lifts_it(workspace: Workspace) -> None:
    with pytest.raises(DataError, match="BABYLON_MIN_OWN_SHARE=0"):
        train_range(workspace, HOURS[:3])
    assert [r.window_id for r in workspace.ledger.ready()] == [str(w) for w in HOURS[3:]]
    assert workspace.ledger.unfinished_batch() is None
    assert not train_range(workspace, HOURS[:3])[HOURS[2]].trained, "asked again, nothing is refused again"

    with open_workspace(workspace.settings.changed(training={"min_own_share": 0.0})) as warm:
        assert isinstance(
            train_when_ready(dg.build_sensor_context(instance=dg.DagsterInstance.ephemeral()), workspace=warm),
            dg.RunRequest,
        )
        made = train_range(warm, HOURS[:3])[HOURS[2]].trained

    assert [c.windows for c in made] == [tuple(map(str, HOURS[:3]))]
    assert made[0].metrics["data/own_share"] == 0.0
    assert made[0].metrics["data/turns_foreign"] == 54
    assert made[0].metrics["data/turns_foreign_left_out"] > 0


@pytest.mark.usefixtures("judged")
def test_the_command_says_why_and_then_trains_the_rest(workspace: Workspace, runner: Runner) -> None:
    options = TrainOptions(iterations=1, min_agents=5, windows_per_iteration=None, learning_rate=None, evaluate=False)

    with pytest.raises(DataError, match="BABYLON_MIN_OWN_SHARE=0"):
        _iterate(workspace, options, Console(), runner, 1)
    made = _iterate(workspace, options, Console(), runner, 1)

    assert made is not None
    assert made.windows == tuple(map(str, HOURS[3:]))


@pytest.mark.usefixtures("judged")
def test_a_rule_that_leaves_nothing_sets_its_windows_aside(workspace: Workspace) -> None:
    strict = workspace.settings.changed(training={"min_own_share": 0.0, "foreign_turns": "own_only"})
    with open_workspace(strict) as own_only:
        outcomes = train_range(own_only, HOURS)

        assert outcomes[HOURS[2]].set_aside == tuple(HOURS[:3])
        assert [c.windows for c in own_only.ledger.checkpoints()] == [tuple(map(str, HOURS[3:]))]


def test_check_windows_says_before_what_training_would_refuse(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    spawn(workspace.game, HOURS[:3], AgentLineup(learners=6, policy="habits"), seed=1)
    runner.materialize("windows", HOURS[0], HOURS[2], assets=["market_outcomes"], resources=resources)

    def next_step(w: Workspace = workspace) -> str | None:
        return readiness(w, min_agents=5, min_windows=3, now=workspace.now()).next_step

    for _ in range(2):  # first of rows that were never read, then of groups
        refusal = str(next_step())
        assert refusal.startswith(f"training would refuse {HOURS[0]}: 0 of 54 turns were answered by a checkpoint")
        assert "BABYLON_MIN_OWN_SHARE=0" in refusal
        runner.materialize("windows", HOURS[0], HOURS[2], resources=resources)
    training = workspace.settings.training.model_copy(update={"min_own_share": 0.0})
    warm = replace(workspace, settings=workspace.settings.model_copy(update={"training": training}))
    assert next_step(warm) is None
    spawn_windows(workspace, 3, first=HOURS[3])
    assert next_step() is None, "it would train on the own ones"
