"""Rows as they occur in practice: each is read or set aside with a reason; none is lost, and none affects another."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from babylon_rl.common.canonical import to_json
from babylon_rl.ingest.columns import find_column_names
from babylon_rl.ingest.queries import select_window, window_expression, window_of, window_parameters
from babylon_rl.ingest.reader import logged_messages
from babylon_rl.ingest.rows import EnvironmentState, SourceRow
from babylon_rl.ingest.stitching import stitch
from babylon_rl.types import RowOutcome
from babylon_rl_tests.factories import (
    WINDOW,
    a_json_call,
    a_json_step,
    a_row,
    insert_call_log,
    insert_row,
    insert_rows,
    read_rows,
)

BENCHMARK = {"scenario_id": "benchmark-42"}


def read(engine: sa.Engine) -> tuple[list[SourceRow], list[RowOutcome]]:
    with engine.connect() as conn:
        return read_rows(conn, WINDOW)


def step_with(**call: Any) -> list[Any]:
    return [a_json_step(llmCalls=[a_json_call(**call)])]


BAD: list[tuple[str, dict[str, Any], tuple[str, str]]] = [
    ("empty steps", {"steps_json": []}, ("quarantined", "no_steps")),
    ("null steps", {"steps_json": "null"}, ("quarantined", "no_steps")),
    ("empty text", {"steps_json": ""}, ("quarantined", "bad_json")),
    ("truncated", {"steps_json": json.dumps([a_json_step()])[:-9]}, ("quarantined", "bad_json")),
    ("too deep", {"steps_json": "[" * 100_000}, ("quarantined", "bad_json")),
    ("an object", {"steps_json": {"0": 1}}, ("quarantined", "bad_shape")),
    ("steps of numbers", {"steps_json": [1, 2]}, ("quarantined", "bad_shape")),
    ("action a number", {"steps_json": [a_json_step(action=7)]}, ("quarantined", "bad_shape")),
    ("response an object", {"steps_json": step_with(response={"a": 1})}, ("quarantined", "bad_shape")),
    ("calls an object", {"steps_json": [a_json_step(llmCalls={"a": 1})]}, ("quarantined", "bad_shape")),
    ("deep environment", {"steps_json": "[" + '{"environmentState":' * 900 + "1" + "}" * 900 + "]"}, None),  # type: ignore[list-item]
    ("sliced emoji said", {"steps_json": step_with(response="to the \ud83d")}, ("quarantined", "lone_surrogate")),
    ("sliced emoji seen", {"steps_json": step_with(userPrompt="\ude00 moon")}, ("quarantined", "lone_surrogate")),
    ("no calls", {"steps_json": [a_json_step(llmCalls=[])]}, ("quarantined", "no_llm_calls")),
    ("calls missing", {"steps_json": [{"stepNumber": 0}]}, ("quarantined", "no_llm_calls")),
    ("never answered", {"steps_json": step_with(response=None)}, ("quarantined", "no_llm_calls")),
    ("benchmark", BENCHMARK, ("excluded", "benchmark")),
    ("benchmark and empty", BENCHMARK | {"steps_json": []}, ("excluded", "benchmark")),
    ("evaluation", {"is_evaluation": True}, ("excluded", "evaluation")),
    ("not training data", {"is_training_data": False}, ("excluded", "not_training_data")),
]


def test_every_bad_row_is_set_aside_and_costs_no_sibling(engine: sa.Engine) -> None:
    good = [insert_row(engine, f"good-{i}") for i in range(2)]
    insert_rows(engine, [a_row(name, **changes) for name, changes, _ in BAD])
    rows, aside = read(engine)
    assert {r.source_id for r in rows} == {g["id"] for g in good}
    found = {d.agent_id: (d.status, d.reason) for d in aside}
    assert found == {name: end or found[name] for name, _, end in BAD}
    assert found["deep environment"][0] == "quarantined"
    assert len(rows) + len(aside) == len(BAD) + 2


ODD: list[tuple[str, dict[str, Any]]] = [
    ("encoded twice", {"steps_json": json.dumps(json.dumps([a_json_step()]))}),
    ("NaN", {"steps_json": json.dumps([a_json_step(environmentState={"agentBalance": float("nan"), "agentPnL": 1})])}),
    ("sliced emoji in a result", {"steps_json": [a_json_step(action={"actionType": "POST", "result": "\ud83d"})]}),
    ("sliced emoji in metadata", {"metadata_json": {"gameKnowledge": {"note": "\ud83d"}}}),
    ("NUL", {"steps_json": step_with(response="a\x00b")}),
    ("null final", {"final_pnl": None, "final_balance": None, "end_time": None}),
    ("infinite", {"final_pnl": float("inf")}),
    ("float latency", {"steps_json": step_with(latencyMs=12.75, purpose="other")}),
    ("parameters as text", {"steps_json": [a_json_step(action={"actionType": "BUY", "parameters": '{"size":1}'})]}),
    ("parameters of a megabyte", {"steps_json": [a_json_step(action={"actionType": "X", "parameters": "x" * 10**6})]}),
    ("metadata no JSON", {"metadata_json": "{"}),
    ("huge number", {"steps_json": [a_json_step(stepNumber=1e308, timestamp=1e300, reward=10**400)]}),
    ("second writer", {"steps_json": [a_json_step(stepId="s", observation={"a": 1}, done=False, status="pending")]}),
    ("missing keys", {"steps_json": [{"llmCalls": [a_json_call()]}]}),
]


def test_odd_but_sound_rows_are_read_and_kept_canonical(engine: sa.Engine) -> None:
    insert_rows(engine, [a_row(name, **changes) for name, changes in ODD])
    rows, aside = read(engine)
    assert aside == []
    by_agent = {r.agent_id: r for r in rows}
    assert by_agent.keys() == {name for name, _ in ODD}
    assert all(to_json(r) for r in rows)  # UTF-8 can hold all that is kept
    assert by_agent["NaN"].steps[0].environment == EnvironmentState(balance_usd=None, lifetime_pnl_usd=1.0)
    assert by_agent["huge number"].steps[0].at is None
    assert by_agent["infinite"].final_pnl is None
    assert (by_agent["null final"].final_pnl, by_agent["null final"].end_at) == (None, None)
    assert by_agent["encoded twice"].final_pnl == 0.0
    assert by_agent["parameters as text"].steps[0].action["parameters"] == {"size": 1}
    assert by_agent["NUL"].steps[0].llm_calls[0].response == "a\x00b"
    assert by_agent["float latency"].steps[0].llm_calls[0].model_version == "babylon-mmo@0"


def test_an_instant_beyond_the_calendar_costs_its_own_row_only(engine: sa.Engine) -> None:
    """PostgreSQL holds `infinity`, BC and the year 294276; read bare, one of them fails the whole window."""
    beyond = ["infinity", "-infinity", "0044-03-15 12:00 BC", "294276-12-31 23:59"]
    insert_row(engine, "good")
    insert_rows(engine, [a_row(f"ends {at}", end_time=at) for at in beyond])
    insert_rows(engine, [a_row(f"starts {at}", start_time=at) for at in beyond])
    silent = insert_row(engine, "logged", steps_json=[a_json_step(llmCalls=[])])
    insert_call_log(engine, silent["trajectory_id"], timestamp="infinity", response="said")
    rows, aside = read(engine)
    assert {r.agent_id: r.end_at is None for r in rows} == {
        "good": False,
        "logged": False,
        **{f"ends {at}": True for at in beyond},
    }
    assert {(d.agent_id, d.status, d.reason) for d in aside} == {
        (f"starts {at}", "quarantined", "bad_time") for at in beyond
    }


def test_calls_only_in_the_log_are_given_to_their_steps(engine: sa.Engine) -> None:
    steps = [a_json_step(i, llmCalls=[], stepId=f"step-{i}") for i in range(3)]
    for s in steps[1:]:
        del s["stepId"]
    row = insert_row(engine, "a", steps_json=steps)
    other = insert_row(engine, "b", steps_json=[a_json_step(llmCalls=[])])
    at = WINDOW.start_at.replace(tzinfo=None)
    insert_call_log(
        engine, row["trajectory_id"], step_id="step-0", response="named", timestamp=at + timedelta(minutes=59)
    )
    insert_call_log(engine, row["trajectory_id"], step_id="?", response="by time", timestamp=at + timedelta(minutes=41))
    insert_call_log(engine, row["trajectory_id"], step_id="?", response="", timestamp=at)
    rows, aside = read(engine)
    said = [[(c.response, c.model_version) for c in s.llm_calls] for s in rows[0].steps]
    assert said == [[("named", "babylon-mmo@2")], [], [("by time", "babylon-mmo@2")]]
    assert [(d.source_id, d.reason) for d in aside] == [(other["id"], "no_llm_calls")]


def test_a_logged_call_says_that_its_answer_was_cut(engine: sa.Engine) -> None:
    for agent, tokens in (("cut", 64), ("whole", 40)):
        row = insert_row(engine, agent, steps_json=[a_json_step(llmCalls=[])])
        insert_call_log(engine, row["trajectory_id"], max_tokens=64, completion_tokens=tokens)
    assert {t.agent_id: t.turns[0].is_cut for t in stitch(read(engine)[0])} == {"cut": True, "whole": msgspec.UNSET}


def test_the_log_adds_nothing_to_a_row_whose_steps_have_calls(engine: sa.Engine) -> None:
    row = insert_row(engine)
    insert_call_log(engine, row["trajectory_id"], response="again")
    assert [c.response for s in read(engine)[0][0].steps for c in s.llm_calls] == ['{"action":"HOLD"}']


def test_rows_are_of_exactly_one_window_by_the_documented_rule(engine: sa.Engine) -> None:
    start = WINDOW.start_at.replace(tzinfo=None)
    last = start + timedelta(minutes=59, seconds=59, milliseconds=999)
    insert_row(engine, "own id", start_time=start - timedelta(hours=5))
    insert_row(engine, "successor", window_id="2025-01-15-10", start_time=start - timedelta(hours=5))
    insert_row(engine, "null", window_id=None, start_time=last)
    insert_row(engine, "fixed test id", window_id="test-window", start_time=start)
    insert_row(engine, "next hour", window_id=None, start_time=start + timedelta(hours=1))
    insert_row(engine, "other id", window_id="2025-01-15T11:00", start_time=start)
    insert_row(engine, "scenario only", window_id=None, start_time=start - timedelta(hours=1))
    with engine.connect() as conn:
        found = [Counter(r.agent_id for r in read_rows(conn, w)[0]) for w in WINDOW.next(-1).until(WINDOW.next())]
    assert found == [
        {"scenario only": 1},
        {"own id": 1, "successor": 1, "null": 1, "fixed test id": 1},
        {"next hour": 1, "other id": 1},
    ]


window_ids = st.one_of(
    st.none(),
    st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",)), max_size=20),
    st.from_regex(r"[0-9]{4}-[01][0-9]-[0-3][0-9](T[0-2][0-9]:[0-5]0|-[0-2][0-9])", fullmatch=True),
    st.builds(
        "{:04d}-02-29{}".format, st.integers(0, 9999), st.sampled_from(["T00:00", "-23", "T24:00", "-7", "T10:00\n"])
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(window_ids, st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1))),  # noqa: DTZ001
        min_size=1,
        max_size=30,
    )
)
def test_sql_and_python_agree_on_a_rows_window(engine: sa.Engine, rows: list[tuple[str | None, datetime]]) -> None:
    with engine.connect() as conn:
        query = (
            f"SELECT {window_expression(find_column_names(conn))} FROM unnest(%s::text[], %s::timestamp[]) "
            "WITH ORDINALITY AS r(window_id, start_time, n) ORDER BY n"
        )
        in_sql = conn.exec_driver_sql(query, ([w for w, _ in rows], [s for _, s in rows])).scalars().all()
    assert in_sql == [str(window_of(w, s.replace(tzinfo=UTC))) for w, s in rows]


def test_reading_a_window_uses_indexes(engine: sa.Engine) -> None:
    """Guards the split WHERE: filtering by the bare rule reads the whole table for every hour."""

    with engine.begin() as conn:
        conn.exec_driver_sql("SET LOCAL enable_seqscan = off")
        statement = "EXPLAIN " + select_window(find_column_names(conn))
        plan = conn.exec_driver_sql(statement, window_parameters(WINDOW)).scalars().all()
    text = "\n".join(plan)
    assert "ix_trajectories_window_agent" in text
    assert "ix_trajectories_start_time" in text


def test_logged_messages_are_what_agents_saw_and_said(engine: sa.Engine) -> None:
    insert_row(engine, "a", steps_json=[a_json_step(llmCalls=[a_json_call("x", "reasoning"), a_json_call("y")])])
    with engine.connect() as conn:
        assert logged_messages(conn, WINDOW) == {("a", "You trade.", "Markets: …", r) for r in "xy"}


@pytest.mark.parametrize("order", [1, -1])
def test_rows_come_in_one_order_however_they_were_written(engine: sa.Engine, order: int) -> None:
    rows = [a_row("a", tick=t, id=str(100 + t)) for t in range(3)]
    insert_rows(engine, rows[::order])
    assert [r.source_id for r in read(engine)[0]] == ["100", "101", "102"]
