"""The endpoint over a real socket, asked by the official OpenAI client and by ours."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from policy_factories import record_checkpoint

from babylon_rl.database.connection import connect, game_url
from babylon_rl.database.embedded import ensure_database
from babylon_rl.database.migrate import upgrade
from babylon_rl.errors import ConfigError, TransientError
from babylon_rl.pipeline.workspace import running_policy_server
from babylon_rl.policy.client import PolicyClient
from babylon_rl.policy.model import LoadedPolicy
from babylon_rl.policy.sampling import SampleRequest, sample
from babylon_rl.settings import Settings
from babylon_rl.simulator.observation import SYSTEM_PROMPT
from babylon_rl_tests.conftest import drop_database

LINEAGE = "mmo"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, server_url: str) -> Iterator[Settings]:
    """Of a home and a database that all tests of this module share."""
    home, name = tmp_path_factory.mktemp("home"), f"babylon_test_{os.getpid()}_policy_server"
    variables = {"DATABASE_URL": ensure_database(server_url, name), "BABYLON_PLATFORM_URL": None}
    settings = Settings.load(BABYLON_HOME=home, BABYLON_LINEAGE=LINEAGE, BABYLON_SERVE_TEMPERATURE=0.0, **variables)
    upgrade(settings.database)
    yield settings
    drop_database(server_url, name)


@pytest.fixture(scope="module")
def url(settings: Settings, write_checkpoint: Callable[[Path, str, int], Path]) -> Iterator[str]:
    engine = connect(game_url(settings.database))
    for step in (1, 2):
        directory = write_checkpoint(settings.checkpoints_dir, LINEAGE, step)
        record_checkpoint(engine, directory, LINEAGE, step)
    engine.dispose()
    with running_policy_server(settings) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as c:
        yield c


def messages(user: str) -> list[Any]:
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": user}]


def test_a_served_answer_is_the_samplers_with_its_token_count(
    client: openai.OpenAI, policy: LoadedPolicy, prompts: list[list[int]], user_prompts: list[str]
) -> None:
    (expected,) = sample(policy, [SampleRequest(prompt_ids=prompts[0], temperature=1.0, seed=5, max_tokens=64)])

    got = client.chat.completions.create(
        model="mmo@0", messages=messages(user_prompts[0]), temperature=1, seed=5, max_tokens=64, logprobs=True
    )

    choice = got.choices[0]
    assert choice.logprobs is not None
    tokens = choice.logprobs.content or []
    assert [t.token for t in tokens] == [f"token_id:{t}" for t in expected.token_ids]
    assert [t.logprob for t in tokens] == pytest.approx(expected.logprobs, abs=1e-4)
    assert choice.message.content == policy.tokenizer.decode(expected.token_ids, skip_special_tokens=True)
    assert choice.finish_reason == "stop"
    assert got.model == "mmo@0"
    assert got.usage is not None
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (len(prompts[0]), len(expected.token_ids))
    assert got.usage.total_tokens == len(prompts[0]) + len(expected.token_ids)


@pytest.mark.parametrize(
    ("name", "answered_by"), [("mmo@0", "mmo@0"), ("mmo@1", "mmo@1"), ("mmo@latest", "mmo@2"), ("mmo", "mmo@2")]
)
def test_a_name_picks_the_checkpoint_and_the_answer_names_it(
    client: openai.OpenAI, user_prompts: list[str], name: str, answered_by: str
) -> None:
    got = client.chat.completions.create(model=name, messages=messages(user_prompts[0]), max_tokens=20)
    base = client.chat.completions.create(model="mmo@0", messages=messages(user_prompts[0]), max_tokens=20)

    assert got.model == answered_by
    assert (got.choices[0].message.content == base.choices[0].message.content) is (answered_by == "mmo@0")


def test_without_a_temperature_the_served_one_holds_here_greedy(
    client: openai.OpenAI, policy: LoadedPolicy, prompts: list[list[int]], user_prompts: list[str]
) -> None:
    (greedy,) = sample(policy, [SampleRequest(prompt_ids=prompts[1], temperature=0, seed=0, max_tokens=64)])

    got = client.chat.completions.create(model="mmo@0", messages=messages(user_prompts[1]))

    assert got.choices[0].message.content == policy.tokenizer.decode(greedy.token_ids, skip_special_tokens=True)
    assert got.choices[0].logprobs is None


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["mmo@0", "mmo@1", "mmo@2"]


def test_a_stream_is_the_whole_answer_in_one_chunk(client: openai.OpenAI, user_prompts: list[str]) -> None:
    plain = client.chat.completions.create(model="mmo@0", messages=messages(user_prompts[2]))
    chunks = list(client.chat.completions.create(model="mmo@0", messages=messages(user_prompts[2]), stream=True))

    assert [c.choices[0].delta.content for c in chunks] == [plain.choices[0].message.content]
    assert chunks[0].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"model": "mmo@7"}, 404, "the ledger has recorded no checkpoint 7 of 'mmo'; the latest is 'mmo@2'"),
        ({"model": "gpt-4"}, 404, "lineage 'gpt-4' has no checkpoint; known lineages: mmo"),
        ({"model": "../../etc"}, 404, "is not a policy name"),
        ({"messages": []}, 400, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "user", "content": "7" * 2100}]}, 400, "tokens, but the context has 2048"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages.0.role"),
        ({"n": 2}, 400, "n is not supported here; leave it out or send 1"),
        ({"stop": ["}"]}, 400, "stop is not supported"),
        ({"temperature": -1}, 400, "temperature: Input should be greater than or equal to 0"),
        ({"max_tokens": 0}, 400, "max_tokens: Input should be greater than or equal to 1"),
    ],
)
def test_a_bad_request_is_refused_with_one_clear_sentence(
    client: openai.OpenAI, change: dict[str, Any], status: int, sentence: str
) -> None:
    request: dict[str, Any] = {"model": "mmo@0", "messages": messages("x")} | change

    with pytest.raises(openai.APIStatusError) as e:
        client.chat.completions.create(**request)

    assert e.value.status_code == status
    assert sentence in str(e.value.body["message"])  # type: ignore[index]


def test_what_is_not_json_is_a_bad_request(url: str) -> None:
    got = httpx.post(f"{url}/chat/completions", content=b"{nonsense")

    assert got.status_code == 400
    assert got.json()["error"]["type"] == "invalid_request_error"


def test_concurrent_requests_are_answered_in_few_batches(
    url: str, policy: LoadedPolicy, prompts: list[list[int]], user_prompts: list[str]
) -> None:
    before = httpx.get(url.removesuffix("/v1") + "/healthz").json()
    calls = [(i % len(prompts), f"mmo@{i % 2}", 1000 + i) for i in range(64)]

    async def everybody() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as c:
            answers = await asyncio.gather(
                *[
                    c.chat.completions.create(
                        model=m, messages=messages(user_prompts[p]), temperature=1, seed=s, max_tokens=64
                    )
                    for p, m, s in calls
                ]
            )
        assert [a.model for a in answers] == [m for _, m, _ in calls]
        return [a.choices[0].message.content or "" for a in answers]

    texts = asyncio.run(everybody())

    after = httpx.get(url.removesuffix("/v1") + "/healthz").json()
    assert after["requests"] - before["requests"] == 64
    assert after["batches"] - before["batches"] <= 12
    expected = sample(
        policy,
        [
            SampleRequest(prompt_ids=prompts[p], temperature=1, seed=s, max_tokens=64)
            for p, m, s in calls
            if m == "mmo@0"
        ],
    )
    assert texts[::2] == [policy.tokenizer.decode(a.token_ids, skip_special_tokens=True) for a in expected]


def test_the_event_loop_answers_while_the_model_samples(url: str) -> None:
    """Many long answers keep the worker busy for a while; health must not wait for them."""

    async def measure() -> float:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as c, httpx.AsyncClient() as h:
            busy = [
                asyncio.create_task(
                    c.chat.completions.create(
                        model="mmo@1", messages=messages(f"{i}" * 300), temperature=2, max_tokens=150, seed=i
                    )
                )
                for i in range(32)
            ]
            await asyncio.sleep(0.3)
            began = time.monotonic()
            await h.get(url.removesuffix("/v1") + "/healthz")
            took = time.monotonic() - began
            assert not all(t.done() for t in busy), "the model was not busy; the test measured nothing"
            await asyncio.gather(*busy)
            return took

    assert asyncio.run(measure()) < 0.5


def run(url: str, work: Callable[[PolicyClient], Coroutine[Any, Any, Any]]) -> Any:
    async def go() -> Any:
        async with PolicyClient(url) as client:
            return await work(client)

    return asyncio.run(go())


def test_our_client_asks_and_reports_what_the_answer_cost(
    url: str, prompts: list[list[int]], user_prompts: list[str]
) -> None:
    def ask(seed: int | None, temperature: float | None) -> Any:
        return run(
            url,
            lambda c: c.complete(
                model="mmo@0", system=SYSTEM_PROMPT, user=user_prompts[4], temperature=temperature, seed=seed
            ),
        )

    a, b = ask(3, 1.0), ask(3, 1.0)

    assert a.text == b.text
    assert (a.model, a.prompt_tokens) == ("mmo@0", len(prompts[4]))
    assert 0 < (a.completion_tokens or 0) <= 64
    assert a.latency_ms > 0
    assert ask(None, None).text == ask(9, 0.0).text, "no temperature: the served one, greedy"


def test_our_client_says_who_must_act(url: str) -> None:
    def ask(model: str) -> Callable[[PolicyClient], Coroutine[Any, Any, Any]]:
        return lambda c: c.complete(model=model, system="s", user="u", temperature=None, seed=None)

    with pytest.raises(ConfigError, match=r"'mmo@9' was refused with HTTP 404: .*the latest is 'mmo@2'"):
        run(url, ask("mmo@9"))
    with pytest.raises(TransientError, match="'mmo' gave no answer after 4 tries"):
        run("http://127.0.0.1:9/v1", ask("mmo"))


def test_a_named_endpoint_is_used_and_nothing_is_started(settings: Settings) -> None:
    named = settings.changed(serving={"inference_url": "http://127.0.0.1:9/v1/"}, training={"base_model": "/nowhere"})
    with running_policy_server(named) as url:
        assert url == "http://127.0.0.1:9/v1"


def test_a_server_that_cannot_start_says_why(settings: Settings) -> None:
    with (
        pytest.raises(ConfigError, match=r"(?s)exited with status \d.*'/nowhere' has no config.json"),
        running_policy_server(settings.changed(training={"base_model": "/nowhere"})),
    ):
        pass


def test_the_server_dies_with_a_killed_parent(tmp_path: Path, database_url: str) -> None:
    script = f"""
import time
from babylon_rl.pipeline.workspace import running_policy_server
from babylon_rl.settings import Settings
with running_policy_server(Settings.load(BABYLON_HOME={str(tmp_path)!r}, DATABASE_URL={database_url!r})) as url:
    print(url, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        assert httpx.get(url.removesuffix("/v1") + "/healthz").status_code == 200
        os.kill(parent.pid, signal.SIGKILL)

    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            httpx.get(url.removesuffix("/v1") + "/healthz", timeout=1)
        except httpx.TransportError:
            return
        time.sleep(0.1)
    pytest.fail("the server outlived its parent by 15 s")
