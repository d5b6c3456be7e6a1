"""Both generations of the game, through a role that may only read: dispositions, windows, groups, P&L and outcomes."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.pipeline import checks
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.pipeline.outcomes import snapshot_outcomes
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.row_outcomes import row_outcomes_of
from babylon_rl.types import Json
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import WINDOW
from babylon_rl_tests.postgres.games import (
    G1,
    G2,
    Game,
    a_game,
    a_game_call,
    a_game_row,
    a_game_step,
    a_reward_judgment,
    open_read_only,
)

NEXT = WINDOW.next()
NOW = WINDOW.start_at + timedelta(days=1)
# What each agent earned: before the window, and in its three ticks of the hour.
GAINS = {
    "agent-0": (500.0, [10.0, -4.0, 7.5]),
    "agent-1": (-20.0, [0.0, 0.0, 0.0]),
    "agent-2": (0.0, [-100.0, 33.25, 1.0]),
    "agent-3": (12.5, [1.0, 1.0, 1.0]),
    "agent-4": (0.0, [250.0, -250.0, 80.0]),
}
PRICES = {"BTC": (64000.0, 64800.5), "ETH": (3000.0, 2925.0)}


@pytest.fixture(params=[(G1, "UTC"), (G2, "UTC"), (G2, "America/New_York")], ids=["g1", "g2", "g2-new-york"])
def game(request: pytest.FixtureRequest, server_url: str) -> Iterator[Game]:
    generation, zone = request.param
    with a_game(server_url, generation, zone=zone) as game:
        yield game


@pytest.fixture
def workspace(game: Game, empty_database_url: str, tmp_path: Path) -> Iterator[Workspace]:
    with open_read_only(game, empty_database_url, tmp_path) as w:
        yield w


def at(minutes: float) -> datetime:
    return WINDOW.start_at + timedelta(minutes=minutes)


def played_rows(game: Game) -> list[Json]:
    """Three ticks of five agents, each row with the lifetime P&L so far, as live rows have it."""
    rows = []
    for agent, (before, gains) in GAINS.items():
        lifetime = before
        for tick, gain in enumerate(gains):
            start = at(4 + 25 * tick)
            calls = [a_game_call(f'{{"action":"HOLD","tick":{tick}}}', user=f"{agent} at tick {tick}")]
            if tick == 1:  # a plan, and a decision whose purpose is not `action`
                calls = [
                    a_game_call("I should wait.", purpose="reasoning"),
                    a_game_call('{"action":"HOLD","tick":1}', purpose="other", user=f"{agent} at tick 1"),
                ]
            if tick == 2 and game.generation.is_second:  # a retry
                calls = [a_game_call("no JSON", user=f"{agent} at tick 2"), *calls]
            step = a_game_step(start, *calls, pnl=lifetime)
            lifetime += gain
            rows.append(a_game_row(game, agent, start, [step], pnl=lifetime))
    return rows


def odd_rows(game: Game) -> dict[str, tuple[Json, str, HourWindow]]:
    """Rows by what they are, with the outcome that each must have, and its window."""
    call = a_game_call('{"action":"HOLD"}')
    step = a_game_step(at(10), call)
    second = game.generation.is_second
    crossing = a_game_row(game, "agent-0", at(59), [a_game_step(at(59), call, pnl=513.5)], end=at(61), pnl=520.0)
    snake = {
        "step_number": 0,
        "timestamp": step["timestamp"],
        "environment_state": {"agent_balance": 900, "agent_pnl": 3},
        "llm_calls": [
            {
                "model": "m",
                "model_version": "v7",
                "system_prompt": "You trade.",
                "user_prompt": "Snakes: …",
                "response": "HOLD",
                "purpose": "action",
            }
        ],
        "action": {"action_type": "HOLD", "parameters": {}, "success": True},
    }
    batch = [
        a_game_step(
            at(30),
            a_game_call(
                "feeling bullish", user=f"NPC: {n}, Action: open_long, Market: BTC", model="market-decision-model"
            ),
            balance=0,
            pnl=0,
            action={"actionType": "open_long", "parameters": {"npcId": n, "npcName": n.upper()}, "success": True},
        )
        for n in ("ada", "bob", "cy")
    ]
    row = lambda agent, steps=(step,), **columns: a_game_row(game, agent, at(10), steps, **columns)  # noqa: E731
    half_emoji = json.dumps([a_game_step(at(10), a_game_call("to the moon \ud83d"))])
    odd: dict[str, tuple[Json, str, HourWindow]] = {
        "crossing": (
            crossing,
            "grouped/has_turn" if second else "ineligible/too_few_agents",
            WINDOW if second else NEXT,
        ),
        "without windowId": (row("agent-5", windowId=None), "grouped/has_turn", WINDOW),
        "another scenario's hour": (
            row("agent-6", scenarioId=str(NEXT)),
            "grouped/has_turn",
            WINDOW,
        ),
        "snake_case": (row("agent-7", [snake], pnl=5.0), "grouped/has_turn", WINDOW),
        "crashed": (row("agent-8", []), "quarantined/no_steps", WINDOW),
        "idle": (row("agent-9", [a_game_step(at(10))]), "quarantined/no_llm_calls", WINDOW),
        "half an emoji": (row("agent-8", half_emoji), "quarantined/lone_surrogate", WINDOW),
        "cut off": (row("agent-8", json.dumps([step])[:-40]), "quarantined/bad_json", WINDOW),
        "benchmark": (row("agent-8", scenarioId="benchmark-1"), "excluded/benchmark", WINDOW),
        "evaluation": (row("agent-8", metadata={"isEvaluation": True}), "excluded/evaluation", WINDOW),
        "withheld": (row("agent-8", metadata={"isTrainingData": False}), "excluded/not_training_data", WINDOW),
        "flagged": (row("agent-8", isTrainingData=False), "excluded/not_training_data", WINDOW),
        "NPC batch": (
            row("market-decision-engine", batch, pnl=0.0 if second else None, finalBalance=0.0),
            "excluded/many_characters",
            WINDOW,
        ),
        "batch by another name": (
            row("npc-runner", [{**s, "llmCalls": [call]} for s in batch], pnl=None),
            "excluded/many_characters",
            WINDOW,
        ),
    }
    return odd


def play(game: Game) -> tuple[list[Json], dict[str, tuple[Json, str, HourWindow]]]:
    rows, odd = played_rows(game), odd_rows(game)
    everything = [*rows, *(r for r, _, _ in odd.values())]
    game.insert("trajectories", *everything)
    if game.generation.is_second:
        game.insert("reward_judgments", *map(a_reward_judgment, everything))
    game.insert("market_outcomes", *outcome_rows(game))
    return rows, odd


def outcome_rows(game: Game) -> list[Json]:
    late, early = (game.now_at(WINDOW.end_at + timedelta(minutes=m)) for m in (20, -20))
    rows: list[Json] = []
    for ticker, (start, end) in PRICES.items():
        known: Json = {"windowId": str(WINDOW), "stockTicker": f"${ticker}", "startPrice": start, "endPrice": end}
        change: float | None = round((end / start - 1) * 100, 2)
        if game.generation.is_second and ticker == "ETH":
            change = float("nan")
        rows += [
            {"id": ticker, **known, "changePercent": change, "createdAt": late},
            # Frozen in the open hour: by the server's own clock it was written before the end.
            {"id": f"{ticker}-open", **known, "endPrice": start, "changePercent": 0, "createdAt": early},
        ]
    return rows


def test_every_row_has_the_outcome_that_the_facts_demand(game: Game, workspace: Workspace) -> None:
    rows, odd = play(game)
    before = game.fingerprint()
    for w in (WINDOW, NEXT):
        ingest_window(w, workspace.game, workspace.store)
        snapshot_outcomes(w, workspace.game, workspace.store, now=NOW, sync=workspace.owns_game)
        group_window(w, workspace.store, min_agents=5)
    found = {
        o.source_id: (f"{o.status}/{o.reason}", o.window_id)
        for w in (WINDOW, NEXT)
        for o in row_outcomes_of(workspace.store.engine, w)
    }
    names = {r["id"]: name for name, (r, _, _) in odd.items()}
    assert {names[i]: f for i, f in found.items() if i in names} == {n: (o, str(w)) for n, (_, o, w) in odd.items()}
    assert {found[r["id"]] for r in rows} == {("grouped/has_turn", str(WINDOW))}
    assert len(found) == len(rows) + len(odd)
    assert game.fingerprint() == before  # the game's tables are as they were


def test_groups_and_pnl_are_what_the_agents_did(game: Game, workspace: Workspace) -> None:
    play(game)
    ingest_window(WINDOW, workspace.game, workspace.store)
    snapshot_outcomes(WINDOW, workspace.game, workspace.store, now=NOW, sync=False)
    group_window(WINDOW, workspace.store, min_agents=5)
    group, hindsight = workspace.store.group(WINDOW), workspace.store.hindsight(WINDOW)
    assert group is not None
    assert hindsight is not None
    second = game.generation.is_second
    assert [m.agent_id for m in group.members] == [f"agent-{i}" for i in range(8)]
    assert {m.archetype for m in group.members} == ({"trader"} if second else {None})
    expected: dict[str, Any] = {f"{WINDOW}/{a}": sum(gains) for a, (_, gains) in GAINS.items()}
    if second:  # the tick that crossed the hour began in it
        expected[f"{WINDOW}/agent-0"] += 520.0 - 513.5
    expected |= {f"{WINDOW}/agent-5": 0.0, f"{WINDOW}/agent-6": 0.0, f"{WINDOW}/agent-7": 5.0 - 3.0}
    assert {m.trajectory_id: m.pnl_usd for m in hindsight.members} == pytest.approx(expected)
    said = {m.agent_id: [t.response for t in m.turns] for m in group.members}
    assert said["agent-1"] == [f'{{"action":"HOLD","tick":{i}}}' for i in range(3)]
    (snake,) = next(m for m in group.members if m.agent_id == "agent-7").turns
    assert (snake.user, snake.response, snake.policy_version) == ("Snakes: …", "HOLD", "v7")
    assert next(h for h in hindsight.members if h.trajectory_id.endswith("agent-7")).start_balance_usd == 900
    with workspace.game.connect() as conn:
        assert checks.only_what_was_logged(conn, WINDOW, group, hindsight).passed
        outcomes = row_outcomes_of(workspace.store.engine, WINDOW)
        assert checks.every_row_accounted(conn, WINDOW, workspace.store.rows_read(WINDOW), outcomes).passed


def test_outcomes_are_those_written_after_the_hour(game: Game, workspace: Workspace) -> None:
    play(game)
    result = snapshot_outcomes(WINDOW, workspace.game, workspace.store, now=NOW, sync=False)
    stocks = {s.ticker: (s.start_price, s.end_price, s.change_pct) for s in workspace.store.outcomes(WINDOW).stocks}
    for ticker, (start, end) in PRICES.items():
        assert stocks[ticker] == pytest.approx((start, end, (end / start - 1) * 100), abs=0.005)
    assert result.facts["written_before_close"] == len(PRICES)
    assert result.facts.get("created_at_off_utc_min", 0) == (-300 if game.zone == "America/New_York" else 0)


def test_rewards_of_the_game_are_no_judgment_of_ours(game: Game, workspace: Workspace) -> None:
    def groups() -> tuple[Any, Any, Any]:
        ingest_window(WINDOW, workspace.game, workspace.store)
        snapshot_outcomes(WINDOW, workspace.game, workspace.store, now=NOW, sync=False)
        made = group_window(WINDOW, workspace.store, min_agents=5)
        return made.data_version, workspace.store.group(WINDOW), workspace.store.hindsight(WINDOW)

    play(game)
    before = groups()
    game.run(
        """UPDATE trajectories SET "aiJudgeReward" = 0.99, "aiJudgeReasoning" = 'canary-reward', "judgedAt" = now()"""
    )
    game.run("UPDATE reward_judgments SET \"overallScore\" = 0.01, reasoning = 'canary-reward'")
    assert groups() == before
    assert "canary-reward" not in repr(before[1:])
    assert workspace.store.judgment(WINDOW) is None


def test_a_label_that_names_an_id_is_no_leak(server_url: str, empty_database_url: str, tmp_path: Path) -> None:
    """An agent is shown whom it talks to; that they were red is what it could not know."""
    stranger, secret = "2011000000000000042", "BTC falls at 10:40"
    with a_game(server_url, G2) as game, open_read_only(game, empty_database_url, tmp_path) as w:
        labels: Json = {"interactionLabels": [{"counterpartyId": stranger}], "redTeamNpcIds": [stranger]}
        steps = [a_game_step(at(1), a_game_call("HOLD", user=f"A message of {stranger}: …"))]
        rows = [a_game_row(game, f"agent-{i}", at(1), steps, metadata=labels) for i in range(5)]
        game.insert("trajectories", *rows)

        def check() -> Any:
            ingest_window(WINDOW, w.game, w.store)
            group_window(WINDOW, w.store, min_agents=5)
            with w.game.connect() as conn:
                return checks.only_what_was_logged(conn, WINDOW, w.store.group(WINDOW), w.store.hindsight(WINDOW))

        assert check().passed
        game.run(f"""UPDATE trajectories SET "metadataJson" = '{{"gameKnowledge": {{"x": "{secret}"}}}}'""")
        game.run(f"""UPDATE trajectories SET "stepsJson" = replace("stepsJson", 'A message', '{secret}')""")
        assert check().facts["leaks"] == [f"{WINDOW}/agent-{i} turn 0" for i in range(5)]
