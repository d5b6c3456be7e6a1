"""From rows to a group: stitching, eligibility, accounting, and hindsight kept apart."""

import json
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.common.canonical import to_json
from babylon_rl.errors import DataError
from babylon_rl.grouping.groups import decide_row_outcomes, make_groups
from babylon_rl.grouping.hindsight import hindsight_for
from babylon_rl.ingest.rows import EnvironmentState, SourceRow
from babylon_rl.ingest.steps import parse_steps
from babylon_rl.ingest.stitching import is_usable, mark_as_read, stitch
from babylon_rl.types import (
    PredictionOutcome,
    RowReason,
    RowStatus,
    StockOutcome,
    Trajectory,
    TrajectoryGroup,
    WindowOutcomes,
)
from babylon_rl_tests.factories import WINDOW, a_call, a_json_step, a_source_row, a_step, a_trajectory, make_group

AGENTS = [f"agent-{i}" for i in range(5)]


def one(*rows: SourceRow) -> Trajectory:
    (made,) = stitch(rows)
    return made


# ── stitching ──────────────────────────────────────────────────────────────────────────────────────


@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_never_matters(r: random.Random) -> None:
    rows = [
        a_source_row(a, a_step(t, calls=[a_call(f"{a} says {t}")]), tick=t, source_id=f"{a}{t}", final_pnl=10.0 * t)
        for a in AGENTS
        for t in range(3)
    ]
    shuffled = r.sample(rows, len(rows))
    assert to_json(stitch(shuffled)) == to_json(stitch(rows))
    first = stitch(shuffled)[0]
    assert [t.response for t in first.turns] == [f"agent-0 says {t}" for t in range(3)]
    assert first.row_ids == ("agent-00", "agent-01", "agent-02")
    assert first.trajectory_id == "2025-01-15T10:00/agent-0"


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([a_call("think", "reasoning"), a_call("act", "action")], "act"),
        ([a_call("act", "action"), a_call("think", "reasoning")], "act"),
        ([a_call("first", "action"), a_call("retry", "action")], "retry"),
        ([a_call("act", "ACTION"), a_call("more", "other")], "act"),
        ([a_call("only", "other")], "only"),
        ([a_call("think", "reasoning")], None),
        ([a_call("one", "other"), a_call("two", "other", user_prompt="Another question")], None),
        ([a_call("one", "other"), a_call("two", "other", system_prompt="Another role")], None),
        ([a_call("bad", "other"), a_call("good", "other", user_prompt="Markets: …\n\nInvalid JSON.")], "good"),
        ([a_call("think", "reasoning"), a_call("act", "other")], "act"),
        ([a_call("act", "response"), a_call("think", "reasoning")], "act"),
        ([a_call("plan", "planning"), a_call("weigh", "evaluation")], "weigh"),
        ([a_call("weigh", "evaluation"), a_call("say", "response")], "say"),
        ([a_call("weigh", "evaluation"), a_call("do", "trade", user_prompt="Do it")], "do"),
        ([a_call("draft", "response"), a_call("final", "response", user_prompt="Again")], "final"),
        ([], None),
    ],
)
def test_the_turn_of_a_step_is_the_policys_call_and_no_other(calls: list[Any], expected: str | None) -> None:
    made = one(a_source_row("a", a_step(calls=calls)))
    assert [t.response for t in made.turns] == ([] if expected is None else [expected])
    assert is_usable(made) is (expected is not None)
    assert len(made.decisions) == len(made.turns)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(500.0, 520.0), (520.0, 470.0)], -30.0),  # lifetime P&L: last minus what it entered with, never the sum
        ([(0.0, 0.0)], 0.0),  # zero is known
        ([(500.0, None), (520.0, 470.0)], -30.0),
        ([(500.0, 520.0), (520.0, None)], 20.0),  # the last that is known
        ([(500.0, None)], None),
        ([(None, 520.0)], None),  # what it entered with is unknown: not the lifetime's 520, and not 0
        ([(None, 520.0), (None, 470.0)], -50.0),  # last minus first inside the window
        ([(None, None), (520.0, 470.0)], None),
        ([(None, None)], None),
    ],
)
def test_a_windows_pnl_is_a_difference_of_lifetime_pnl(
    rows: list[tuple[float | None, float | None]], expected: float | None
) -> None:
    made = [
        a_source_row("a", a_step(t, environment=EnvironmentState(lifetime_pnl_usd=e)), tick=t, final_pnl=f)
        for t, (e, f) in enumerate(rows)
    ]
    assert one(*reversed(made)).pnl_usd == expected


@pytest.mark.parametrize(("balance", "expected"), [(0, 0.0), (None, None), ("9500.5", 9500.5), ("?", None)])
def test_the_start_balance_is_what_the_first_step_saw(balance: Any, expected: float | None) -> None:
    texts = [json.dumps([a_json_step(t, environmentState={"agentBalance": b})]) for t, b in enumerate([balance, 1.0])]
    rows = [a_source_row("a", *parse_steps(text), tick=t) for t, text in enumerate(texts)]
    assert one(*rows).start_balance_usd == expected


def test_a_turn_carries_its_step_time_and_policy_version() -> None:
    silent = a_step(0, calls=[])
    spoken = a_step(1, calls=[a_call("act", model_version="babylon-mmo@4", temperature=0.5)])
    made = one(a_source_row("a", silent, spoken))
    (decision,) = made.decisions
    assert (decision["step"], decision["at"]) == (1, "2025-01-15T10:20:00+00:00")
    assert (made.turns[0].policy_version, made.turns[0].temperature) == ("babylon-mmo@4", 0.5)


# ── eligibility and accounting ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("agents", "grouped"), [(4, False), (5, True), (6, True)])
def test_a_group_needs_the_minimum_of_distinct_usable_agents(agents: int, grouped: bool) -> None:
    usable_ones = [a_trajectory(f"a{i}") for i in range(agents)]
    mute = [a_trajectory(f"mute{i}", turns=()) for i in range(9)]
    made = make_group(WINDOW, [*usable_ones, *mute], min_agents=5)
    assert (made is not None) is grouped
    if made is not None:
        assert [m.agent_id for m in made.members] == [f"a{i}" for i in range(agents)]


@given(st.permutations(AGENTS))
def test_a_group_is_the_same_however_its_trajectories_come(agents: list[str]) -> None:
    made = make_group(WINDOW, map(a_trajectory, agents), min_agents=5)
    assert to_json(made) == to_json(make_group(WINDOW, map(a_trajectory, AGENTS), min_agents=5))


def test_hindsight_does_not_change_the_group_id() -> None:
    base = [a_trajectory(a) for a in AGENTS]
    first = make_group(WINDOW, base, min_agents=5)
    assert first is not None
    richer = make_group(WINDOW, [replace(t, pnl_usd=7.0, game_knowledge={"x": 1}) for t in base], min_agents=5)
    other = make_group(WINDOW, [*base[:4], replace(base[4], turns=base[4].turns * 2)], min_agents=5)
    assert richer == first
    assert other is not None
    assert other.group_id != first.group_id
    window_id, _, digest = first.group_id.partition("#")
    assert (window_id, len(digest)) == ("2025-01-15T10:00", 12)


def test_another_windows_trajectory_or_an_agent_twice_is_refused() -> None:
    with pytest.raises(DataError, match="belongs to window"):
        make_group(WINDOW.next(), [a_trajectory("a")], min_agents=2)
    with pytest.raises(DataError, match="comes twice"):
        make_group(WINDOW, [a_trajectory("a"), a_trajectory("a")], min_agents=2)


@given(
    st.lists(st.tuples(st.sampled_from([*AGENTS, "agent-5"]), st.booleans()), max_size=20),
    st.integers(min_value=2, max_value=6),
)
def test_every_row_ends_in_exactly_one_outcome(ticks: list[tuple[str, bool]], min_agents: int) -> None:
    rows = [
        a_source_row(agent, a_step(i, calls=[a_call()] if spoken else []), source_id=f"{i:02d}")
        for i, (agent, spoken) in enumerate(ticks)
    ]
    trajectories = stitch(rows)
    group = make_group(WINDOW, trajectories, min_agents=min_agents)
    read = mark_as_read(rows)
    groups = [] if group is None else [group]
    outcomes = decide_row_outcomes(read, groups, trajectories)
    assert {o.status for o in read} <= {RowStatus.READ}
    assert [d.source_id for d in outcomes] == [r.source_id for r in rows]
    speakers = {a for a, spoken in ticks if spoken}
    for d, (agent, spoken) in zip(outcomes, ticks, strict=True):
        if len(speakers) >= min_agents and agent in speakers:
            assert group is not None
            expected = ("grouped", "has_turn") if spoken else ("grouped", "no_turn")
            assert (d.status, d.reason, d.group_id) == (*expected, group.group_id)
        else:
            assert (d.status, d.group_id) == ("ineligible", None)
            assert d.reason == ("too_few_agents" if spoken else "no_turns")
    # Grouped again, and no longer grouped: a row's outcome depends on the current group alone, not on the one before.
    assert decide_row_outcomes(outcomes, groups, trajectories) == outcomes
    assert decide_row_outcomes(outcomes, [], trajectories) == decide_row_outcomes(read, [], trajectories)


def test_accounting_leaves_what_reading_set_aside() -> None:
    rows = [a_source_row(a) for a in AGENTS]
    aside = replace(mark_as_read(rows[:1])[0], status=RowStatus.QUARANTINED, reason=RowReason.BAD_JSON)
    trajectories = stitch(rows)
    groups = make_groups(WINDOW, trajectories, min_agents=5)
    outcomes = decide_row_outcomes([aside, *mark_as_read(rows[1:])], groups, trajectories)
    assert Counter(d.reason for d in outcomes) == {"bad_json": 1, "has_turn": 4}


# ── hindsight ──────────────────────────────────────────────────────────────────────────────────────

CANARIES = [f"canary-{k}" for k in ("news", "question", "knowledge", "correctness", "result", "ticker")]
OUTCOMES = WindowOutcomes(
    window_id=str(WINDOW),
    stocks=(
        StockOutcome(ticker="canary-ticker", start_price=1.0, end_price=2.0, change_pct=100.0, news=("canary-news",)),
    ),
    predictions=(PredictionOutcome(market_id="m", question="canary-question", outcome="YES"),),
)


def test_hindsight_is_in_no_trained_message() -> None:
    action = {
        "actionType": "BUY",
        "parameters": {"ticker": "BTC"},
        "success": True,
        "result": {"note": "canary-result"},
        "correctness": {"note": "canary-correctness"},
    }
    metadata = {"gameKnowledge": {"trueProbabilities": {"m": "canary-knowledge"}}}
    rows = [a_source_row(a, a_step(action=action), metadata=metadata, final_pnl=777_001.0) for a in AGENTS]
    trajectories = stitch(rows)
    group = make_group(WINDOW, trajectories, min_agents=5)
    assert group is not None
    hindsight = hindsight_for(group, trajectories, OUTCOMES)

    trained, judged = to_json(group).decode(), to_json(hindsight).decode()
    assert [c for c in CANARIES if c in trained] == []
    assert [c for c in CANARIES if c not in judged] == []
    assert "777001" not in trained
    assert "777001" in judged
    assert [m.trajectory_id for m in hindsight.members] == [m.trajectory_id for m in group.members]


def test_hindsight_must_fit_its_window_and_members() -> None:
    trajectories = [a_trajectory(a) for a in AGENTS]
    group = make_group(WINDOW, trajectories, min_agents=5)
    assert group is not None
    with pytest.raises(DataError, match="outcomes of window"):
        hindsight_for(group, trajectories, WindowOutcomes(window_id=str(WINDOW.next())))
    with pytest.raises(DataError, match="'2025-01-15T10:00/agent-4' without a trajectory"):
        hindsight_for(group, trajectories[:4], WindowOutcomes(window_id=str(WINDOW)))


def test_an_archetype_is_the_newest_rows_and_in_no_groups_id() -> None:
    def group(*archetypes: str | None) -> TrajectoryGroup:
        rows = [
            a_source_row(f"agent-{i}", tick=tick, archetype=archetype)
            for i in range(5)
            for tick, archetype in enumerate(archetypes)
        ]
        made = make_group(WINDOW, stitch(rows), min_agents=5)
        assert made is not None
        return made

    assert {m.archetype for m in group("trader", "liar", None).members} == {"liar"}
    assert {m.archetype for m in group(None, None, None).members} == {None}
    assert group("trader", "liar", None).group_id == group(None, None, None).group_id


def test_labels_of_rows_are_joined_and_the_last_intent_counts() -> None:
    label = {"counterpartyId": "19", "counterpartyTeam": "red"}
    rows = [
        a_source_row(
            "a", tick=0, metadata={"interactionLabels": [label], "redTeamNpcIds": ["19"], "scenarioIntent": "attack"}
        ),
        a_source_row("a", tick=1, metadata={"interactionLabels": [], "redTeamNpcIds": ["20", "19"]}),
        a_source_row("a", tick=2, metadata={"interactionLabels": [{**label, "counterpartyId": "21"}]}),
    ]
    made = one(*rows)
    assert made.game_knowledge == {
        "interactionLabels": [label, {**label, "counterpartyId": "21"}],
        "redTeamNpcIds": ["19", "20"],
        "scenarioIntent": "attack",
    }
    assert rows[0].metadata["interactionLabels"] == [label]  # rows are left as they were
