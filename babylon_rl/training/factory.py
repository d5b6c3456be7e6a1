"""Settings → a trainer. The only place that knows which trainers there are; each is imported when it is chosen."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.errors import ConfigError
from babylon_rl.settings import TrainingSettings
from babylon_rl.training.trainer import JobJournal, ServedPolicy, Trainer
from babylon_rl.types import Checkpoint, policy_name

if TYPE_CHECKING:
    from babylon_rl.training.art_trainer import TrainingEngine


@asynccontextmanager
async def open_trainer(
    settings: TrainingSettings, *, checkpoints: Path, jobs: JobJournal, progress: Progress = ignore_progress
) -> AsyncGenerator[Trainer]:
    """Open the trainer that `BABYLON_TRAINER` names and close it afterwards.

    Args:
        settings: Which trainer, on which base, at which learning rate, and W&B's key.
        checkpoints: Directory under which every checkpoint lies.
        jobs: What is known of the batch's remote job; by `serverless` only.
        progress: Called after each gradient step, with its loss; by the CPU trainer only.

    Raises:
        ConfigError: The chosen trainer lacks a key or a package.
    """
    from babylon_rl.training.art_trainer import ArtTrainer

    trainer = ArtTrainer(_choose_engine(settings, checkpoints, jobs, progress))
    try:
        yield trainer
    finally:
        await trainer.close()


def locate_policy(settings: TrainingSettings, checkpoint: Checkpoint, *, inference_url: str | None) -> ServedPolicy:
    """Where the trainer of a checkpoint serves it; of the CPU trainer's, that is our own server.

    Args:
        settings: The base, and W&B's key and addresses.
        checkpoint: Names its trainer, which need not be the one that the settings choose now.
        inference_url: Of our server or of vLLM; not used for W&B.

    Raises:
        ConfigError: Nothing serves it; the message says what is missing.
    """
    match checkpoint.trainer:
        case "cpu" if inference_url is not None:
            return ServedPolicy(
                base_url=inference_url.rstrip("/"), model=checkpoint.name, base_model=policy_name(checkpoint.lineage, 0)
            )
        case "local":
            from babylon_rl.training import local

            return local.locate(settings, inference_url, checkpoint)
        case "serverless":
            from babylon_rl.training import serverless

            return serverless.locate(settings, checkpoint)
    raise ConfigError(
        f"{checkpoint.name} was trained by {checkpoint.trainer!r}, and nothing is known to serve it; expected cpu with a server, "
        "local or serverless"
    )


def locate_base(settings: TrainingSettings, lineage: str, *, inference_url: str | None) -> ServedPolicy:
    """Where the base is served before the lineage has its first checkpoint; its name there is `base_model`.

    Args:
        settings: The trainer that will train it, the base, and W&B's key and addresses.
        lineage: Its step 0 is the base of our own server.
        inference_url: Of our server or of vLLM; not used for W&B.

    Raises:
        ConfigError: Nothing serves it; the message says what is missing.
    """
    if settings.trainer == "serverless":
        from babylon_rl.training import serverless

        return serverless.locate_base(settings)
    base = policy_name(lineage, 0) if settings.trainer == "cpu" else settings.base_model
    if inference_url is None or base is None:
        raise ConfigError(
            f"the base of {lineage!r} is not served: set BABYLON_INFERENCE_URL and BABYLON_BASE_MODEL, or "
            "BABYLON_UPSTREAM_BASE_URL where another endpoint answers as the base"
        )
    return ServedPolicy(base_url=inference_url.rstrip("/"), model=base, base_model=base)


def _choose_engine(
    settings: TrainingSettings, checkpoints: Path, jobs: JobJournal, progress: Progress
) -> "TrainingEngine":
    match settings.trainer:
        case "cpu":
            from babylon_rl.training.cpu_backend import CpuEngine

            return CpuEngine.from_settings(settings, checkpoints, progress=progress)
        case "local":
            from babylon_rl.training.local import LocalEngine

            return LocalEngine.from_settings(settings, checkpoints)
        case "serverless":
            from babylon_rl.training.serverless import ServerlessEngine

            return ServerlessEngine.from_settings(settings, checkpoints, jobs)
