"""A short lineage, recorded without the minutes of a training, and what the tests of publishing ask of a database."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import psycopg
import sqlalchemy as sa

from babylon_rl.database import tables as t
from babylon_rl.deployment.stages import Arm, Deployment, MoveKind, Stage
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.call_traces import digest_manifest
from babylon_rl.store.deployments import Move, read_deployment, write_move
from babylon_rl.store.evaluations import PolicyResult
from babylon_rl.types import policy_name
from babylon_rl.windows import HourWindow

OpenForeign = Callable[[str], AbstractContextManager[Workspace]]
MANIFEST = {"adapter_model.safetensors": "5e" * 32}


def record_step(workspace: Workspace, last: HourWindow, windows: int) -> None:
    """Record the next checkpoint of the oldest ready windows, as the trainer would."""
    plan = workspace.ledger.plan(last, windows, learning_rate=None)
    assert plan is not None
    path = f"checkpoints/{plan.step:04d}"
    workspace.ledger.record(
        plan,
        trainer="cpu",
        base_model="shipped",
        path=path,
        manifest=MANIFEST,
        metrics={"loss/train": 0.25 * plan.step},
    )


def move(
    workspace: Workspace,
    kind: MoveKind,
    subject: int,
    *,
    incumbent: int,
    candidate: int | None = None,
    stage: Stage = Stage.NONE,
) -> None:
    """Write the next move of the lineage."""
    before = read_deployment(workspace.store.engine, workspace.settings.lineage)
    after = Deployment(
        lineage=before.lineage,
        number=before.number + 1,
        stage=stage,
        incumbent=incumbent,
        candidate=candidate,
        rollout=None if candidate is None else f"rollout-{candidate}",
        threshold=0.1,
    )
    reason = f"{policy_name(before.lineage, subject)} did what a test asks."
    assert write_move(
        workspace.store.engine, Move(kind=kind, after=after, subject=subject, reason=reason, made_by="operator")
    )


def serve(
    workspace: Workspace, call_id: str, agent: str | None, step: int, arm: Arm = Arm.INCUMBENT, **more: Any
) -> None:
    """Record one call as the gateway does."""
    now = workspace.now()
    deployment = read_deployment(workspace.store.engine, workspace.settings.lineage).number
    row = {
        "call_id": call_id,
        "agent_id": agent,
        "window_id": str(HourWindow.containing(now)),
        "lineage": workspace.settings.lineage,
        "step": step,
        "digest": digest_manifest(MANIFEST) if step else "",
        "arm": arm,
        "deployment": deployment,
        "upstream": "engine",
        "status": 200,
        "asked_at": now,
        "latency_ms": 12.5,
        "streamed": False,
    }
    with workspace.store.engine.begin() as conn:
        conn.execute(sa.insert(t.served_calls), [row | more])


def a_result(name: str, mean: float) -> PolicyResult:
    return PolicyResult(name=name, pnl_usd=(mean - 1, mean, mean + 1), invalid_rate=0.0)


def rows_of(url: str, table: str, columns: Sequence[str], order: str) -> list[tuple[Any, ...]]:
    """Some columns of a table of the game, by its own names."""
    names = ", ".join(f'"{c}"' for c in columns)
    with psycopg.connect(url) as conn:
        return conn.execute(f'SELECT {names} FROM {table} ORDER BY "{order}"').fetchall()


def everything(url: str, tables: Sequence[str]) -> dict[str, list[tuple[Any, ...]]]:
    """Every row with the transaction that wrote it: equal only if nothing was written."""
    with psycopg.connect(url) as conn:
        return {n: conn.execute(f"SELECT xmin::text, x::text FROM {n} x ORDER BY 2").fetchall() for n in tables}
