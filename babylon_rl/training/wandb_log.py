"""A checkpoint's metrics in W&B, where the operator wants them there; run as `python -m babylon_rl.training.wandb_log`.

What belongs here: that one training's numbers reach W&B, or a folder. It runs in a process of its own after the
checkpoint is recorded, for a limited time, so that an outage of W&B costs seconds and never a training.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from babylon_rl.policy.checkpoints import PROJECT
from babylon_rl.settings import TrainingSettings
from babylon_rl.types import policy_name

logger = logging.getLogger(__name__)

CONNECT_S: Final = 5.0
LIMIT_S: Final = 45.0


def log_to_wandb(
    settings: TrainingSettings, home: Path, *, lineage: str, step: int, metrics: Mapping[str, float]
) -> None:
    """Send the metrics of one training, if `BABYLON_WANDB_LOGGING` is `on`; it never raises and takes `LIMIT_S` at most.

    A lineage is one run. Where W&B cannot be reached, the run is kept in `wandb/` under BABYLON_HOME;
    `wandb sync` sends it.
    """
    if settings.wandb_logging != "on":
        return
    key = settings.wandb_api_key
    job = {
        "key": None if key is None else key.get_secret_value(),
        "directory": str(home),
        "lineage": lineage,
        "step": step,
        "metrics": dict(metrics),
    }
    command = [sys.executable, "-m", "babylon_rl.training.wandb_log"]
    try:
        (home / "wandb").mkdir(parents=True, exist_ok=True)
        done = subprocess.run(  # our own module, no shell
            command, input=json.dumps(job).encode(), capture_output=True, timeout=LIMIT_S, check=False
        )
        outcome = done.stdout.decode().strip() if done.returncode == 0 else f"failed with status {done.returncode}"
    except (OSError, subprocess.SubprocessError) as e:
        outcome = f"failed with {type(e).__name__}"
    level = logging.INFO if outcome == "sent" else logging.WARNING
    logger.log(level, "logged metrics to W&B policy=%s outcome=%s", policy_name(lineage, step), outcome)


def _main() -> None:
    import wandb

    job = json.load(sys.stdin)
    common = {"project": PROJECT, "name": job["lineage"], "id": job["lineage"], "dir": job["directory"]}
    quiet = {"silent": True, "console": "off", "disable_git": True, "x_disable_stats": True, "x_disable_meta": True}
    online = {"init_timeout": CONNECT_S, "login_timeout": CONNECT_S, "finish_timeout": CONNECT_S * 2}
    outcome = "sent"
    try:
        if job["key"] is None:
            raise wandb.errors.UsageError("there is no key")
        settings = wandb.Settings(api_key=job["key"], **quiet, **online)
        run = wandb.init(mode="online", resume="allow", settings=settings, **common)
    except (wandb.errors.Error, OSError):
        outcome = f"kept in {job['directory']}/wandb, send it with `wandb sync`"
        run = wandb.init(mode="offline", settings=wandb.Settings(**quiet), **common)
    run.define_metric("*", step_metric="training_step")
    run.log({**job["metrics"], "training_step": job["step"]})
    run.finish()
    sys.stdout.write(outcome + "\n")


if __name__ == "__main__":
    _main()
