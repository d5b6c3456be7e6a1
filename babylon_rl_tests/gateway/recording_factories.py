"""Served calls, and a database that can be away for a while."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from gateway_factories import LINEAGE
from gateway_factories import move as make_move

from babylon_rl.common.canonical import to_json
from babylon_rl.common.files import hash_file
from babylon_rl.database import tables as t
from babylon_rl.deployment.stages import Arm, Deployment, MoveKind, Stage
from babylon_rl.gateway.calls import ServedCall, new_call_id
from babylon_rl.store.deployments import read_deployment
from babylon_rl.store.served_calls import RecordedCall, read_calls
from babylon_rl_tests.factories import WINDOW

MESSAGES = [{"role": "system", "content": "You trade."}, {"role": "user", "content": "Markets: …"}]


def a_served_call(**changes: Any) -> ServedCall:
    known: dict[str, Any] = {
        "call_id": new_call_id(),
        "agent_id": "agent-1",
        "window_id": str(WINDOW),
        "lineage": LINEAGE,
        "step": 3,
        "digest": "d" * 64,
        "arm": Arm.INCUMBENT,
        "deployment": 5,
        "rollout": None,
        "fell_back_from": None,
        "upstream": "engine",
        "status": 200,
        "error": None,
        "asked_at": datetime.now(UTC),
        "first_token_ms": None,
        "latency_ms": 12.5,
        "prompt_tokens": 200,
        "completion_tokens": 20,
        "temperature": 0.5,
        "finish_reason": "stop",
        "streamed": False,
        "model_asked": LINEAGE,
    }
    return ServedCall(**(known | changes))


def a_logged_call(trajectory_id: str, number: int | None, response: str, **changes: Any) -> ServedCall:
    """A call that names a trajectory, so that the game's log gets it."""
    known: dict[str, Any] = {
        "trajectory_id": trajectory_id,
        "step_number": number,
        "messages": json.dumps(MESSAGES),
        "response": response,
        "max_tokens": 64,
    }
    return a_served_call(**(known | changes))


def served(engine: sa.Engine, windows: Sequence[str] = (str(WINDOW),)) -> list[RecordedCall]:
    return read_calls(engine, LINEAGE, windows)


@contextmanager
def database_away(server_url: str, database_url: str) -> Iterator[None]:
    """Nobody can connect to the database, and whoever was connected is not any more."""
    name = sa.make_url(database_url).database
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        try:
            yield
        finally:
            conn.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


def move(engine: sa.Engine, kind: MoveKind, step: int) -> Deployment:
    """Make a step the canary of a tenth, or the incumbent, or end its rollout, whatever the rules say."""
    d = read_deployment(engine, LINEAGE)
    if kind is MoveKind.CANARY:
        trial = {"stage": Stage.CANARY, "candidate": step, "rollout": f"r{d.number}", "threshold": 0.1}
        return make_move(engine, kind, step, incumbent=d.incumbent, test_threshold=0.5, **trial)
    return make_move(engine, kind, step, incumbent=step if kind is MoveKind.PROMOTED else d.incumbent)


def record_checkpoint(engine: sa.Engine, step: int, directory: Path | None = None) -> None:
    """Record what lies in a folder as the ledger does; without one, a checkpoint that nobody can load."""
    files = {} if directory is None else {p.name: hash_file(p) for p in directory.iterdir()}
    row = {
        "lineage": LINEAGE,
        "step": step,
        "window_id": str(WINDOW),
        "trainer": "cpu",
        "base_model": "shipped",
        "path": str(directory or f"/c/{step}"),
        "manifest": to_json(files or {"f": "00"}).decode(),
        "judgment_keys": [],
        "metrics": "{}",
    }
    with engine.begin() as conn:
        conn.execute(sa.insert(t.checkpoints), [row])
