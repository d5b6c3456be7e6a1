"""A checkpoint whose weights are not loaded yet: nobody else waits for it, and it is loaded before it is asked."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from gateway_factories import LINEAGE, gateway_in_thread, move, post_chat, wait_until

from babylon_rl.common.files import hash_file
from babylon_rl.deployment.stages import MoveKind, Stage
from babylon_rl.policy import engine as engine_module
from babylon_rl.policy.catalog import ServablePolicy
from babylon_rl.policy.engine import SamplingEngine
from babylon_rl.policy.model import load_policy
from babylon_rl.policy.sampling import SampleRequest
from babylon_rl.policy.shipped import shipped_base
from babylon_rl.settings import Settings
from babylon_rl_tests.policy.policy_factories import record_checkpoint, write_finished_checkpoint

BASE, CANDIDATE = f"{LINEAGE}@0", f"{LINEAGE}@1"
PROMPT = SampleRequest(prompt_ids=[5, 6, 7], temperature=0, seed=1, max_tokens=3)


@pytest.fixture(scope="module")
def settings(shared_settings: Settings, shared_engine: sa.Engine) -> Settings:
    for step in (1, 2):
        directory = write_finished_checkpoint(shared_settings.checkpoints_dir, LINEAGE, step)
        record_checkpoint(shared_engine, directory, LINEAGE, step)
    return shared_settings.changed(gateway={"timeout_s": 0.5})


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The disk of the checkpoints gives no weights until this is set; all else is real."""
    disk = threading.Event()

    def load_slowly(base: Path, adapter: Path | None = None) -> Any:
        if adapter is not None:
            disk.wait(10)
        return load_policy(base, adapter)

    monkeypatch.setattr(engine_module, "load_policy", load_slowly)
    yield disk
    disk.set()


def test_nobody_waits_while_another_policy_is_loaded(tmp_path: Path, disk: threading.Event) -> None:
    directory = write_finished_checkpoint(tmp_path, LINEAGE, 1)
    files = tuple((f.name, hash_file(f)) for f in directory.iterdir() if f.is_file())
    candidate = ServablePolicy(name=CANDIDATE, directory=directory, digest="d", files=files)

    async def ask_both() -> bool:
        engine = SamplingEngine(base=shipped_base())
        async with engine.running():
            cold = asyncio.create_task(engine.ask(candidate, PROMPT))
            await asyncio.sleep(0.1)  # it is asked first
            async with asyncio.timeout(5):
                await engine.ask(ServablePolicy(name=BASE), PROMPT)
            was_waiting = not cold.done()
            disk.set()
            return was_waiting and len((await cold).token_ids) > 0

    assert asyncio.run(ask_both())


def test_a_prompt_far_too_long_is_refused_untokenized(settings: Settings) -> None:
    """A megabyte took up to 1.9 s on the event loop, in which nobody else got a token."""
    with gateway_in_thread(settings) as url:
        got = post_chat(url, messages=[{"role": "user", "content": "1 2,3" * 200_000}])
        many = post_chat(url, messages=[{"role": "user", "content": ""}] * 30_000)

    assert (got.status_code, got.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "the prompt has 1000000 letters" in got.text
    assert (many.status_code, "the prompt has 30000 messages" in many.text) == (400, True)


def give_to_all(engine: sa.Engine, candidate: int) -> None:
    everybody = {"incumbent": 0, "candidate": candidate, "rollout": "r", "stage": Stage.HALF, "threshold": 1.0}
    move(engine, MoveKind.HALF, candidate, **everybody)


@pytest.mark.parametrize("stream", [False, True])
def test_the_incumbent_answers_while_weights_do_not_come(
    settings: Settings, shared_engine: sa.Engine, disk: threading.Event, stream: bool
) -> None:
    give_to_all(shared_engine, 2)
    with gateway_in_thread(settings) as url:
        got = post_chat(url, user="a", stream=stream)
        assert (got.status_code, got.headers["x-babylon-policy"]) == (200, BASE)
        disk.set()


def test_a_move_loads_what_it_deploys(
    settings: Settings, shared_engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with gateway_in_thread(settings) as url:
        give_to_all(shared_engine, 1)
        wait_until(lambda: f"loaded policy={CANDIDATE}" in caplog.text)
        got = post_chat(url, user="a")

    assert got.json()["model"] == CANDIDATE
