"""Checkpoints of the policy tests, recorded as the ledger does."""

import hashlib
from pathlib import Path

import sqlalchemy as sa

from babylon_rl.common.canonical import to_json
from babylon_rl.database import tables as t
from babylon_rl.policy.checkpoints import LEDGER_FILE


def record_checkpoint(engine: sa.Engine, directory: Path, lineage: str, step: int, *, trainer: str = "cpu") -> None:
    """Record what lies in a folder, instead of what was recorded of that step before."""
    files = [p for p in sorted(directory.iterdir()) if p.name != LEDGER_FILE]
    row = {
        "lineage": lineage,
        "step": step,
        "window_id": "2025-01-15T00:00",
        "trainer": trainer,
        "base_model": "shipped",
        "path": str(directory),
        "manifest": to_json({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}).decode(),
        "judgment_keys": [],
        "metrics": "{}",
    }
    c = t.checkpoints.c
    with engine.begin() as conn:
        conn.execute(sa.delete(t.checkpoints).where(c.lineage == lineage, c.step == step))
        conn.execute(sa.insert(t.checkpoints), [row])
