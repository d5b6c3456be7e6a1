"""Every agent of a rollout's hour counts for one arm, or is left out with the reason."""

from dataclasses import replace

import pytest
import sqlalchemy as sa

from babylon_rl.deployment.evidence import WindowEvidence
from babylon_rl.deployment.stages import Arm, Stage
from babylon_rl.pipeline.deployment_checks import live_agents_are_answered_by_the_deployed_policy
from babylon_rl.pipeline.live_decisions import count_decisions
from babylon_rl.pipeline.live_windows import collect_evidence
from babylon_rl.store.deployments import read_moves
from babylon_rl.store.looks import read_evidence
from babylon_rl.store.served_calls import write_calls
from babylon_rl.types import Json, PredictionOutcome, StockOutcome, WindowOutcomes
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import a_trajectory
from babylon_rl_tests.live_game import AGENTS, FIRST, LiveGame, name_policy


@pytest.fixture
def trial(game: LiveGame) -> LiveGame:
    """A rollout at half."""
    game.look(FIRST)
    game.play_and_look()
    return game


def collect(game: LiveGame, window: HourWindow) -> WindowEvidence:
    moves = read_moves(game.workspace.store.engine, "babylon-mmo")
    return collect_evidence(game.workspace, game.deployed, moves, up_to=window)[-1].window


def agent_of(game: LiveGame, arm: Arm) -> str:
    return next(a for a in AGENTS if game.arm_of(game.deployed, a) is arm)


def call_again(game: LiveGame, window: HourWindow, agent: str | None, **changes: object) -> None:
    write_calls(game.workspace.store.engine, [game.make_call(game.deployed, window, agent, **changes)])


def test_an_agent_counts_for_the_arm_that_answered_it(trial: LiveGame) -> None:
    window = trial.play_next()
    evidence = collect(trial, window)
    assert {a.agent_id: a.arm for a in evidence.agents} == {a: trial.arm_of(trial.deployed, a) for a in AGENTS}
    assert {a.arm for a in evidence.agents} == {Arm.INCUMBENT, Arm.CANDIDATE}
    assert (evidence.stage, evidence.number, evidence.excluded) == (Stage.HALF, 2, {})
    calls = evidence.calls
    assert sum(c.calls for c in calls.values()) == 30
    assert calls[Arm.CANDIDATE].latency_ms == (50.0,) * 15
    assert all(a.earlier_pnl_usd is not None for a in evidence.agents), "they played one hour before the rollout"


CASES: dict[str, tuple[Json, str]] = {
    "by both arms": ({"arm": "incumbent", "step": 0}, "it was answered by both arms"),
    "of another rollout": (
        {"rollout": None, "arm": "incumbent", "step": 0},
        "it was answered in part before the rollout began or after it ended",
    ),
    "pinned": ({"arm": "pinned"}, "some of its calls named the step that answered"),
    "fell back": (
        {"step": 0, "fell_back_from": 1},
        "the incumbent answered some of its calls in the candidate's place",
    ),
    "by another step": ({"step": 7}, "it was answered by babylon-mmo@1, babylon-mmo@7 in the candidate's place"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_call_that_was_another_s_leaves_its_hour_out(trial: LiveGame, case: str) -> None:
    changes, reason = CASES[case]
    window, agent = trial.play_next(), agent_of(trial, Arm.CANDIDATE)
    call_again(trial, window, agent, **changes)
    assert collect(trial, window).excluded == {agent: reason}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pnl_usd": None}, "what it earned inside the hour is unknown"),
        ({"pnl_usd": float("nan")}, "what it earned inside the hour is unknown"),
        ({"pnl_usd": 1e200}, "what it earned inside the hour is unknown"),
        (
            {"turns": (name_policy("gpt-4o"),)},
            "its rows name gpt-4o, and the gateway answered as babylon-mmo@1",
        ),
        (
            {"turns": (name_policy(None),) * 4},
            "it bypassed the gateway in part: 3 calls for 4 decisions",
        ),
    ],
)
def test_rows_that_say_otherwise_leave_its_hour_out(trial: LiveGame, changes: Json, reason: str) -> None:
    agent = agent_of(trial, Arm.CANDIDATE)
    window = trial.play_next()
    trial.prepare(window, but={agent: changes})
    assert collect(trial, window).excluded == {agent: reason}


def test_rows_that_name_no_step_say_nothing(trial: LiveGame) -> None:
    """The gateway's record stands, where it has a call for each decision."""
    window = trial.play_next()
    trial.prepare(
        window,
        but={AGENTS[0]: {"turns": (name_policy(None),) * 3}, AGENTS[1]: {"turns": (name_policy("babylon-mmo"),)}},
    )
    assert collect(trial, window).excluded == {}


@pytest.mark.parametrize("named", ["openai/{}", "hosted_vllm/{}", "wandb-artifact:///team/game/babylon-mmo:step{step}"])
def test_rows_may_name_the_policy_as_their_client_does(trial: LiveGame, named: str) -> None:
    """As training reads it (`foreign_turns`): such rows are the policy's own, and no other's."""
    window = trial.play_next()
    names = {a: trial.deployed.step_of(trial.arm_of(trial.deployed, a)) for a in AGENTS}
    trial.prepare(
        window,
        but={
            a: {
                "turns": (
                    name_policy(named.format(f"babylon-mmo@{step}", step=step)),
                    name_policy("openai/babylon-mmo"),
                )
            }
            for a, step in names.items()
        },
    )
    assert collect(trial, window).excluded == {}
    assert live_agents_are_answered_by_the_deployed_policy(window, trial.workspace).passed


def test_who_is_in_one_record_only_is_named(trial: LiveGame) -> None:
    trial.agents = AGENTS[1:]
    window = trial.play_next(bypass=[AGENTS[1]])
    call_again(trial, window, AGENTS[0])
    call_again(trial, window, None, arm="unnamed")
    evidence = collect(trial, window)
    assert evidence.excluded == {
        AGENTS[0]: "the game has no usable row of its hour",
        AGENTS[1]: "it bypassed the gateway: no call of the hour names it",
    }
    assert {a.agent_id for a in evidence.agents} | set(evidence.excluded) == set(AGENTS)


def test_an_agent_of_two_scenarios_has_their_sum(trial: LiveGame) -> None:
    window = trial.play_next(prepare=False)
    of_agent = trial.make_trajectory(trial.deployed, window, AGENTS[0])
    played = [
        replace(of_agent, trajectory_id=f"{s}/{AGENTS[0]}", window_id=str(s), pnl_usd=pnl)
        for s, pnl in ((window.of_scenario("trust-1"), 30.0), (window.of_scenario("trust-2"), -12.0))
    ]
    trial.workspace.store.write_ingest(window, played, [], rows=2)
    [result] = collect(trial, window).agents
    assert result.pnl_usd == 18.0


def test_absurd_money_of_earlier_hours_blinds_no_rollout(trial: LiveGame) -> None:
    """Two such rows of one agent overflow in the database; they took every hour of the rollout out, for everybody."""
    before = FIRST.next(-1)
    played = [
        a_trajectory(
            AGENTS[0], before, trajectory_id=f"{before}#{s}/{AGENTS[0]}", window_id=f"{before}#{s}", pnl_usd=1.7e308
        )
        for s in "ab"
    ]
    trial.workspace.store.write_ingest(before, played, [], rows=2)
    trial.look(trial.play_next())
    evidence = collect(trial, trial.play_next())
    assert evidence.excluded == {}
    assert all(a.earlier_pnl_usd is not None and abs(a.earlier_pnl_usd) < 100 for a in evidence.agents)


def test_agents_of_another_lineage_are_none_of_the_rollout(trial: LiveGame) -> None:
    window = trial.play_next()
    played = [trial.make_trajectory(trial.deployed, window, a) for a in (*AGENTS, "theirs")]
    trial.workspace.store.write_ingest(window, played, [], rows=len(played))
    call_again(trial, window, "theirs", lineage="other", rollout=None, step=0)
    assert collect(trial, window).excluded == {}


def test_what_an_arm_could_not_answer_is_its_error(trial: LiveGame) -> None:
    """A bad request is the caller's own; a caller that left had no answer."""
    window = trial.play_next()
    agent, other = agent_of(trial, Arm.CANDIDATE), agent_of(trial, Arm.INCUMBENT)
    call_again(trial, window, agent, status=400)
    call_again(trial, window, agent, status=502)
    call_again(trial, window, agent, arm="incumbent", step=0, fell_back_from=1)
    call_again(trial, window, other, status=499)
    call_again(trial, window, other, arm="shadow", step=1, latency_ms=9.0)
    calls = collect(trial, window).calls
    assert (calls[Arm.CANDIDATE].calls, calls[Arm.CANDIDATE].errors) == (17, 2)
    assert (calls[Arm.INCUMBENT].calls, calls[Arm.INCUMBENT].errors) == (16, 1)
    assert calls[Arm.SHADOW].latency_ms == (9.0,)


@pytest.mark.parametrize("kept", ["of another shape", "with a latency that is no number"])
def test_evidence_that_cannot_be_read_back_is_collected_anew(trial: LiveGame, kept: str) -> None:
    """Each later look reads it; one that it ends would end them all."""
    window = trial.play_next()
    if kept == "of another shape":
        trial.look(window)
        with trial.workspace.store.engine.begin() as conn:
            conn.execute(
                sa.text("UPDATE babylon_rl.deployment_looks SET facts = replace(facts, '\"agents\"', '\"players\"')")
            )
    else:
        trial.serve(trial.deployed, window, AGENTS[:1], latency_ms=float("nan"))
        trial.look(window)
    assert len(collect(trial, window).agents) == 10
    assert trial.play_and_look().look is not None
    stored = read_evidence(trial.workspace.store.engine, "babylon-mmo", "babylon-mmo@1#1")
    assert None not in stored.values(), "and kept as it is written now"


def test_many_latencies_keep_their_quantiles(trial: LiveGame) -> None:
    window, agent = trial.play_next(), agent_of(trial, Arm.INCUMBENT)
    rows = [trial.make_call(trial.deployed, window, agent, latency_ms=float(i)) for i in range(1, 2001)]
    write_calls(trial.workspace.store.engine, rows)
    kept = collect(trial, window).calls[Arm.INCUMBENT].latency_ms
    assert (len(kept), kept[0], kept[-1]) == (200, 1.0, 2000.0)
    assert kept[190] == pytest.approx(1900, rel=0.02)


OUTCOMES = WindowOutcomes(
    window_id=str(FIRST),
    stocks=(
        StockOutcome(ticker="BTC", start_price=100.0, end_price=110.0, change_pct=10.0, other_names=("bitcoin",)),
        StockOutcome(ticker="ETH", start_price=100.0, end_price=None, change_pct=None),
    ),
    predictions=(PredictionOutcome(market_id="m-1", question="?", outcome="NO", final_probability=0.6),),
)


def act(kind: str, *, success: bool = True, result: Json | None = None, **parameters: object) -> Json:
    return {"actionType": kind, "success": success, "parameters": parameters, "result": result}


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (act("BUY", ticker="$BTC", result={"price": 105.0, "notionalUsd": -500.0}), (0, 1, 1, 500.0)),
        (act("SELL", ticker="bitcoin", result={"price": 105.0, "notionalUsd": 500.0}), (0, 1, 0, 500.0)),
        (act("BUY_NO", market="m-1", result={"price": 0.4, "stakeUsd": 10.0}), (0, 1, 1, 10.0)),
        (act("TRADE", side="yes", marketId="m-1", amount="7", result={"price": 0.4}), (0, 1, 0, 7.0)),
        (act("BUY", ticker="ETH", result={"price": 105.0}), (0, 0, 0, None)),
        (act("BUY", ticker="BTC", amount=5), (0, 0, 0, 5.0)),
        (act("INVALID", success=False), (1, 0, 0, 0.0)),
        (act("BUY", success=False, ticker="BTC", result={"price": 1.0}), (1, 0, 0, 0.0)),
        (act("HOLD", success=False), (0, 0, 0, 0.0)),
        ({}, (0, 0, 0, 0.0)),
    ],
)
def test_a_decision_is_counted_for_what_it_says(action: Json, expected: tuple[object, ...]) -> None:
    counted = count_decisions([a_trajectory(decisions=(action,))], OUTCOMES)
    assert counted.decisions == 1
    assert (counted.invalid, counted.timed, counted.timed_right, counted.volume_usd) == expected
