"""A checkpoint whose weights are not loaded yet: nobody else waits for it, and it is loaded before it is asked."""

import asyncio
import logging
import threading
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


def test_nobody_waits_while_another_policy_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights come from a slow disk, which is the only thing that is not real here."""
    directory = write_finished_checkpoint(tmp_path, LINEAGE, 1)
    files = tuple((f.name, hash_file(f)) for f in directory.iterdir() if f.is_file())
    candidate = ServablePolicy(name=CANDIDATE, directory=directory, digest="d", files=files)
    disk = threading.Event()

    def load_slowly(base: Path, adapter: Path | None = None) -> Any:
        if adapter is not None:
            disk.wait(10)
        return load_policy(base, adapter)

    monkeypatch.setattr(engine_module, "load_policy", load_slowly)

    async def ask_both() -> tuple[bool, int]:
        engine = SamplingEngine(base=shipped_base())
        async with engine.running():
            cold = asyncio.create_task(engine.ask(candidate, PROMPT))
            await asyncio.sleep(0.1)  # it is asked first
            async with asyncio.timeout(5):
                await engine.ask(ServablePolicy(name=BASE), PROMPT)
            was_waiting = not cold.done()
            disk.set()
            return was_waiting, len((await cold).token_ids)

    try:
        assert asyncio.run(ask_both()) == (True, 3)
    finally:
        disk.set()


def test_a_move_loads_what_it_deploys(
    shared_settings: Settings, shared_engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    directory = write_finished_checkpoint(shared_settings.checkpoints_dir, LINEAGE, 1)
    record_checkpoint(shared_engine, directory, LINEAGE, 1)
    caplog.set_level(logging.INFO)
    with gateway_in_thread(shared_settings) as url:
        everybody = {"incumbent": 0, "candidate": 1, "rollout": "r", "stage": Stage.HALF, "threshold": 1.0}
        move(shared_engine, MoveKind.HALF, 1, **everybody)

        wait_until(lambda: f"loaded policy={CANDIDATE}" in caplog.text)
        got = post_chat(url, user="a")

    assert got.json()["model"] == CANDIDATE
