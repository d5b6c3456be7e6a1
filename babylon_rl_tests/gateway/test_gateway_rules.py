"""The gateway's rules without a socket: who answers, what is read, when an upstream is left alone."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from babylon_rl.deployment.stages import Arm, Deployment, Stage, place_of
from babylon_rl.errors import ConfigError
from babylon_rl.gateway.access import Access, check_address
from babylon_rl.gateway.breaker import FIRST_REST_S, LONGEST_REST_S, Breaker
from babylon_rl.gateway.calls import new_call_id
from babylon_rl.gateway.heard import Heard
from babylon_rl.gateway.reading import Asked
from babylon_rl.gateway.routing import Route, choose_route, names_of
from babylon_rl.gateway.sse import EventReader
from babylon_rl.gateway.state import ServedState
from babylon_rl.policy.wire import RequestError
from babylon_rl.settings import Settings
from babylon_rl.store.ledger_identity import RecordedCheckpoint

AT = datetime(2025, 1, 15, 10, 59, 59, tzinfo=UTC)
ASKED: dict[str, Any] = {"model": "mmo", "messages": [{"role": "user", "content": "?"}]}
CANARY = Deployment(
    lineage="mmo",
    number=4,
    stage=Stage.CANARY,
    incumbent=2,
    candidate=3,
    rollout="r",
    threshold=0.5,
    test_threshold=1.0,
)


def recorded(step: int) -> RecordedCheckpoint:
    return RecordedCheckpoint(lineage="mmo", step=step, trainer="cpu", path="p", manifest={}, trained_at=AT)


STATE = ServedState(
    deployment=CANARY, servable=frozenset({0, 2, 3}), policies={s: recorded(s) for s in (1, 2, 3, 4)}, read_at=AT
)


def read(body: Any = ASKED, **headers: str) -> Asked:
    sent = [(f"X-Babylon-{k}".encode(), v.encode()) for k, v in headers.items()]
    return Asked.read(body if isinstance(body, bytes) else json.dumps(body).encode(), sent, AT)


def agent_at(*, below: bool) -> str:
    return next(a for a in map("agent-{}".format, range(100)) if (place_of("r", a) < 0.5) is below)


def test_an_agent_is_answered_by_its_arm() -> None:
    candidate = Route(step=3, arm=Arm.CANDIDATE, fallback=2)

    assert choose_route(STATE, "mmo", agent_at(below=True), ()) == candidate
    assert choose_route(STATE, "mmo", agent_at(below=False), ()) == Route(step=2, arm=Arm.INCUMBENT)
    assert choose_route(STATE, "mmo", agent_at(below=False), ("agent-*",)) == candidate
    assert choose_route(STATE, "mmo", None, ("*",)) == Route(step=2, arm=Arm.UNNAMED)
    assert choose_route(STATE, "mmo@03", agent_at(below=False), ()) == Route(step=3, arm=Arm.PINNED)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("mmo@1", "it was recorded, but it was never deployed or was rolled back"),
        ("mmo@9", "it was never recorded"),
        ("mmo@latest", "no policy of this gateway has that name"),
        ("other@2", "no policy of this gateway has that name"),
        ("gpt-4", "no policy of this gateway has that name"),
    ],
)
def test_what_is_not_servable_is_refused_by_name(model: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as e:
        choose_route(STATE, model, "a", ())

    assert (e.value.status, e.value.code) == (404, "model_not_found")
    assert "ask for one of mmo, mmo@0, mmo@2, mmo@3" in str(e.value)
    assert names_of(STATE) == ["mmo", "mmo@0", "mmo@2", "mmo@3"]


def test_headers_name_agent_window_and_trajectory() -> None:
    asked = read(
        ASKED | {"user": "not-me"}, agent=" ä-1 ", window="2025-01-15T03:00", trajectory="t/1", step="4", purpose="news"
    )

    assert (asked.agent_id, asked.window_id, asked.trajectory_id) == ("ä-1", "2025-01-15T03:00", "t/1")
    assert (asked.step_number, asked.purpose) == (4, "news")


def test_a_call_of_a_scenario_belongs_to_its_hour() -> None:
    """Deployment looks at whole hours: under another name, the call would count in none, and its hour would be waited for."""
    assert read(ASKED, window="2025-01-15T03:00~trust-attack").window_id == "2025-01-15T03:00"


def test_without_headers_user_names_the_agent() -> None:
    asked = read(ASKED | {"user": "me"})

    assert (asked.agent_id, asked.window_id, asked.trajectory_id) == ("me", "2025-01-15T10:00", None)
    assert (asked.step_number, asked.purpose, asked.stream, asked.limit) == (None, "action", False, None)
    assert read().agent_id is None


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{nonsense", "the body is not JSON"),
        (b"[]", "JSON, but no object"),
        (b'{"model": NaN}', "the body is not JSON"),
        (ASKED | {"model": None}, "model is missing"),
        (ASKED | {"messages": []}, "messages is missing"),
        (ASKED | {"messages": ["x"]}, "messages is missing"),
        (ASKED | {"stream": "yes"}, "stream is missing or of another kind"),
        (ASKED | {"temperature": 3}, "temperature is"),
        (ASKED | {"temperature": True}, "temperature is"),
        (ASKED | {"max_tokens": 0}, "max_tokens is"),
        (ASKED | {"user": "a\x00b"}, "user is"),
        (ASKED | {"user": "a" * 300}, "user is"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(body: Any, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence) as e:
        read(body)

    assert e.value.status == 400


@pytest.mark.parametrize(("name", "value"), [("window", "2025-01-15T03:30"), ("step", "-1"), ("agent", "a" * 257)])
def test_a_header_that_cannot_be_read_is_refused(name: str, value: str) -> None:
    with pytest.raises(RequestError) as e:
        read(**{name: value})

    assert e.value.status == 400


def test_an_upstream_gets_every_field_and_our_limits() -> None:
    odd = ASKED | {
        "x_odd": [1],
        "tools": [{}],
        "max_completion_tokens": 900,
        "messages": [{"role": "tool", "content": None}],
    }

    sent = read(odd).fields_for("lora", temperature=0.5, most_tokens=100)

    assert sent == odd | {"model": "lora", "temperature": 0.5, "max_completion_tokens": 100}
    assert read(ASKED | {"temperature": 0}).fields_for("m", temperature=0.5, most_tokens=7)["temperature"] == 0
    assert read().fields_for("m", temperature=0.5, most_tokens=7)["max_tokens"] == 7


def test_half_an_emoji_is_answered_and_passed_on_whole() -> None:
    body = b'{"model": "mmo", "messages": [{"role": "user", "content": "cut \\ud83d"}]}'

    assert read(body).fields["messages"] == [{"role": "user", "content": "cut \ufffd"}]


def test_every_limit_that_a_caller_names_is_kept() -> None:
    both = read(ASKED | {"max_completion_tokens": 900, "max_tokens": 800})

    sent = both.fields_for("m", temperature=0.5, most_tokens=100)

    assert (sent["max_completion_tokens"], sent["max_tokens"]) == (100, 100)
    assert read(ASKED | {"max_tokens": 8, "n": 3}).limit_of(100) == 24
    assert read(ASKED | {"n": "many"}).limit_of(100) == 100


def test_a_breaker_opens_rests_tries_once_and_closes() -> None:
    now = [0.0]
    breaker = Breaker(clock=lambda: now[0])

    for _ in range(3):
        assert breaker.lets_through()
        breaker.fail()
    assert not breaker.lets_through()
    now[0] += FIRST_REST_S
    assert breaker.lets_through()
    assert not breaker.lets_through(), "one call tries, the others do not wait for it"
    breaker.fail()
    now[0] += FIRST_REST_S
    assert not breaker.lets_through(), "each rest is longer than the one before"
    now[0] += FIRST_REST_S
    assert breaker.lets_through()
    breaker.let_go()
    assert breaker.lets_through(), "a try that says nothing leaves the next one free"
    breaker.succeed()
    assert breaker.lets_through()
    assert breaker.lets_through()


def test_a_breaker_never_rests_longer_than_its_limit() -> None:
    now = [0.0]
    breaker = Breaker(clock=lambda: now[0])

    for _ in range(20):
        now[0] += LONGEST_REST_S
        assert breaker.lets_through()
        breaker.fail()


def test_events_are_cut_wherever_their_bytes_end() -> None:
    stream = b': ping\r\n\r\nevent: x\r\ndata: {"a": "\xc3\xa4"}\r\n\r\ndata:1\ndata: 2\n\ndata: [DONE]\n\n'

    for size in (1, 2, 3, 7, len(stream)):
        reader = EventReader()
        pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert [e for p in pieces for e in reader.feed(p)] == [b'{"a": "\xc3\xa4"}', b"1\n2", b"[DONE]"]


def test_a_streamed_tool_call_is_put_together() -> None:
    heard = Heard()

    for delta in (
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "buy", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
    ):
        heard.take_chunk({"choices": [{"index": 0, "delta": delta}]})

    assert json.loads(heard.response) == {
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "buy", "arguments": '{"a":1}'}}]
    }
    assert heard.pieces == 3


def test_a_tool_call_of_any_shape_is_told() -> None:
    heard = Heard()
    heard.take_chunk({"choices": [{"delta": {"tool_calls": [{"index": [1], "function": ["buy"]}, {"function": "f"}]}}]})

    assert json.loads(heard.response) == {"tool_calls": [{"function": ["buy"]}, {"function": "f"}]}


def test_call_ids_sort_by_time_and_differ() -> None:
    ids = [new_call_id() for _ in range(1000)]

    assert len(set(ids)) == 1000
    assert {len(i) for i in ids} == {31}
    assert [i[:15] for i in ids] == sorted(i[:15] for i in ids)


def test_only_the_key_opens() -> None:
    key = Settings.load(BABYLON_GATEWAY_KEY="sk-right").gateway.key
    access = Access(key)

    access.check([(b"authorization", b"Bearer sk-right")])
    access.check([(b"Authorization", b"bearer sk-right")])
    Access(None).check([])
    for headers in ([], [(b"authorization", b"Bearer sk-wrong")], [(b"authorization", b"sk-right")]):
        with pytest.raises(RequestError, match="key is missing or wrong") as e:
            access.check(headers)
        assert (e.value.status, e.value.code) == (401, "invalid_api_key")


def test_others_are_listened_to_only_with_a_key() -> None:
    key = Settings.load(BABYLON_GATEWAY_KEY="sk-right").gateway.key

    check_address("0.0.0.0", key)
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
        check_address(host, None)
    for host in ("0.0.0.0", "::", "", "192.168.1.2", "example.org"):
        with pytest.raises(ConfigError, match="set BABYLON_GATEWAY_KEY, or listen on"):
            check_address(host, None)
    with pytest.raises(ConfigError, match="set and empty"):
        check_address("127.0.0.1", Settings.load(BABYLON_GATEWAY_KEY="").gateway.key)
