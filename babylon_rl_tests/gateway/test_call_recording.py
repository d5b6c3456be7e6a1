"""Each served call is recorded once, whatever happens to the database or the process, and never costs an agent its call."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from recording_factories import a_logged_call, a_served_call, database_away, served

from babylon_rl.deployment.stages import Arm
from babylon_rl.gateway import recording
from babylon_rl.gateway.recording import CallRecorder
from babylon_rl.store.served_calls import read_call

RECORD_FOR_EVER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from recording_factories import a_served_call
from babylon_rl.gateway.recording import CallRecorder

async def main():
    recorder = CallRecorder(sys.argv[1], Path(sys.argv[2]))
    async with recorder.running():
        while True:
            call = a_served_call()
            recorder.record(call)
            print(call.call_id, flush=True)
            await asyncio.sleep(0.0005)

asyncio.run(main())
"""


async def wait_for(condition: Any, timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def test_a_call_is_a_row_with_all_that_was_known(engine: sa.Engine, database_url: str, tmp_path: Path) -> None:
    async def record() -> None:
        recorder = CallRecorder(database_url, tmp_path)
        async with recorder.running():
            recorder.record(plain)
            recorder.record(kept)
        assert recorder.stats.written == 2
        assert recorder.waiting == 0

    plain = a_served_call(
        arm=Arm.CANDIDATE, rollout="r", logprobs=(-0.5, -0.25), messages="[]", response="not asked for"
    )
    kept = a_served_call(status=499, keep_text=True, messages="[]", response="half \ud83d and \x00", agent_id=None)
    asyncio.run(record())

    found = read_call(engine, plain.call_id)
    assert found is not None
    same = (
        "agent_id",
        "step",
        "digest",
        "arm",
        "deployment",
        "rollout",
        "asked_at",
        "latency_ms",
        "temperature",
        "status",
    )
    assert {n: getattr(found, n) for n in same} == {n: getattr(plain, n) for n in same}
    assert (found.messages, found.response) == (None, None), "texts are kept only where asked for"
    text = read_call(engine, kept.call_id)
    assert text is not None
    assert (text.status, text.agent_id, text.response) == (499, None, "half \ufffd and \ufffd")
    with engine.connect() as conn:
        query = sa.text("SELECT logprobs FROM babylon_rl.served_calls WHERE call_id = :id")
        assert conn.scalar(query, {"id": plain.call_id}) == [-0.5, -0.25]
    assert list(tmp_path.iterdir()) == []


def test_calls_wait_on_disk_while_the_database_is_away(
    engine: sa.Engine, server_url: str, database_url: str, tmp_path: Path
) -> None:
    calls = [a_served_call() for _ in range(300)]

    async def record() -> CallRecorder:
        recorder = CallRecorder(database_url, tmp_path)
        async with recorder.running():
            recorder.record(calls[0])
            await wait_for(lambda: recorder.stats.written == 1)
            with database_away(server_url, database_url):
                for call in calls[1:200]:
                    recorder.record(call)
                await wait_for(lambda: recorder.stats.error is not None)
                for call in calls[200:]:
                    recorder.record(call)
                assert recorder.stats.waiting == 299
            await wait_for(lambda: recorder.waiting == 0)
        return recorder

    stats = asyncio.run(record()).stats
    assert {c.call_id for c in served(engine)} == {c.call_id for c in calls}
    assert (stats.written, stats.spilled, stats.lost, stats.error) == (300, 299, 0, None)


def test_a_stop_without_the_database_leaves_them_for_the_next(
    engine: sa.Engine, server_url: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "STOP_S", 0.2)
    calls = [a_served_call() for _ in range(50)]

    async def record(recorder: CallRecorder, some: Any) -> None:
        async with recorder.running():
            for call in some:
                recorder.record(call)

    with database_away(server_url, database_url):
        asyncio.run(record(CallRecorder(database_url, tmp_path), calls))
    later = CallRecorder(database_url, tmp_path)
    asyncio.run(record(later, []))
    assert {c.call_id for c in served(engine)} == {c.call_id for c in calls}
    assert later.stats.spilled == 50


def test_a_sigkill_loses_no_recorded_call(engine: sa.Engine, database_url: str, tmp_path: Path) -> None:
    """Killed while batches are written: what was said to be recorded is there afterwards, once."""
    arguments = [sys.executable, "-c", RECORD_FOR_EVER, database_url, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        own = [process.stdout.readline().strip() for _ in range(700)]
        os.kill(process.pid, signal.SIGKILL)
        said = {*own, *process.stdout.read().split()}

    async def take_over() -> None:
        async with CallRecorder(database_url, tmp_path).running():
            pass

    asyncio.run(take_over())
    rows = [c.call_id for c in served(engine)]
    assert len(rows) == len(set(rows))
    assert said <= set(rows)
    assert len(rows) - len(said) <= 1, "a kill may find one call recorded and not said"
    assert list(tmp_path.glob("*.jsonl")) == []


def test_a_call_that_the_database_refuses_costs_no_other(engine: sa.Engine, database_url: str, tmp_path: Path) -> None:
    with engine.begin() as conn:
        conn.exec_driver_sql("ALTER TABLE babylon_rl.served_calls ADD CHECK (agent_id <> 'agent-3')")
    calls = [a_served_call(agent_id=f"agent-{i}", prompt_tokens=2**40) for i in range(8)]

    async def record() -> CallRecorder:
        recorder = CallRecorder(database_url, tmp_path)
        async with recorder.running():
            for call in calls:
                recorder.record(call)
        return recorder

    stats = asyncio.run(record()).stats
    assert {c.call_id for c in served(engine)} == {c.call_id for c in calls if c is not calls[3]}
    assert (stats.written, stats.rejected, stats.waiting) == (7, 1, 0)
    assert {c.prompt_tokens for c in served(engine)} == {None}, "COPY would store 2**40 as 0"
    assert json.loads((tmp_path / "rejected.txt").read_text())["call_id"] == calls[3].call_id


def test_bytes_that_are_no_text_hold_up_nothing(
    engine: sa.Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may leave anything in a journal; the oldest segment is read first."""
    monkeypatch.setattr(recording, "STOP_S", 0.5)
    (tmp_path / "0.jsonl").write_bytes(b'{"call_id": "\xff"}\n\x00\x00\n')
    call = a_served_call()

    async def record() -> CallRecorder:
        recorder = CallRecorder(database_url, tmp_path)
        async with recorder.running():
            recorder.record(call)
        return recorder

    stats = asyncio.run(record()).stats
    assert [c.call_id for c in served(engine)] == [call.call_id]
    assert (stats.written, stats.rejected, stats.waiting) == (1, 2, 0)


def test_memory_takes_what_the_disk_does_not(
    engine: sa.Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "MOST_IN_MEMORY", 5)
    (tmp_path / "no folder").write_text("")
    calls = [a_served_call() for _ in range(7)]

    recorder = CallRecorder(database_url, tmp_path / "no folder")
    for call in calls:
        recorder.record(call)
    assert (recorder.stats.lost, recorder.waiting) == (2, 5)

    async def write() -> None:
        async with recorder.running():
            pass

    asyncio.run(write())
    assert {c.call_id for c in served(engine)} == {c.call_id for c in calls[:5]}


def test_at_a_stop_the_disk_gets_what_memory_has(
    engine: sa.Engine, server_url: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "STOP_S", 0.2)
    folder, calls = tmp_path / "spill", [a_served_call() for _ in range(5)]

    async def record(recorder: CallRecorder, some: Any) -> None:
        async with recorder.running():
            for call in some:
                recorder.record(call)
            folder.unlink(missing_ok=True)  # there is space again, after the last call

    folder.write_text("")
    with database_away(server_url, database_url):
        asyncio.run(record(CallRecorder(database_url, folder), calls))
    assert sum(f.read_bytes().count(b"\n") for f in folder.glob("*.jsonl")) == 5


def test_recording_costs_less_than_a_tenth_of_a_millisecond(
    engine: sa.Engine, database_url: str, tmp_path: Path
) -> None:
    """On the event loop's thread, with the texts of a game's call and the log-probabilities of its answer."""
    calls = [a_logged_call("t", i, "r" * 200, logprobs=(-0.123456,) * 60) for i in range(400)]
    recorder = CallRecorder(database_url, tmp_path)
    took = []
    for call in calls:
        begun = time.perf_counter()
        recorder.record(call)
        took.append(time.perf_counter() - begun)
    assert sorted(took)[len(took) // 2] < 0.0001
    assert recorder.waiting == 400
    assert served(engine) == []
