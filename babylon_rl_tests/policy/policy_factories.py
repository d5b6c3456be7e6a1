"""Checkpoints of the policy tests, recorded as the ledger does."""

import hashlib
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from babylon_rl.common.canonical import to_json
from babylon_rl.database import tables as t
from babylon_rl.policy.checkpoints import LEDGER_FILE, METADATA_FILE, checkpoint_dir
from babylon_rl.policy.model import load_policy
from babylon_rl.policy.shipped import shipped_base


def write_random_adapter(directory: Path) -> Any:
    """Write a LoRA adapter that changes the shipped base; returns the unmerged peft model."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        load_policy(shipped_base()).model,
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
    )
    model.save_pretrained(str(directory))
    return model.eval()


def write_finished_checkpoint(root: Path, lineage: str, step: int) -> Path:
    """Write a checkpoint's folder, as a training leaves it."""
    directory = checkpoint_dir(root, lineage, step)
    write_random_adapter(directory)
    (directory / METADATA_FILE).write_text("{}")
    return directory


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
