"""An LLM judge leaves nothing open behind a run through Dagster, whether the run succeeds or fails."""

import threading
from collections.abc import Iterator

import httpx
import psutil
import pytest
from dagster_factories import FIRST, spawn_windows

from babylon_rl.cli.runner import Runner
from babylon_rl.common.progress import ignore_progress
from babylon_rl.errors import BabylonRLError
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl_tests.judging.judge_server import JudgeServer

Clients = list[httpx.AsyncClient]


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer() as s:
        yield s


@pytest.fixture
def workspace(settings: Settings, server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """The environment names the judge; the workspace's settings are the environment's."""
    assert settings.database.url is not None
    for name, value in {
        "BABYLON_HOME": str(settings.home),
        "DATABASE_URL": settings.database.url.get_secret_value(),
        "JUDGE_MODEL": "openai/gpt-4o-mini",
        "JUDGE_BASE_URL": server.url,
    }.items():
        monkeypatch.setenv(name, value)
    with open_workspace(Settings.load()) as w:
        yield w


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Clients:
    """Every HTTP client that is opened, in order."""
    opened: Clients = []

    class Recorded(httpx.AsyncClient):
        def __init__(self, **options: object) -> None:
            super().__init__(**options)  # type: ignore[arg-type]
            opened.append(self)

    monkeypatch.setattr(httpx, "AsyncClient", Recorded)
    return opened


def open_sockets(server: JudgeServer) -> int:
    """Connections of this process to the judge (the server's own ends are not counted)."""
    port = int(server.url.split(":")[2].split("/")[0])
    return sum(bool(c.raddr) and c.raddr.port == port for c in psutil.Process().net_connections())


def judge_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("judge-prompt")]


@pytest.mark.parametrize("mode", ["honest", "401"])
def test_a_run_leaves_no_client_socket_or_thread_of_its_judge(
    mode: str, workspace: Workspace, runner: Runner, server: JudgeServer, clients: Clients
) -> None:
    server.behave(mode)
    spawn_windows(workspace, 2)
    resources = {"workspace": workspace, "progress": ignore_progress}
    if mode == "honest":
        runner.materialize("windows", FIRST, FIRST.next(), resources=resources)
        assert server.calls == 2
    else:
        with pytest.raises(BabylonRLError):
            runner.materialize("windows", FIRST, FIRST.next(), resources=resources)
    assert len(clients) >= 1
    assert (judge_threads(), open_sockets(server), [c.is_closed for c in clients]) == ([], 0, [True] * len(clients))
