"""Metrics leave this machine only where the operator wants it, and an outage of W&B costs seconds, not a training."""

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from babylon_rl.pipeline.train import train_range
from babylon_rl.pipeline.workspace import open_workspace
from babylon_rl.settings import Settings
from babylon_rl.training.art_import import without_wandb
from babylon_rl.training.wandb_log import LIMIT_S, log_to_wandb
from babylon_rl_tests.played import hours, play_and_judge

KEY = "0123456789" * 4


class CountingServer:
    """A W&B that accepts connections, counts them, and closes each at once."""

    def __init__(self) -> None:
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingServer]:
    """An environment in which ART alone would start a W&B run."""
    server = CountingServer()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    yield server
    server.close()


def test_a_key_in_the_environment_sends_no_metrics(settings: Settings, wandb_server: CountingServer) -> None:
    with open_workspace(settings.changed(training={"min_windows": 1})) as workspace:
        play_and_judge(workspace, hours(1))
        (outcome,) = train_range(workspace, hours(1)).values()

    assert [c.step for c in outcome.trained] == [1]
    assert wandb_server.connections == 0
    assert os.environ["WANDB_API_KEY"] == KEY, "what was hidden from ART is back"


def test_metrics_are_kept_on_disk_while_wandb_is_down(
    tmp_path, monkeypatch: pytest.MonkeyPatch, wandb_server: CountingServer, caplog: pytest.LogCaptureFixture
) -> None:
    training = Settings.load(BABYLON_WANDB_LOGGING="on").training

    started = time.monotonic()
    log_to_wandb(training, tmp_path, lineage="line", step=3, metrics={"loss/train": 0.5})

    assert time.monotonic() - started < sum(LIMIT_S.values())
    assert wandb_server.connections > 0, "it was tried"
    (kept,) = (tmp_path / "wandb").glob("offline-run-*-line")
    assert b"loss/train" in next(kept.glob("run-*.wandb")).read_bytes()
    assert "line@3" in caplog.text
    assert "wandb sync" in caplog.text
    assert KEY not in caplog.text


def test_nothing_is_started_without_the_setting(tmp_path, wandb_server: CountingServer) -> None:
    log_to_wandb(Settings.load().training, tmp_path, lineage="line", step=1, metrics={})

    assert list(tmp_path.iterdir()) == []
    assert wandb_server.connections == 0


def test_what_is_hidden_from_art_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")

    inside = {}

    def fail() -> None:
        with without_wandb():
            inside.update(os.environ)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert "WANDB_API_KEY" not in inside
    assert inside["WANDB_MODE"] == "disabled"
    assert (os.environ["WANDB_API_KEY"], os.environ["WANDB_MODE"]) == (KEY, "offline")
