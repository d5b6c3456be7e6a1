"""A checkpoint's metrics in W&B, where the operator wants them there.

What belongs here: that one training's numbers reach W&B, or a folder. W&B's client runs in a process of its own, after
the checkpoint is recorded and for a limited time, so that an outage of theirs costs seconds and never a training.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from babylon_rl.policy.checkpoints import PROJECT
from babylon_rl.settings import TrainingSettings
from babylon_rl.types import policy_name

logger = logging.getLogger(__name__)

CONNECT_S: Final = 5.0
LIMIT_S: Final = {"online": 30.0, "offline": 30.0}
"""Longest time that each try may take; a run that is only kept on disk takes about two seconds."""


def log_to_wandb(
    settings: TrainingSettings, home: Path, *, lineage: str, step: int, metrics: Mapping[str, float]
) -> None:
    """Send the metrics of one training if `BABYLON_WANDB_LOGGING` is `on`; it never fails and takes seconds at most.

    A lineage is one run. Where W&B cannot be reached, the run is kept in `wandb/` under BABYLON_HOME;
    `wandb sync` sends it.
    """
    if settings.wandb_logging != "on":
        return
    key = settings.wandb_api_key
    job = {"directory": str(home), "lineage": lineage, "step": step, "metrics": dict(metrics)}
    policy = policy_name(lineage, step)
    if key is not None and _log_once("online", {**job, "key": key.get_secret_value()}):
        logger.info("sent metrics to W&B policy=%s", policy)
    elif _log_once("offline", job):
        logger.warning("W&B is out of reach, send with `wandb sync` policy=%s kept_in=%s", policy, home / "wandb")
    else:
        logger.warning("metrics reached neither W&B nor a file, the checkpoint has them too policy=%s", policy)


def _log_once(mode: str, job: Mapping[str, object]) -> bool:
    """Whether W&B's client took the metrics, in a process that ends for certain."""
    command = [sys.executable, "-m", "babylon_rl.training.wandb_log", mode]
    try:
        (Path(str(job["directory"])) / "wandb").mkdir(parents=True, exist_ok=True)
        done = subprocess.run(  # our own module, no shell
            command, input=json.dumps(job).encode(), capture_output=True, timeout=LIMIT_S[mode], check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _main(mode: Any, job: dict[str, Any]) -> None:
    import wandb

    settings = wandb.Settings(
        api_key=job.get("key"),
        silent=True,
        console="off",
        disable_git=True,
        x_disable_stats=True,
        x_disable_meta=True,
        init_timeout=CONNECT_S,
        login_timeout=CONNECT_S,
        finish_timeout=2 * CONNECT_S,
    )
    run = wandb.init(
        mode=mode,
        project=PROJECT,
        name=job["lineage"],
        id=job["lineage"],
        dir=job["directory"],
        resume="allow" if mode == "online" else None,
        settings=settings,
    )
    run.define_metric("*", step_metric="training_step")
    run.log({**job["metrics"], "training_step": job["step"]})
    run.finish()


if __name__ == "__main__":
    _main(sys.argv[1], json.load(sys.stdin))
