"""Upstreams and callers that do what nobody should: another policy answers, and nothing of ours fails."""

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from gateway_factories import (
    LINEAGE,
    MESSAGES,
    gateway_in_thread,
    move,
    post_chat,
    read_calls,
    record_remote,
    wait_until,
)
from upstream_server import Upstream

from babylon_rl.deployment.stages import MoveKind, Stage
from babylon_rl.gateway.server import open_gateway
from babylon_rl.policy import http
from babylon_rl.settings import Settings

CANDIDATE, INCUMBENT = f"{LINEAGE}@2", f"{LINEAGE}@1"
SECRET = "sk-the-upstreams-own"


@pytest.fixture(scope="module")
def settings(shared_settings: Settings, one_upstream: Upstream) -> Settings:
    variables = {
        "BABYLON_TRAINER": "local",
        "BABYLON_BASE_MODEL": "org/base",
        "BABYLON_INFERENCE_URL": one_upstream.url,
        "BABYLON_UPSTREAM_BASE_URL": one_upstream.url,
        "BABYLON_UPSTREAM_BASE_MODEL": "org/base",
        "BABYLON_UPSTREAM_KEY": SECRET,
    }
    return Settings.load(**(shared_settings.reveal() | variables))


@pytest.fixture(scope="module")
def url(settings: Settings, shared_engine: sa.Engine) -> Iterator[str]:
    """Of a gateway whose candidate answers every agent."""
    for step in (1, 2):
        record_remote(shared_engine, step)
    move(shared_engine, MoveKind.PROMOTED, 1, incumbent=1)
    everybody = {"stage": Stage.HALF, "incumbent": 1, "candidate": 2, "rollout": "r", "threshold": 1.0}
    move(shared_engine, MoveKind.HALF, 2, **everybody)
    with gateway_in_thread(settings) as url:
        yield url


@pytest.mark.parametrize("behaviour", ["error-200", "no-choices"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_no_answer_is_another_policys_to_give(
    url: str, upstream: Upstream, behaviour: str, stream: bool
) -> None:
    upstream.behaviour[CANDIDATE] = behaviour

    got = post_chat(url, user="a", stream=stream)
    upstream.behaviour.clear()
    post_chat(url, user="a")  # it works again, and its breaker is closed

    assert (got.status_code, got.headers["x-babylon-policy"]) == (200, INCUMBENT)


@pytest.mark.parametrize("stream", [False, True])
def test_half_an_emoji_of_an_upstream_breaks_no_answer(url: str, upstream: Upstream, stream: bool) -> None:
    upstream.behaviour[CANDIDATE] = "half"

    got = post_chat(url, user="a", stream=stream)

    assert (got.status_code, got.headers["x-babylon-policy"]) == (200, CANDIDATE)
    assert "\ufffd" in got.text
    assert not stream or got.text.endswith("data: [DONE]\n\n")


def test_a_number_beyond_a_floats_range_costs_no_answer(url: str, upstream: Upstream, shared_engine: sa.Engine) -> None:
    got = post_chat(url, user="a", top_p=10**400, headers={"x-babylon-trajectory": "t"})

    assert got.status_code == 200
    (call,) = wait_until(lambda: read_calls(shared_engine, call_id=got.headers["x-babylon-call"]))
    assert call.status == 200


def test_a_key_that_an_upstream_repeats_goes_no_further(url: str, upstream: Upstream, shared_engine: sa.Engine) -> None:
    upstream.behaviour["org/base"] = "echo"

    got = post_chat(url, model=f"{LINEAGE}@0", user="a")

    assert got.status_code == 400
    assert SECRET not in got.text
    (call,) = wait_until(lambda: read_calls(shared_engine, call_id=got.headers["x-babylon-call"]))
    assert SECRET not in str(call)


def test_a_candidate_whose_streams_break_is_left_alone(url: str, upstream: Upstream) -> None:
    upstream.behaviour[CANDIDATE] = "break"

    policies = [post_chat(url, user="a", stream=True).headers["x-babylon-policy"] for _ in range(5)]

    assert policies == [CANDIDATE] * 3 + [INCUMBENT] * 2


@pytest.mark.parametrize("said", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost: "])
def test_a_connection_without_a_request_is_closed(
    settings: Settings, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """Each of them is a file descriptor: where a process may have 1,024, as many silent callers shut all others out."""
    monkeypatch.setattr(http, "REQUEST_TIMEOUT_S", 0.3)
    with gateway_in_thread(settings) as url:
        address = urlsplit(url)
        with socket.create_connection((str(address.hostname), address.port or 0), timeout=5) as silent:
            silent.sendall(said)
            upstream.behaviour[CANDIDATE] = "long"
            got = post_chat(url, user="a", stream=True, max_tokens=300)  # takes 0.6 s

            assert silent.recv(1) == b""
    assert got.text.endswith("data: [DONE]\n\n"), "who has asked is waited for"


def test_a_caller_that_just_left_is_no_failure_of_ours(
    settings: Settings, url: str, upstream: Upstream, shared_engine: sa.Engine
) -> None:
    """uvloop closes a connection before it says so, and raises what was seen of it when written to in between."""
    body = json.dumps({"model": LINEAGE, "messages": MESSAGES, "stream": True, "user": "leaves"}).encode()
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b""}
    request = [{"type": "http.request", "body": body}]

    async def receive() -> Any:
        return request.pop() if request else await asyncio.Event().wait()

    async def send(_: Any) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    async def call() -> None:
        app = open_gateway(settings)
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)

    asyncio.run(call())

    (recorded,) = wait_until(lambda: read_calls(shared_engine, agent_id="leaves"))
    assert (recorded.status, recorded.error) == (499, "caller_left")
