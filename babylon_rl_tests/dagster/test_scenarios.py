"""Agents of one hour that played different scenarios: each scenario is grouped, judged, gated and trained on alone."""

from dataclasses import replace

import pytest
import sqlalchemy as sa
from dagster_factories import FIRST, CountingJudge, spawn_windows

from babylon_rl.cli.runner import Runner
from babylon_rl.database import migrate
from babylon_rl.export.dataframe import window_frame
from babylon_rl.export.explain import explain
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.pipeline.readiness import readiness, unprepared_windows
from babylon_rl.pipeline.unjudged import explain_unjudged
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.eligibility import State
from babylon_rl.store.row_outcomes import row_outcomes_of
from babylon_rl_tests.factories import insert_row

ATTACK, LEGIT = FIRST.of_scenario("trust-attack-01"), FIRST.of_scenario("trust/legit #1")
WITHOUT_SCORES = ["raw_trajectories", "market_outcomes", "contextualized_groups"]
BOTH = sorted([str(ATTACK), str(LEGIT)])


@pytest.fixture
def played(workspace: Workspace) -> Workspace:
    """Six agents of one scenario, six of another, three of a third and two of none, in one hour."""
    spawn_windows(workspace, 1, agents=12)
    assign(workspace, "split_part(agent_id, '-', 2)::int % 2 = 0", ATTACK.scenario)
    assign(workspace, "split_part(agent_id, '-', 2)::int % 2 = 1", LEGIT.scenario)
    for i in range(3):
        insert_row(workspace.game, f"third-{i}", window=FIRST, scenario_id="too-few")
    for i, none in enumerate([str(FIRST), None]):
        insert_row(workspace.game, f"without-{i}", window=FIRST, scenario_id=none)
    return workspace


def assign(workspace: Workspace, who: str, scenario: str | None) -> None:
    """Give the rows of some learners a scenario."""
    statement = f"UPDATE trajectories SET scenario_id = :s WHERE agent_id ~ '^agent-[0-9]+' AND {who}"
    with workspace.game.begin() as conn:
        assert conn.execute(sa.text(statement), {"s": scenario}).rowcount > 0


def test_each_scenario_of_an_hour_is_a_window_of_its_own(
    played: Workspace, runner: Runner, resources: dict[str, object], judge: CountingJudge
) -> None:
    assert [u.window for u in unprepared_windows(played, min_agents=5)] == [FIRST]
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    assert sorted(judge.asked) == BOTH
    assert [r.window_id for r in played.ledger.ready()] == BOTH
    assert unprepared_windows(played, min_agents=5) == []
    groups = {w: played.store.group(w) for w in (ATTACK, LEGIT)}
    for window, group in groups.items():
        assert group is not None
        assert len(group.members) == 6
        assert all(m.trajectory_id == f"{window}/{m.agent_id}" for m in group.members)
    outcomes = row_outcomes_of(played.store.engine, FIRST)
    assert {o.window_id for o in outcomes} == {str(FIRST)}
    held = {o.group_id for o in outcomes if o.status == "grouped"}
    assert held == {g.group_id for g in groups.values() if g is not None}
    left = {o.agent_id for o in outcomes if (o.status, o.reason) == ("ineligible", "too_few_agents")}
    assert left == {"third-0", "third-1", "third-2", "without-0", "without-1"}


def test_a_scenario_that_a_check_keeps_out_holds_up_no_other(
    played: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    with played.game.begin() as conn:  # all of one scenario end alike, so their scores tie
        conn.execute(sa.text("UPDATE trajectories SET final_pnl = 5 WHERE scenario_id = :s"), {"s": LEGIT.scenario})
        conn.exec_driver_sql(
            """UPDATE trajectories SET steps_json = regexp_replace(steps_json, '"agentPnL":[-0-9.e]+', '"agentPnL":0', 'g')
               WHERE scenario_id = %s""",
            (LEGIT.scenario,),
        )
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    states = {s.window_id: s for s in played.ledger.eligibility.states([FIRST])}
    assert {w: s.state for w, s in states.items()} == {str(ATTACK): State.JUDGED, str(LEGIT): State.KEPT_OUT}
    assert states[str(LEGIT)].failed_checks == ("scores_are_not_all_equal",)
    config = {"trained_checkpoint": {"windows_per_iteration": 1}}
    runner.materialize("policy", FIRST, FIRST, assets=["trained_checkpoint"], config=config, resources=resources)
    [checkpoint] = played.ledger.checkpoints()
    assert checkpoint.windows == (str(ATTACK),)
    assert played.ledger.ready() == []


def test_both_scenarios_train_once_and_are_explained(
    played: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    config = {"trained_checkpoint": {"windows_per_iteration": 2}}
    for _ in range(2):
        runner.materialize("policy", FIRST, FIRST, assets=["trained_checkpoint"], config=config, resources=resources)
    [checkpoint] = played.ledger.checkpoints()
    assert checkpoint.windows == tuple(BOTH)
    lines = readiness(played, min_agents=5, min_windows=1, now=played.now()).lines
    assert [(line.window_id, line.state) for line in lines] == [(w, "trained @1") for w in BOTH]
    group = played.store.group(LEGIT)
    assert group is not None
    text = " ".join(explain(played, group.members[0].trajectory_id))
    assert f"is one of 6 members of group {LEGIT}#" in text
    assert "Checkpoint babylon-mmo@1 was trained on it." in text
    frame = window_frame(played.store, str(FIRST))
    assert set(frame.loc[frame["score"].notna(), "window_id"]) == set(BOTH)


def test_a_late_row_of_one_scenario_asks_no_judge_about_another(
    played: Workspace, runner: Runner, resources: dict[str, object], judge: CountingJudge
) -> None:
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    judge.asked.clear()
    insert_row(played.game, "late", window=FIRST, scenario_id=LEGIT.scenario)
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    assert judge.asked == [str(LEGIT)]
    assert [r.window_id for r in played.ledger.ready()] == BOTH


def test_dropout_leaves_out_one_scenario_and_its_rows(
    played: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    training = played.settings.training.model_copy(update={"dropout_target": 1, "dropout_cap": 0.5})
    settings = played.settings.model_copy(update={"training": training})
    runner.materialize(
        "windows", FIRST, FIRST, resources={**resources, "workspace": replace(played, settings=settings)}
    )
    [ready] = played.ledger.ready()
    dropped = {o.agent_id for o in row_outcomes_of(played.store.engine, FIRST) if o.status == "dropped_out"}
    [other] = set(BOTH) - {ready.window_id}
    group = played.store.group(ATTACK if other == str(ATTACK) else LEGIT)
    assert group is not None
    assert dropped == {m.agent_id for m in group.members}


def test_an_hour_trained_as_a_whole_before_trains_no_scenario(
    played: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    assign(played, "true", None)
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    config = {"trained_checkpoint": {"windows_per_iteration": 1}}
    runner.materialize("policy", FIRST, FIRST, assets=["trained_checkpoint"], config=config, resources=resources)
    played.store.engine.dispose()
    migrate.downgrade(played.settings.database, "0010")
    migrate.upgrade(played.settings.database)
    assign(played, "split_part(agent_id, '-', 2)::int % 2 = 0", ATTACK.scenario)
    assign(played, "split_part(agent_id, '-', 2)::int % 2 = 1", LEGIT.scenario)
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    states = played.ledger.eligibility.states([FIRST])
    assert [(s.window_id, s.consumed_step) for s in states] == [(w, 1) for w in BOTH]
    assert played.ledger.ready() == []


def test_why_a_scenario_is_not_judged_is_said_by_its_name(
    played: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    runner.materialize("windows", FIRST, FIRST, assets=WITHOUT_SCORES, resources=resources)
    assert explain_unjudged(played, [FIRST, FIRST.next()]) == [
        f"{FIRST.next()}: no row is recorded in it; `babylon-rl check-windows` lists the windows that have some",
        f"{BOTH[0]} and 1 more: grouped and not judged; materialize ruler_scores",
    ]


def test_an_hour_with_too_few_in_each_scenario_says_so(workspace: Workspace) -> None:
    for i in range(6):
        insert_row(workspace.game, f"agent-{i}", window=FIRST, scenario_id="even" if i % 3 else "odd")
    ingest_window(FIRST, workspace.game, workspace.store)
    said = group_window(FIRST, workspace.store, min_agents=5).facts["left_out"]
    assert said == "too few usable agents in any of its 2 scenarios: 4, and a group needs 5"
