"""The gateway with our own engine, as a process of its own, asked by the official OpenAI client."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import sqlalchemy as sa
from gateway_factories import LINEAGE, MESSAGES, gateway_in_thread, move, read_calls, wait_until

from babylon_rl.deployment.stages import MoveKind, Stage
from babylon_rl.gateway.process import running_gateway
from babylon_rl.settings import Settings
from babylon_rl_tests.policy.policy_factories import record_checkpoint, write_finished_checkpoint

BASE, TRAINED = f"{LINEAGE}@0", f"{LINEAGE}@1"


@pytest.fixture(scope="module")
def url(shared_settings: Settings, shared_engine: sa.Engine) -> Iterator[str]:
    """Of a gateway on which checkpoint 1 was promoted, and 2 is recorded and not deployed."""
    for step in (1, 2):
        directory = write_finished_checkpoint(shared_settings.checkpoints_dir, LINEAGE, step)
        record_checkpoint(shared_engine, directory, LINEAGE, step)
    with running_gateway(shared_settings) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as c:
        yield c


def ask(client: openai.OpenAI, **changes: Any) -> Any:
    return client.chat.completions.create(**({"model": LINEAGE, "messages": MESSAGES, "max_tokens": 20} | changes))


def test_a_promotion_is_followed_and_only_deployed_steps_answer(
    client: openai.OpenAI, shared_engine: sa.Engine
) -> None:
    before = ask(client)
    move(shared_engine, MoveKind.PROMOTED, 1, incumbent=1)
    wait_until(lambda: ask(client).model == TRAINED, timeout_s=5)

    assert before.model == BASE, "before the first move the base answers"
    with pytest.raises(openai.NotFoundError, match="never deployed or was rolled back"):
        ask(client, model=f"{LINEAGE}@2")
    with pytest.raises(openai.BadRequestError, match="tools is not supported here"):
        ask(client, tools=[{"type": "function", "function": {"name": "f"}}])


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI, shared_engine: sa.Engine) -> None:
    options: dict[str, Any] = {"model": BASE, "seed": 11, "temperature": 1.5, "max_tokens": 80, "logprobs": True}
    whole = ask(client, **options)

    first, *middle, last, cost = ask(client, **options, stream=True, stream_options={"include_usage": True})

    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    deltas = [c.choices[0].delta.content for c in (*middle, last)]
    assert "".join(d or "" for d in deltas) == whole.choices[0].message.content
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert {c.choices[0].finish_reason for c in (first, *middle)} == {None}
    assert (cost.choices, cost.usage) == ([], whole.usage)
    told = [t for c in (*middle, last) if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert [(t.token, t.logprob) for t in told] == [
        (t.token, pytest.approx(t.logprob, abs=1e-4)) for t in whole.choices[0].logprobs.content
    ]
    assert {(c.id, c.model) for c in (first, *middle, last, cost)} == {(first.id, BASE)}
    (call,) = wait_until(lambda: read_calls(shared_engine, call_id=first.id))
    assert call.completion_tokens == len(call.logprobs) == whole.usage.completion_tokens
    assert (call.upstream, call.digest, call.arm, call.streamed) == ("engine", "", "pinned", True)


def test_tokens_arrive_before_the_last_one_is_drawn(client: openai.OpenAI) -> None:
    """The first text is here while most of the answer is still to be drawn: nothing collects it on the way."""
    ask(client)
    began = time.monotonic()
    arrived = [
        time.monotonic() - began
        for c in ask(client, model=BASE, temperature=2, seed=3, max_tokens=400, stream=True)
        if c.choices[0].delta.content
    ]

    assert len(arrived) > 100
    assert arrived[0] < arrived[-1] / 3
    assert arrived[len(arrived) // 2] < 0.8 * arrived[-1]


def test_a_caller_that_leaves_a_stream_is_noticed(client: openai.OpenAI, shared_engine: sa.Engine) -> None:
    with ask(client, model=BASE, temperature=2, seed=3, max_tokens=1500, stream=True) as chunks:
        first = next(iter(chunks))

    (call,) = wait_until(lambda: read_calls(shared_engine, call_id=first.id))
    assert (call.status, call.error, call.finish_reason) == (499, "caller_left", None)
    assert call.completion_tokens < 1500


def test_many_callers_are_answered_while_the_deployment_moves(
    url: str, client: openai.OpenAI, shared_engine: sa.Engine
) -> None:
    ask(client, model=TRAINED)  # loaded
    canary = {"stage": Stage.HALF, "incumbent": 0, "candidate": 1, "rollout": "r", "threshold": 0.5}

    async def everybody() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as c:
            asking = [
                asyncio.create_task(
                    c.chat.completions.create(
                        model=LINEAGE, messages=MESSAGES, user=f"many-{i}", max_tokens=60, stream=bool(i % 2)
                    )
                )
                for i in range(32)
            ]
            await asyncio.to_thread(move, shared_engine, MoveKind.HALF, 1, **canary)
            answers: list[Any] = []
            for task in asking:
                answer: Any = await task
                answers.append([x async for x in answer] if hasattr(answer, "__aiter__") else [answer])
            return answers

    answers = asyncio.run(everybody())

    assert all(len({c.model for c in chunks}) == 1 for chunks in answers)
    assert {chunks[-1].choices[0].finish_reason for chunks in answers} <= {"stop", "length"}
    calls = wait_until(
        lambda: len(c := [c for c in read_calls(shared_engine) if (c.agent_id or "").startswith("many-")]) == 32 and c
    )
    assert {c.call_id: c.step for c in calls} == {
        chunks[0].id: int(chunks[0].model.rpartition("@")[2]) for chunks in answers
    }


def test_weights_that_changed_on_disk_are_not_answered_with(
    shared_settings: Settings, shared_engine: sa.Engine, client: openai.OpenAI, url: str
) -> None:
    """The base answers for a candidate whose file is not the recorded one."""
    everybody = {"incumbent": 0, "candidate": 2, "rollout": "r2", "stage": Stage.HALF, "threshold": 1.0}
    (file,) = shared_settings.checkpoints_dir.rglob("0002/adapter_model.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    move(shared_engine, MoveKind.HALF, 2, **everybody)
    wait_until(lambda: httpx.get(url.removesuffix("/v1") + "/healthz").json()["candidate"] == f"{LINEAGE}@2")

    got = ask(client, user="a")
    streamed = [c.model for c in ask(client, user="a", stream=True)]

    assert (got.model, set(streamed)) == (BASE, {BASE})
    with pytest.raises(openai.InternalServerError, match="it cannot be served here now") as e:
        ask(client, model=f"{LINEAGE}@2")
    assert (e.value.status_code, e.value.code) == (503, "policy_unavailable")
    assert str(shared_settings.checkpoints_dir) not in str(e.value)


def test_a_named_gateway_is_used_and_nothing_is_started(shared_settings: Settings) -> None:
    with running_gateway(shared_settings.changed(gateway={"url": "http://127.0.0.1:9/v1/"})) as url:
        assert url == "http://127.0.0.1:9/v1"


def test_a_base_that_is_not_served_is_said(shared_settings: Settings) -> None:
    missing = Settings.load(**(shared_settings.reveal() | {"BABYLON_TRAINER": "local", "BABYLON_LINEAGE": "other"}))
    with gateway_in_thread(missing) as url:
        got = httpx.post(f"{url}/chat/completions", json={"model": "other", "messages": MESSAGES})

    assert (got.status_code, got.json()["error"]["code"]) == (503, "policy_unavailable")
