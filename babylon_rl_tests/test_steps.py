"""The fast and the tolerant parser of `stepsJson` give the same result."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.ingest import steps
from babylon_rl.ingest.steps import BadRowError, parse_steps, parse_steps_slowly
from babylon_rl.ingest.stitching import LONGEST_TEXT, stitch
from babylon_rl_tests.factories import a_json_call, a_json_step, a_source_row, a_step

odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=9),
    st.just({}),
    st.just([]),
    st.just({"a": '{"b": 1}'}),
    st.just('{"encoded": [1]}'),
    st.just([{"response": "x"}]),
)
STEP_KEYS = [*a_json_step(), "observation", "stepId", "trustState", "counterpartyContext"]
STEP_KEYS += ["llm_calls", "environment_state", "step_number"]
CALL_KEYS = [*a_json_call(), "system_prompt", "user_prompt", "model_version"]
ACCOUNT = st.dictionaries(st.sampled_from(["agentBalance", "agentPnL", "agent_balance", "agent_pnl"]), odd, max_size=4)


def result(parse: Any, text: bytes) -> Any:
    try:
        return parse(text)
    except BadRowError as e:
        return e.reason


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.sampled_from(STEP_KEYS), odd, max_size=4),
    st.dictionaries(st.sampled_from(CALL_KEYS), odd, max_size=4),
    st.sets(st.sampled_from(STEP_KEYS), max_size=2),
    st.sets(st.sampled_from(CALL_KEYS), max_size=3),
    ACCOUNT,
)
def test_both_parsers_give_the_same_result(
    step: dict[str, Any], call: dict[str, Any], missing: set[str], without: set[str], account: dict[str, Any]
) -> None:
    calls = [{k: v for k, v in a_json_call(**call).items() if k not in without}]
    own = {"environmentState": account, "environment_state": account, "llmCalls": calls, "llm_calls": calls}
    given_steps = [{k: v for k, v in (a_json_step() | own | step).items() if k not in missing}]
    text = json.dumps(given_steps).encode()
    assert result(parse_steps, text) == result(parse_steps_slowly, text)


def test_a_valid_row_takes_the_fast_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(text: Any) -> Any:
        raise AssertionError(f"read slowly: {bytes(text)[:80]!r}")

    monkeypatch.setattr(steps, "parse_steps_slowly", slowly)
    sound = [a_json_step(0), a_json_step(1, reward=None, stepId="s", observation={"a": 1}, llmCalls=[])]
    assert len(parse_steps(memoryview(json.dumps(sound).encode()))) == 2


def test_long_parameters_are_cut_but_what_was_said_never_is() -> None:
    long = "x" * 1_000_000
    action = {"actionType": "POST", "parameters": {"note": [long]}}
    (made,) = stitch([a_source_row("a", a_step(action=action))])
    (note,) = made.decisions[0]["parameters"]["note"]
    assert len(note) < LONGEST_TEXT + 40
    assert note.endswith("(1,000,000 characters)")


def in_snake_case(value: Any) -> Any:
    """The same JSON with its keys in snake_case, as another writer spells them."""
    if isinstance(value, list):
        return [in_snake_case(v) for v in value]
    if not isinstance(value, dict):
        return value
    names = {"agentPnL": "agent_pnl"}
    return {
        names.get(k) or "".join(f"_{c.lower()}" if c.isupper() else c for c in k): in_snake_case(v)
        for k, v in value.items()
    }


def test_whole_steps_in_snake_case_are_read_as_the_others() -> None:
    calls = [a_json_call("think", "reasoning"), a_json_call("act", model="m")]
    sound = [a_json_step(0, llmCalls=calls, trustState={"a": 1}), a_json_step(1, counterpartyContext={"b": 2})]
    read = parse_steps(json.dumps(sound).encode())
    assert [len(s.llm_calls) for s in read] == [2, 1]
    assert parse_steps(json.dumps(in_snake_case(sound)).encode()) == read
    assert read[0].environment.balance_usd == 10_000
    # Only parts of it, as a writer in two languages leaves them.
    for part in ("llmCalls", "environmentState"):
        mixed = [{**{k: v for k, v in s.items() if k != part}, **in_snake_case({part: s[part]})} for s in sound]
        assert parse_steps(json.dumps(mixed).encode()) == read
    inside = [s | {"environmentState": in_snake_case(s["environmentState"])} for s in sound]
    assert parse_steps(memoryview(json.dumps(inside).encode())) == read
    inside = [s | {"llmCalls": in_snake_case(s["llmCalls"])} for s in sound]
    assert parse_steps(json.dumps(inside)) == read
