"""The gateway before vLLM: requests and answers pass unchanged, and the incumbent answers for a candidate that cannot."""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import sqlalchemy as sa
from gateway_factories import LINEAGE, MESSAGES, gateway_in_thread, move, read_calls, record_remote, wait_until
from pydantic import SecretStr
from sqlalchemy.engine import make_url
from upstream_server import TOOL_CALL, USAGE, Upstream

from babylon_rl.database.connection import platform_url
from babylon_rl.deployment.stages import MoveKind, Stage, place_of
from babylon_rl.errors import ConfigError
from babylon_rl.gateway.answering import MOST_SHADOWS
from babylon_rl.gateway.follower import _identify
from babylon_rl.gateway.server import migrate_if_reachable
from babylon_rl.settings import Settings

KEY = "sk-the-gateways-own"
CANDIDATE, INCUMBENT = f"{LINEAGE}@2", f"{LINEAGE}@1"
IN_CANARY = next(a for a in map("agent-{}".format, range(99)) if place_of("r1", a) < 0.5)
OUTSIDE = next(a for a in map("agent-{}".format, range(99)) if place_of("r1", a) >= 0.5)


@pytest.fixture(scope="module")
def settings(shared_settings: Settings, one_upstream: Upstream) -> Settings:
    variables = {
        "BABYLON_TRAINER": "local",
        "BABYLON_BASE_MODEL": "org/base",
        "BABYLON_INFERENCE_URL": one_upstream.url,
        "BABYLON_GATEWAY_KEY": KEY,
        "BABYLON_UPSTREAM_TIMEOUT_S": 0.6,
        "BABYLON_GATEWAY_MAX_TOKENS": 50,
        "BABYLON_GATEWAY_KEEP_TEXT": "on",
    }
    return Settings.load(**(shared_settings.reveal() | variables))


@pytest.fixture(scope="module")
def url(settings: Settings, shared_engine: sa.Engine) -> Iterator[str]:
    for step in (1, 2, 3):
        record_remote(shared_engine, step)
    move(shared_engine, MoveKind.PROMOTED, 1, incumbent=1)
    canary = {"stage": Stage.CANARY, "incumbent": 1, "candidate": 2, "rollout": "r1", "threshold": 0.5}
    move(shared_engine, MoveKind.CANARY, 2, **canary)
    with gateway_in_thread(settings) as url:
        yield url


@pytest.fixture
def client(url: str, upstream: Upstream) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=20) as c:
        yield c


def post(url: str, **changes: Any) -> httpx.Response:
    body = {"model": LINEAGE, "messages": MESSAGES, "user": IN_CANARY} | changes
    return httpx.post(f"{url}/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"}, timeout=20)


def events_of(response: httpx.Response) -> list[Any]:
    lines = [line[6:] for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def text_of(response: httpx.Response) -> str:
    """The whole text of an answer, streamed or not."""
    if response.headers["content-type"] == "application/json":
        return str(response.json()["choices"][0]["message"]["content"])
    *chunks, _ = events_of(response)
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)


def test_unknown_fields_and_tools_pass_both_ways(url: str, upstream: Upstream) -> None:
    conversation = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
        {"role": "tool", "tool_call_id": "call_7", "content": [{"type": "text", "text": "bought"}]},
    ]
    tools = [{"type": "function", "function": {"name": "buy", "parameters": {"type": "object"}}}]

    got = post(url, messages=conversation, tools=tools, guided_json={"x": 1}, n=1, temperature=0.25, max_tokens=9)

    (asked,) = upstream.requests
    assert asked["model"] == CANDIDATE
    assert (asked["messages"], asked["tools"], asked["guided_json"]) == (conversation, tools, {"x": 1})
    assert (asked["temperature"], asked["max_tokens"], asked["user"]) == (0.25, 9, IN_CANARY)
    body = got.json()
    assert body["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
        "finish_reason": "stop",
        "x_choice": 1,
    }
    assert (body["x_unknown"], body["system_fingerprint"], body["usage"]) == ({"a": [1, 2.5]}, "fp", USAGE)
    assert (body["model"], body["id"]) == (CANDIDATE, got.headers["x-babylon-call"])
    assert (got.headers["x-babylon-policy"], got.headers["x-babylon-arm"]) == (CANDIDATE, "candidate")


def test_a_call_is_recorded_with_who_answered_it(url: str, upstream: Upstream, shared_engine: sa.Engine) -> None:
    got = post(url, user=OUTSIDE)

    (call,) = wait_until(lambda: read_calls(shared_engine, call_id=got.json()["id"]))
    assert (call.agent_id, call.step, call.arm, call.deployment, call.rollout) == (OUTSIDE, 1, "incumbent", 2, "r1")
    assert (call.status, call.upstream, call.finish_reason, call.streamed) == (200, "openai", "stop", False)
    assert (call.prompt_tokens, call.completion_tokens, call.temperature) == (11, 3, 0.5)
    assert (json.loads(call.messages), call.response) == (MESSAGES, f"I am {INCUMBENT}")


def test_the_gateway_sends_no_key_of_its_callers_on(url: str, upstream: Upstream) -> None:
    post(url)

    assert KEY not in json.dumps(upstream.headers)
    assert "authorization" not in upstream.headers[0]


def test_a_stream_passes_event_by_event(url: str, upstream: Upstream) -> None:
    got = post(url, stream=True, stream_options={"include_usage": True})

    assert got.headers["content-type"] == "text/event-stream"
    *chunks, done = events_of(got)
    assert done == "[DONE]"
    assert {(c["id"], c["model"]) for c in chunks} == {(got.headers["x-babylon-call"], CANDIDATE)}
    assert all(c["x_unknown"] == {"a": [1, 2.5]} for c in chunks)
    assert [c["choices"][0]["delta"] for c in chunks[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "I am "},
        {"content": CANDIDATE},
        {},
    ]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], USAGE)


def test_tokens_of_a_stream_are_recorded_and_told_only_if_asked(
    client: openai.OpenAI, upstream: Upstream, shared_engine: sa.Engine
) -> None:
    chunks = list(client.chat.completions.create(model=LINEAGE, messages=MESSAGES, user=IN_CANARY, stream=True))

    assert "".join(c.choices[0].delta.content or "" for c in chunks) == f"I am {CANDIDATE}"
    assert upstream.requests[0]["stream_options"] == {"include_usage": True}
    (call,) = wait_until(lambda: read_calls(shared_engine, call_id=chunks[0].id))
    assert (call.prompt_tokens, call.completion_tokens, call.streamed) == (11, 3, True)
    assert 0 < call.first_token_ms <= call.latency_ms


def test_a_stream_of_tool_calls_passes(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "buy", "parameters": {}}}]

    first, *_ = client.chat.completions.create(model=LINEAGE, messages=MESSAGES, tools=tools, stream=True)

    assert first.choices[0].delta.tool_calls is not None
    assert first.choices[0].delta.tool_calls[0].function.arguments == '{"ticker":"$AI"}'  # type: ignore[union-attr]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("behaviour", "tries", "code"),
    [
        ("500", 3, "upstream_error"),
        ("429", 3, "upstream_overloaded"),
        ("404", 1, "upstream_refused"),
        ("hang", 1, "upstream_timeout"),
    ],
)
def test_the_incumbent_answers_for_a_candidate_that_cannot(
    settings: Settings,
    shared_engine: sa.Engine,
    upstream: Upstream,
    url: str,
    behaviour: str,
    tries: int,
    code: str,
    stream: bool,
) -> None:
    upstream.behaviour[CANDIDATE] = behaviour
    with gateway_in_thread(settings) as own:  # with breakers of its own
        got = post(own, stream=stream)

        failures = httpx.get(own.removesuffix("/v1") + "/metrics").text
    assert got.status_code == 200
    assert got.headers["x-babylon-policy"] == INCUMBENT
    assert text_of(got) == f"I am {INCUMBENT}"
    assert (upstream.asked(CANDIDATE), upstream.asked(INCUMBENT)) == (tries, 1)
    assert f'failures_total{{code="{code}",policy="{CANDIDATE}"}} 1.0' in failures
    (call,) = wait_until(lambda: read_calls(shared_engine, call_id=got.headers["x-babylon-call"]))
    assert (call.step, call.fell_back_from, call.arm, call.status) == (1, 2, "candidate", 200)


def test_a_candidate_that_fails_is_left_alone_after_three(settings: Settings, upstream: Upstream, url: str) -> None:
    upstream.behaviour[CANDIDATE] = "404"
    with gateway_in_thread(settings) as own:
        policies = [post(own).headers["x-babylon-policy"] for _ in range(5)]
        pinned = post(own, model=CANDIDATE)

    assert policies == [INCUMBENT] * 5
    assert pinned.status_code == 502
    assert upstream.asked(CANDIDATE) == 4, "three calls, and the pinned one, which nobody else could answer"


@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [
        ("500", 502, "upstream_error"),
        ("429", 503, "upstream_overloaded"),
        ("401", 502, "upstream_refused"),
        ("hang", 504, "upstream_timeout"),
        ("not-json", 502, "upstream_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_incumbent_that_cannot_is_an_error_without_secrets(
    url: str, upstream: Upstream, shared_engine: sa.Engine, behaviour: str, status: int, code: str, stream: bool
) -> None:
    upstream.behaviour[INCUMBENT] = behaviour

    got = post(url, user=OUTSIDE, stream=stream)

    assert got.status_code == status
    error = got.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("server_error", code, None)
    assert error["message"].startswith(f"{INCUMBENT} did not answer: ")
    assert "127.0.0.1" not in got.text
    assert "sk-" not in got.text
    (call,) = wait_until(lambda: read_calls(shared_engine, call_id=got.headers["x-babylon-call"]))
    assert (call.status, call.error, call.step) == (status, code, 1)


def test_a_server_that_is_down_is_502_and_found_again(settings: Settings, upstream: Upstream, url: str) -> None:
    down = settings.changed(serving={"inference_url": "http://127.0.0.1:9/v1"})
    with gateway_in_thread(down) as own:
        got = post(own)

    assert got.status_code == 502
    assert got.json()["error"]["code"] == "upstream_unreachable"
    upstream.behaviour[INCUMBENT] = "once"
    assert post(url, user=OUTSIDE).status_code == 200
    assert upstream.asked(INCUMBENT) == 2


def test_what_is_wrong_with_a_request_is_told_and_not_retried(url: str, upstream: Upstream) -> None:
    upstream.behaviour[CANDIDATE] = "400"

    got = post(url)

    assert got.status_code == 400
    error = got.json()["error"]
    assert error["message"] == f"{CANDIDATE} at … with key sk-secret is wrong"
    assert (error["param"], error["code"]) == ("n", "bad")
    assert len(upstream.requests) == 1, "the incumbent would refuse it too"


def test_a_stream_that_breaks_ends_with_an_error(
    client: openai.OpenAI, upstream: Upstream, shared_engine: sa.Engine
) -> None:
    upstream.behaviour[CANDIDATE] = "break"
    chunks = client.chat.completions.create(model=LINEAGE, messages=MESSAGES, user=IN_CANARY, stream=True)
    seen = [next(chunks), next(chunks)]

    with pytest.raises(openai.APIError, match="stopped in the middle of the answer"):
        next(chunks)

    (call,) = wait_until(lambda: read_calls(shared_engine, call_id=seen[0].id))
    assert (call.status, call.error, call.fell_back_from) == (502, "upstream_broken", None)


def test_a_streamed_answer_is_cut_at_the_limit(url: str, upstream: Upstream) -> None:
    upstream.behaviour[CANDIDATE] = "long"

    *chunks, done = events_of(post(url, stream=True, max_tokens=1000))

    assert done == "[DONE]"
    assert upstream.requests[0]["max_tokens"] == 50
    assert sum(bool(c["choices"][0]["delta"].get("content")) for c in chunks) == 50
    assert (chunks[-1]["choices"][0]["delta"], chunks[-1]["choices"][0]["finish_reason"]) == ({}, "length")
    wait_until(lambda: upstream.left)


def test_a_caller_that_leaves_ends_the_upstreams_work(
    client: openai.OpenAI, upstream: Upstream, shared_engine: sa.Engine
) -> None:
    upstream.behaviour[CANDIDATE] = "long"
    with client.chat.completions.create(model=LINEAGE, messages=MESSAGES, user=IN_CANARY, stream=True) as chunks:
        first = next(iter(chunks))

    wait_until(lambda: upstream.left)
    (call,) = wait_until(lambda: read_calls(shared_engine, call_id=first.id))
    assert (call.status, call.error, call.step) == (499, "caller_left", 2)


def test_a_caller_that_leaves_before_the_answer_is_noticed(
    url: str, upstream: Upstream, shared_engine: sa.Engine
) -> None:
    upstream.behaviour[INCUMBENT] = "hang"
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{url}/chat/completions",
            json={"model": INCUMBENT, "messages": MESSAGES, "user": "impatient"},
            headers={"authorization": f"Bearer {KEY}"},
            timeout=0.2,
        )

    (call,) = wait_until(lambda: read_calls(shared_engine, agent_id="impatient"))
    assert (call.status, call.arm) == (499, "pinned")
    assert call.latency_ms < 1000


@pytest.mark.parametrize("path", ["chat/completions", "completions", "models", "models/x"])
def test_without_the_key_nothing_is_answered(url: str, upstream: Upstream, path: str) -> None:
    method = "GET" if path.startswith("models") else "POST"
    for headers in ({}, {"authorization": "Bearer sk-wrong"}):
        got = httpx.request(method, f"{url}/{path}", headers=headers)
        assert got.status_code == 401
        assert got.json()["error"]["code"] == "invalid_api_key"
    assert not upstream.requests


def test_a_body_of_ten_megabytes_is_refused(client: openai.OpenAI, upstream: Upstream) -> None:
    with pytest.raises(openai.APIStatusError, match="send at most 1048576 bytes") as e:
        client.chat.completions.create(model=LINEAGE, messages=[{"role": "user", "content": "x" * 10_000_000}])

    assert e.value.status_code == 413
    assert not upstream.requests


@pytest.mark.parametrize(
    ("model", "reason"),
    [(f"{LINEAGE}@3", "it was recorded, but it was never deployed"), ("gpt-4", "no policy of this gateway")],
)
def test_a_policy_that_is_not_deployed_is_refused(
    client: openai.OpenAI, upstream: Upstream, model: str, reason: str
) -> None:
    with pytest.raises(openai.NotFoundError, match=reason) as e:
        client.chat.completions.create(model=model, messages=MESSAGES)

    assert e.value.code == "model_not_found"
    assert not upstream.requests


def test_other_endpoints_are_refused_with_a_sentence(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="/v1/completions is not offered"):
        client.completions.create(model=LINEAGE, prompt="x")
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings is not offered"):
        client.embeddings.create(model=LINEAGE, input="x")


def test_what_is_servable_is_listed(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == [LINEAGE, f"{LINEAGE}@0", INCUMBENT, CANDIDATE]
    assert client.models.retrieve(CANDIDATE).created > 0
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(f"{LINEAGE}@3")


def test_health_and_metrics_say_what_is_served_and_no_secret(url: str, client: openai.OpenAI) -> None:
    post(url, user="agent-with-a-name")
    root = url.removesuffix("/v1")

    health, metrics = httpx.get(f"{root}/healthz").json(), httpx.get(f"{root}/metrics").text

    assert (health["deployment"], health["stage"], health["candidate"]) == (2, "canary", CANDIDATE)
    assert 0 <= health["state_age_s"] < 10
    assert "babylon_gateway_deployment_number 2.0" in metrics
    assert 'babylon_gateway_calls_total{arm="' in metrics
    for secret in (KEY, "127.0.0.1", "agent-with-a-name"):
        assert secret not in metrics


def test_a_gateway_starts_without_its_database_by_what_was_kept(
    settings: Settings, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    (kept,) = (settings.home / "gateway").glob("deployment-*.json")
    assert settings.database.url is not None
    known = make_url(settings.database.url.get_secret_value())
    away = settings.changed(database={"url": SecretStr(known.set(host="127.0.0.1", port=9).render_as_string(False))})

    with pytest.raises(ConfigError, match="cannot be reached"):
        migrate_if_reachable(away)
    kept.write_bytes(kept.read_bytes().replace(identify(settings), identify(away)))
    migrate_if_reachable(away)

    assert "started by what was deployed when the database last answered" in caplog.text


def identify(settings: Settings) -> bytes:
    return _identify(platform_url(settings.database)).encode()


def test_wandb_is_asked_by_the_artifacts_name(
    shared_settings: Settings, upstream: Upstream, shared_engine: sa.Engine, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And the base at an address of its own, with a key of its own."""
    variables = {
        "BABYLON_TRAINER": "serverless",
        "BABYLON_BASE_MODEL": "OpenPipe/Qwen3-14B-Instruct",
        "BABYLON_WANDB_INFERENCE_URL": upstream.url,
        "WANDB_API_KEY": "sk-wandb",
        "BABYLON_UPSTREAM_BASE_URL": upstream.url,
        "BABYLON_UPSTREAM_BASE_MODEL": "gpt-base",
        "BABYLON_UPSTREAM_KEY": "sk-base",
    }
    record_remote(shared_engine, 7, trainer="serverless", path="team/babylon/babylon-mmo:step7")
    move(shared_engine, MoveKind.PROMOTED, 7, incumbent=7)
    caplog.set_level(logging.DEBUG)
    with gateway_in_thread(Settings.load(**(shared_settings.reveal() | variables))) as own:
        answers = [post(own, model=m).json()["model"] for m in (LINEAGE, f"{LINEAGE}@0")]

    assert answers == [f"{LINEAGE}@7", f"{LINEAGE}@0"]
    assert [r["model"] for r in upstream.requests] == ["wandb-artifact:///team/babylon/babylon-mmo:step7", "gpt-base"]
    assert [h["authorization"] for h in upstream.headers] == ["Bearer sk-wandb", "Bearer sk-base"]
    assert upstream.headers[0]["openai-project"] == "team/babylon"
    assert "sk-" not in caplog.text


def test_a_shadow_is_asked_in_the_background_and_recorded(
    settings: Settings, upstream: Upstream, shared_engine: sa.Engine, url: str
) -> None:
    shadow = {"stage": Stage.SHADOW, "incumbent": 1, "candidate": 2, "rollout": "r9"}
    move(shared_engine, MoveKind.SHADOW, 2, **shadow)
    upstream.behaviour[CANDIDATE] = "404"
    with gateway_in_thread(settings) as own:
        got = post(own, user="shadowed", stream=True)
        calls = wait_until(lambda: len(c := read_calls(shared_engine, agent_id="shadowed")) == 2 and c)
        post(own, user=None)
        upstream.behaviour.clear()
        post(own, user="shadowed")
        answered = wait_until(lambda: read_calls(shared_engine, agent_id="shadowed", arm="shadow", status=200))

    first = {c.arm: c for c in calls}
    assert (first["incumbent"].status, first["incumbent"].call_id) == (200, got.headers["x-babylon-call"])
    assert (first["shadow"].status, first["shadow"].step, first["shadow"].error) == (502, 2, "upstream_refused")
    assert (answered[0].response, answered[0].streamed) == (f"I am {CANDIDATE}", False)
    assert upstream.asked(CANDIDATE) == 2, "calls without an agent are not mirrored"


def test_shadows_are_bounded_and_those_dropped_are_counted(
    settings: Settings, upstream: Upstream, shared_engine: sa.Engine, url: str
) -> None:
    move(shared_engine, MoveKind.SHADOW, 2, stage=Stage.SHADOW, incumbent=1, candidate=2, rollout="r10")
    upstream.behaviour[CANDIDATE] = "hang"
    body = {"model": LINEAGE, "messages": MESSAGES, "user": "many"}

    async def ask_at_once(own: str) -> list[int]:
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, timeout=20) as c:
            asking = [c.post(f"{own}/chat/completions", json=body) for _ in range(MOST_SHADOWS + 16)]
            return [r.status_code for r in await asyncio.gather(*asking)]

    with gateway_in_thread(settings.changed(gateway={"timeout_s": 30.0})) as own:
        assert set(asyncio.run(ask_at_once(own))) == {200}
        metrics = httpx.get(own.removesuffix("/v1") + "/metrics").text
    shadows = read_calls(shared_engine, agent_id="many", arm="shadow")

    assert "babylon_gateway_shadows_dropped_total 16.0" in metrics
    assert len(shadows) == MOST_SHADOWS
    assert {c.status for c in shadows} == {499}, "given up when the gateway stopped"
