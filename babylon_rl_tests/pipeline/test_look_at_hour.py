"""A look at what is deployed moves it at most once an hour, and can be repeated, killed and raced."""

import threading
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from babylon_rl.database.connection import connect
from babylon_rl.deployment.stages import Stage
from babylon_rl.pipeline import operate
from babylon_rl.pipeline.deploy import PATIENCE, LookResult, find_due_hours, look_at_hour
from babylon_rl.pipeline.moves import find_agents
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.log_evaluations import Change, LogEvaluation, LogFigures, NotEvaluated, write_log_evaluation
from babylon_rl.store.served_calls import write_calls
from babylon_rl.store.windows import Store
from babylon_rl_tests.live_game import AGENTS, FIRST, LiveGame


def due(workspace: Workspace) -> list[str]:
    return [str(w) for w in find_due_hours(workspace, limit=50)[0]]


def change(workspace: Workspace, **deployment: object) -> Workspace:
    return replace(workspace, settings=workspace.settings.changed(deployment=deployment))


def test_a_better_checkpoint_goes_from_canary_to_everybody(game: LiveGame) -> None:
    game.gain_usd = 100.0
    begun = game.look(FIRST)
    assert begun.move is not None
    assert begun.after.stage is Stage.CANARY
    assert "passed its evaluation: babylon-mmo@1 earns +50.00 USD" in begun.reason
    assert 0 < begun.after.threshold < 0.5, "a tenth of ten agents is one"
    last = game.play_until_decided()
    assert game.moves == [
        ("canary", 1, str(FIRST)),
        ("half", 1, str(FIRST.next())),
        ("promoted", 1, str(last.window)),
    ]
    assert (last.after.incumbent, last.after.candidate, last.after.stage) == (1, None, Stage.NONE)
    assert last.reason.startswith("better than the incumbent: +10")
    looks = game.looks
    assert [look.window_id for look in looks] == [str(w) for w in FIRST.next().until(last.window)]
    assert looks[-1].lo_usd is not None
    assert looks[-1].lo_usd > 0


def test_a_worse_one_is_rolled_back_and_not_tried_again(game: LiveGame) -> None:
    game.gain_usd = -100.0
    game.look(FIRST)
    game.play_until_decided()
    assert game.moves[-1][:2] == ("rolled_back", 1)
    assert game.deployed.incumbent == 0
    game.play_next()
    assert due(game.workspace) == []
    assert "there is no newer checkpoint that was not tried" in find_due_hours(game.workspace, limit=1)[1]
    game.add_checkpoint(2)
    assert due(game.workspace) == [str(game.next_hour.next(-1))]
    assert game.look(game.next_hour.next(-1)).after.candidate == 2


def test_an_equal_one_ends_undecided(game: LiveGame) -> None:
    game.look(FIRST)
    last = game.play_until_decided()
    assert game.moves[-1] == ("ended", 1, str(last.window))
    assert game.deployed.incumbent == 0


def test_an_hour_moves_once_however_often_it_is_looked_at(game: LiveGame) -> None:
    first = [game.look(FIRST) for _ in range(3)]
    assert [r.move is not None for r in first] == [True, False, False]
    hour = game.play_next()
    again = [game.look(hour) for _ in range(3)]
    assert [r.move is not None for r in again] == [True, False, False]
    assert again[2].reason == f"looked at before, and moves nothing again: {again[0].reason}"
    assert len(game.moves) == 2


def test_a_backfill_of_old_hours_moves_nothing(game: LiveGame) -> None:
    """Not even where the hours were never looked at, and would have moved the rollout."""
    game.gain_usd = -100.0
    game.look(FIRST)
    skipped = [game.play_next() for _ in range(4)]
    game.gain_usd = 0.0
    paused = operate.pause(game.workspace, paused=True)
    last = game.play_and_look()
    assert last.reason.startswith("paused, so nothing moves: ")
    assert last.look is not None
    assert last.look.decision == "roll_back"
    operate.pause(game.workspace, paused=False)
    before = game.moves
    results = [game.look(w) for w in (FIRST.next(-3), FIRST, *skipped, last.window)]
    assert game.moves == before
    assert [r.look is not None for r in results] == [False, False, True, True, True, True, True]
    assert results[4].reason.startswith(f"looked at late, after {last.window}, so it moves nothing: ")
    assert paused.after.number == 2
    assert game.play_and_look().move is not None, "the next hour decides"
    assert game.moves[-1][0] == "rolled_back"


def test_two_that_decide_at_once_make_one_move(game: LiveGame) -> None:
    results: list[LookResult] = []

    def race(window: object) -> None:
        barrier = threading.Barrier(6)
        url = game.workspace.store.engine.url.render_as_string(hide_password=False)

        def decide() -> None:
            engine = connect(url)
            workspace = replace(game.workspace, store=Store(engine))
            barrier.wait()
            results.append(look_at_hour(workspace, window))  # type: ignore[arg-type]
            engine.dispose()

        threads = [threading.Thread(target=decide) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    race(FIRST)
    race(game.play_next())
    assert [m[0] for m in game.moves] == ["canary", "half"]
    assert len(results) == 12
    assert sum(r.move is not None for r in results) == 2


def test_an_hour_that_is_not_read_yet_is_waited_for(game: LiveGame) -> None:
    game.look(FIRST)
    missing, later = game.play_next(prepare=False), game.play_next()
    closed = replace(game.workspace, now=lambda: later.end_at + timedelta(minutes=10))
    assert due(closed) == []
    waiting = look_at_hour(closed, later)
    assert (waiting.is_waiting, waiting.look) == (True, None)
    assert waiting.reason == f"waits until the rows of {missing} are read, at the longest until 2025-02-01 08:00 UTC"
    game.prepare(missing)
    assert due(closed) == [str(missing), str(later)]
    assert look_at_hour(closed, missing).move is not None


def test_an_hour_before_babylon_start_is_not_waited_for(game: LiveGame) -> None:
    """It is no partition, so nothing will ever read its rows."""
    game.look(FIRST)
    unread, hour = game.play_next(prepare=False), game.play_next()
    settings = game.workspace.settings.model_copy(update={"start": str(hour)})
    later = replace(game.workspace, settings=settings, now=lambda: hour.end_at + timedelta(minutes=20))
    assert find_due_hours(later, limit=9)[0] == [hour]
    assert not look_at_hour(later, hour).is_waiting
    assert look_at_hour(replace(later, settings=game.workspace.settings), unread).is_waiting


def test_an_hour_that_is_never_read_blocks_nothing(game: LiveGame) -> None:
    game.look(FIRST)
    missing, later = game.play_next(prepare=False), game.play_next()
    late = replace(game.workspace, now=lambda: missing.end_at + PATIENCE)
    assert due(late) == [str(missing), str(later)]
    looked = look_at_hour(late, missing)
    assert looked.look is not None
    assert looked.look.facts["agent_hours_excluded"] == 10
    assert look_at_hour(late, later).move is not None


def test_an_hour_that_cannot_be_read_blocks_nothing(game: LiveGame) -> None:
    game.look(FIRST)
    poisoned = game.play_next()
    with game.workspace.store.engine.begin() as conn:
        spoil = "UPDATE babylon_rl.window_trajectories SET body = 'poison' WHERE window_id = :w"
        conn.execute(sa.text(spoil), {"w": str(poisoned)})
    look = game.look(poisoned).look
    assert look is not None
    assert look.facts["agent_hours_excluded"] == 10
    assert game.play_and_look().after.stage is Stage.HALF


def test_an_open_hour_and_one_without_agents_are_none(game: LiveGame) -> None:
    game.look(FIRST)
    hour = game.play_next()
    open_hour = replace(game.workspace, now=lambda: hour.start_at + timedelta(minutes=59))
    assert due(open_hour) == []
    assert look_at_hour(open_hour, hour).is_waiting
    empty = game.look(FIRST.next(5))
    assert "no agent was answered under babylon-mmo@1's rollout" in empty.reason
    assert empty.look is None


def test_late_rows_count_at_the_next_look(game: LiveGame) -> None:
    """What was decided stays; the hour's evidence is collected anew."""
    game.gain_usd = 100.0
    game.look(FIRST)
    hour = game.play_and_look().window
    first = game.look(hour).look
    known = game.play_and_look().look
    game.prepare(hour, but={a: {"pnl_usd": None} for a in AGENTS})
    later = game.play_and_look().look
    assert first == game.look(hour).look
    assert known is not None
    assert later is not None
    assert later.facts["agent_hours_excluded"] == 10
    assert later.facts["candidate_agent_hours"] < known.facts["candidate_agent_hours"] + 5


def test_an_unchanged_hour_is_not_collected_again(game: LiveGame) -> None:
    """A look at a rollout of 300 hours reads one of them."""
    game.look(FIRST)
    hour = game.play_next()
    game.look(hour)
    with game.workspace.store.engine.begin() as conn:
        spoil = "UPDATE babylon_rl.window_trajectories SET body = 'poison' WHERE window_id = :w"
        conn.execute(sa.text(spoil), {"w": str(hour)})
    look = game.play_and_look().look
    assert look is not None
    assert look.facts["agent_hours_excluded"] == 0


def test_manual_and_paused_begin_nothing(game: LiveGame) -> None:
    manual = change(game.workspace, mode="manual")
    assert due(manual) == []
    assert "BABYLON_DEPLOY is manual" in look_at_hour(manual, FIRST).reason
    operate.pause(game.workspace, paused=True)
    assert due(game.workspace) == []
    assert "`babylon-rl resume`" in game.look(FIRST).reason
    assert [m[0] for m in game.moves] == ["paused"]


def test_a_shadow_comes_first_where_it_is_asked_for(game: LiveGame) -> None:
    begun = look_at_hour(change(game.workspace, shadow_windows=2), FIRST)
    assert begun.after.stage is Stage.SHADOW
    assert (begun.after.threshold, begun.after.test_threshold) == (0.0, 0.0)


def test_an_operator_s_shadow_is_asked_before_it_goes_on(game: LiveGame) -> None:
    """Also where BABYLON_SHADOW_WINDOWS is 0, which asks for no shadow by itself."""
    operate.deploy(game.workspace, 1, shadow=True)
    assert "0 of 1 windows" in game.play_and_look().reason
    hour = game.play_next()
    d = game.deployed
    write_calls(
        game.workspace.store.engine, [game.make_call(d, hour, a, arm="shadow", step=d.candidate) for a in AGENTS]
    )
    assert game.look(hour).after.stage is Stage.CANARY


def test_better_on_the_log_waits_for_an_operator(workspace: Workspace) -> None:
    game = LiveGame(workspace)
    for step in (1, 2, 3):
        game.add_checkpoint(step, lift_usd=None)
    figures = LogFigures(name="babylon-mmo@2", answers=0, better_over_worse_nats=0.2)
    said = LogEvaluation(
        suite="s",
        windows=(str(FIRST),),
        policy=figures,
        base=figures,
        changes={"better_over_worse_nats": Change(mean=0.1, lo=0.05, hi=0.15, n=9)},
    )
    write_log_evaluation(workspace.store.engine, "babylon-mmo", 3, "s", said)
    write_log_evaluation(workspace.store.engine, "babylon-mmo", 2, "s", NotEvaluated(reason="too few windows"))
    game.play_next()
    assert due(workspace) == []
    assert "babylon-mmo@3 is better than its base on the log (better_over_worse_nats), which is not money" in str(
        game.look(FIRST).reason
    )
    assert game.moves == []
    assert operate.deploy(workspace, None).subject == 3, "the operator's word"


def test_the_newest_that_passed_is_tried_as_numbers_compare(workspace: Workspace) -> None:
    game = LiveGame(workspace)
    for step, lift in ((8, 90.0), (9, 20.0), (10, 20.0), (11, 5.0), (12, None)):
        game.add_checkpoint(step, lift_usd=lift)
    game.play_next()
    assert game.look(FIRST).after.candidate == 10


def test_no_rollout_begins_before_an_agent_calls(workspace: Workspace) -> None:
    """It could only wait, while newer checkpoints come."""
    game = LiveGame(workspace, agents=())
    game.add_checkpoint(1)
    game.play_next()
    assert due(workspace) == []
    assert "it is tried once 3 agents call the gateway (0 did)" in game.look(FIRST).reason
    game.add_checkpoint(2)
    game.agents = AGENTS
    assert due(workspace) == []
    assert game.play_and_look().after.candidate == 2


def test_no_trial_begins_that_could_never_be_decided(workspace: Workspace) -> None:
    """Two agents never tell a policy from an agent, and a single one would be the candidate's whole and alone."""
    game = LiveGame(workspace, agents=AGENTS[:2])
    game.add_checkpoint(1)
    game.play_next()
    assert "it is tried once 3 agents call the gateway (2 did)" in game.look(FIRST).reason
    game.agents = AGENTS[:3]
    assert game.play_and_look().after.candidate == 1


def test_an_operator_may_begin_before_an_agent_calls(workspace: Workspace) -> None:
    """Then the stage's own share is the threshold, and nothing is due until somebody plays."""
    game = LiveGame(workspace, agents=())
    game.add_checkpoint(1)
    game.play_next()
    operate.deploy(workspace, 1)
    assert (game.deployed.threshold, game.deployed.test_threshold) == (0.1, 0.5)
    assert due(workspace) == []


def test_an_arm_without_agents_widens(game: LiveGame) -> None:
    begun = game.look(FIRST).after
    inside = {a for a in AGENTS if game.arm_of(begun, a) == "candidate"}
    assert len(inside) == 1
    game.agents = [a for a in AGENTS if a not in inside]
    game.play_and_look(hours=3)
    assert [m[0] for m in game.moves] == ["canary", "widened"]
    assert sum(game.arm_of(game.deployed, a) == "candidate" for a in game.agents) == 1


@pytest.mark.parametrize("gone", ["from the disk", "from the ledger"])
def test_a_lost_checkpoint_of_the_incumbent_is_said(game: LiveGame, gone: str) -> None:
    game.add_checkpoint(2, trainer="cpu")
    with game.workspace.store.engine.begin() as conn:
        conn.execute(
            sa.text(
                "INSERT INTO babylon_rl.deployment_events (lineage, number, move, stage, incumbent, threshold, test_threshold, "
                "paused, subject, reason, made_by) VALUES ('babylon-mmo', 1, 'promoted', 'none', :s, 0, 0, false, :s, 'r', 'operator')"
            ),
            {"s": 2 if gone == "from the disk" else 5},
        )
    problem = game.look(FIRST).facts()["incumbent_problem"]
    expected = "checkpoint babylon-mmo@2 is recorded but" if gone == "from the disk" else "has no such checkpoint"
    assert expected in problem


def test_an_idle_look_costs_few_queries_while_nothing_is_due(game: LiveGame) -> None:
    game.look(FIRST)
    asked: list[str] = []

    @sa.event.listens_for(game.workspace.store.engine, "before_cursor_execute")
    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    assert due(game.workspace) == []
    assert len(asked) <= 5


def test_what_was_passed_over_is_not_tried_after_a_rollback(workspace: Workspace) -> None:
    """An operator takes @3 back: @2, which is older, does not come in its place by itself."""
    game = LiveGame(workspace)
    for step in (1, 2, 3):
        game.add_checkpoint(step)
    operate.deploy(workspace, 3, at_once=True)
    operate.roll_back(workspace)
    game.play_next()
    assert due(workspace) == []


def test_a_rollout_begins_by_an_hour_that_was_not_looked_at(game: LiveGame) -> None:
    game.look(FIRST)
    hour = game.play_and_look(hours=2).window
    operate.roll_back(game.workspace)
    game.add_checkpoint(2)
    assert due(game.workspace) == []
    assert "it is tried with the next prepared hour" in find_due_hours(game.workspace, limit=1)[1]
    assert "looked at before" in game.look(hour).reason
    assert game.look(game.play_next()).after.candidate == 2


def test_agents_of_a_misnamed_future_hour_are_not_the_recent(game: LiveGame) -> None:
    """A caller names its hour itself."""
    game.serve(game.deployed, FIRST.next(24 * 365 * 50), ["agent-of-2075"])
    assert 0 < game.look(FIRST).after.threshold != 0.1


def test_agents_are_those_of_the_lineage_whoever_else_calls(game: LiveGame) -> None:
    """Another lineage's agents called two days later, and one hour was misnamed: neither hides ours nor joins them."""
    later = FIRST.next(60)
    game.serve(game.deployed, later, ["theirs"], lineage="other")
    game.serve(game.deployed, FIRST.next(24 * 365 * 50), ["agent-of-2075"])
    assert find_agents(game.workspace) == list(AGENTS)
