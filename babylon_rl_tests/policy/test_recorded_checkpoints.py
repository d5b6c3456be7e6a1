"""`babylon-rl serve` serves what the ledger has recorded, byte for byte, and nothing else that lies on disk."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import sqlalchemy as sa
from policy_factories import record_checkpoint

from babylon_rl.policy.checkpoints import checkpoint_dir, write_ledger_of
from babylon_rl.settings import Settings
from babylon_rl.simulator.observation import SYSTEM_PROMPT
from babylon_rl.store.ledger_identity import read_ledger_id
from babylon_rl_tests.conftest import drop_database

LINEAGE = "babylon-mmo"
WriteCheckpoint = Callable[[Path, str, int], Path]


@contextmanager
def serving(settings: Settings, log: Path) -> Iterator[tuple[str, int]]:
    """Address and process id of a `babylon-rl serve` of these settings."""
    assert settings.database.url is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "BABYLON_HOME": str(settings.home),
        "DATABASE_URL": settings.database.url.get_secret_value(),
        "BABYLON_SERVE_TEMPERATURE": "0",
    }
    command = [sys.executable, "-m", "babylon_rl.cli.main", "serve", "--port", str(port)]
    with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
        try:
            end = time.monotonic() + 60
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).is_success:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1", process.pid
        finally:
            process.send_signal(signal.SIGTERM)


def ask(url: str, model: str, user: str) -> httpx.Response:
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": user}]
    body = {"model": model, "messages": messages, "max_tokens": 24}
    return httpx.post(f"{url}/chat/completions", json=body, trust_env=False, timeout=60)


def read_text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def read_refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


def write_finished(write_checkpoint: WriteCheckpoint, settings: Settings, engine: sa.Engine, step: int = 1) -> Path:
    """A checkpoint as a training leaves it before it is recorded; its folder."""
    shutil.rmtree(checkpoint_dir(settings.checkpoints_dir, LINEAGE, step), ignore_errors=True)
    directory = write_checkpoint(settings.checkpoints_dir, LINEAGE, step)
    write_ledger_of(directory, read_ledger_id(engine))
    return directory


def test_a_step_made_again_is_served_with_its_new_weights(
    settings: Settings, engine: sa.Engine, write_checkpoint: WriteCheckpoint, user_prompts: list[str], tmp_path: Path
) -> None:
    """A training killed before it was recorded, `discard-plan`, and the step trained anew; the server runs on."""
    with serving(settings, tmp_path / "log") as (url, _):
        record_checkpoint(engine, write_finished(write_checkpoint, settings, engine), LINEAGE, 1)
        first = [read_text(ask(url, f"{LINEAGE}@1", p)) for p in user_prompts[:3]]
        record_checkpoint(engine, write_finished(write_checkpoint, settings, engine), LINEAGE, 1)
        second = [read_text(ask(url, f"{LINEAGE}@1", p)) for p in user_prompts[:3]]
    with serving(settings, tmp_path / "again") as (url, _):
        restarted = [read_text(ask(url, f"{LINEAGE}@1", p)) for p in user_prompts[:3]]
    assert second != first
    assert second == restarted


def test_a_folder_that_is_not_recorded_is_not_served(
    settings: Settings, engine: sa.Engine, write_checkpoint: WriteCheckpoint, user_prompts: list[str], tmp_path: Path
) -> None:
    directory = write_finished(write_checkpoint, settings, engine)
    with serving(settings, tmp_path / "log") as (url, _):
        status, sentence = read_refusal(ask(url, f"{LINEAGE}@1", user_prompts[0]))
        assert status == 404
        assert "the ledger has recorded no checkpoint 1" in sentence
        assert f"the latest is '{LINEAGE}@0'" in sentence
        listed = [m["id"] for m in httpx.get(f"{url}/models", trust_env=False).json()["data"]]
        assert listed == [f"{LINEAGE}@0"]

        record_checkpoint(engine, directory, LINEAGE, 1)
        assert read_text(ask(url, f"{LINEAGE}@latest", user_prompts[0])), "recorded a moment ago, served now"


def test_weights_other_than_those_recorded_are_refused(
    settings: Settings, engine: sa.Engine, write_checkpoint: WriteCheckpoint, user_prompts: list[str], tmp_path: Path
) -> None:
    record_checkpoint(engine, write_finished(write_checkpoint, settings, engine), LINEAGE, 1)
    directory = write_finished(write_checkpoint, settings, engine)  # other weights under the recorded name
    with serving(settings, tmp_path / "log") as (url, _):
        status, sentence = read_refusal(ask(url, f"{LINEAGE}@1", user_prompts[0]))
        assert status == 422
        assert f"checkpoint '{LINEAGE}@1': adapter_model.safetensors" in sentence
        assert "restore" in sentence

        shutil.rmtree(directory)
        status, sentence = read_refusal(ask(url, f"{LINEAGE}@1", user_prompts[0]))
        assert status == 422
        assert "does not exist" in sentence


def test_weights_kept_by_the_trainer_are_not_served_here(
    settings: Settings, engine: sa.Engine, write_checkpoint: WriteCheckpoint, user_prompts: list[str], tmp_path: Path
) -> None:
    with engine.begin() as conn:
        conn.execute(
            sa.text(
                "INSERT INTO babylon_rl.checkpoints (lineage, step, window_id, trainer, base_model, path, manifest, "
                "judgment_keys, metrics) VALUES ('remote', 1, 'w', 'serverless', 'b', 'team/p/remote:step1', '{}', '{}', '{}')"
            )
        )
    with serving(settings, tmp_path / "log") as (url, _):
        status, sentence = read_refusal(ask(url, "remote@1", user_prompts[0]))
    assert status == 404
    assert "'team/p/remote:step1'" in sentence


def test_a_body_without_a_length_is_refused_at_the_limit(settings: Settings, tmp_path: Path) -> None:
    """50 MB in chunks were read whole, and refused then."""
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with serving(settings, tmp_path / "log") as (url, pid):
        before = peak_memory_kb(pid)
        port = int(url.rpartition(":")[2].removesuffix("/v1"))
        sent = 0
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            answer = b""
            try:
                while sent < 50 << 20:
                    connection.sendall(chunk)
                    sent += 0x10000
                connection.sendall(b"0\r\n\r\n")
            except OSError:
                pass  # the server has answered and hung up
            with suppress(OSError):
                answer = connection.recv(4096)
        grown = peak_memory_kb(pid) - before
        assert httpx.get(url.removesuffix("/v1") + "/healthz", trust_env=False).is_success
        with httpx.Client(trust_env=False) as client:
            refused = client.post(f"{url}/chat/completions", content=iter([b" " * 0x20000] * 9))
    assert sent < 50 << 20
    assert answer == b"" or b" 413 " in answer.split(b"\r\n", 1)[0]
    assert grown < 20_000, "kB"
    assert refused.status_code == 413
    assert "send at most 1048576" in refused.json()["error"]["message"]


def peak_memory_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def test_a_ledger_that_cannot_be_read_serves_nothing(
    settings: Settings, server_url: str, user_prompts: list[str], tmp_path: Path
) -> None:
    assert settings.database.url is not None
    name = sa.make_url(settings.database.url.get_secret_value()).database
    with serving(settings, tmp_path / "log") as (url, _):
        assert read_text(ask(url, f"{LINEAGE}@0", user_prompts[0]))
        drop_database(server_url, str(name))
        status, sentence = read_refusal(ask(url, f"{LINEAGE}@0", user_prompts[0]))
    assert status == 503
    assert "start its database and try again" in sentence
