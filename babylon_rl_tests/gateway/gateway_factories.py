"""A gateway on a socket of this process, and moves of its deployment."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import sqlalchemy as sa
import uvicorn

from babylon_rl.database import tables as t
from babylon_rl.deployment.stages import Deployment, MoveKind
from babylon_rl.gateway.server import open_gateway
from babylon_rl.policy.http import make_protocol
from babylon_rl.settings import Settings
from babylon_rl.store.deployments import Move, read_deployment, write_move

LINEAGE = "babylon-mmo"
MESSAGES: list[Any] = [{"role": "system", "content": "You trade."}, {"role": "user", "content": "What now?"}]


@contextmanager
def gateway_in_thread(settings: Settings, *, into_foreign_game: bool = False) -> Iterator[str]:
    """The base URL, ending in `/v1`, of a gateway that needs no engine."""
    app = open_gateway(settings, into_foreign_game=into_foreign_game)
    config = uvicorn.Config(
        app, port=0, http=make_protocol(), log_config=None, lifespan="on", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        assert server.started, "the gateway did not start"
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()


def record_remote(engine: sa.Engine, step: int, *, trainer: str = "local", path: str = "remote") -> None:
    """Record a checkpoint whose weights another server has."""
    row = {
        "lineage": LINEAGE,
        "step": step,
        "window_id": "2025-01-15T00:00",
        "trainer": trainer,
        "base_model": "base",
        "path": path,
        "manifest": "{}",
        "judgment_keys": [],
        "metrics": "{}",
    }
    with engine.begin() as conn:
        conn.execute(sa.insert(t.checkpoints), [row])


def move(engine: sa.Engine, kind: MoveKind, subject: int, **after: Any) -> Deployment:
    """Make one move of the lineage, whatever the rules say; `after` are the fields of what is deployed then."""
    d = Deployment(lineage=LINEAGE, number=read_deployment(engine, LINEAGE).number + 1, **after)
    assert write_move(engine, Move(kind=kind, after=d, subject=subject, reason="a test", made_by="operator"))
    return d


def read_calls(engine: sa.Engine, **where: Any) -> list[Any]:
    """Recorded calls, oldest first."""
    query = sa.select(t.served_calls).order_by(t.served_calls.c.call_id).filter_by(**where)
    with engine.connect() as conn:
        return list(conn.execute(query))


def wait_until(condition: Any, timeout_s: float = 20) -> Any:
    """Wait for something to become true; returns it."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.005)
    return found


def post_chat(url: str, *, headers: dict[str, str] | None = None, **changes: Any) -> httpx.Response:
    """Ask for the lineage's name."""
    body = {"model": LINEAGE, "messages": MESSAGES, "max_tokens": 5} | changes
    return httpx.post(f"{url}/chat/completions", json=body, headers=headers, timeout=20, trust_env=False)
