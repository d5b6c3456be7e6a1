"""Settings → a trainer. The only place that knows which trainers there are; each is imported when it is chosen."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from babylon_rl.settings import Settings
from babylon_rl.training.trainer import Progress, Trainer

if TYPE_CHECKING:
    from babylon_rl.training.art_trainer import Engine


@asynccontextmanager
async def open_trainer(settings: Settings, *, on_step: Progress | None = None) -> AsyncGenerator[Trainer]:
    """Open the trainer that `BABYLON_TRAINER` names and close it afterwards.

    Args:
        settings: `trainer`, `base_model`, `learning_rate`, `checkpoints_dir` and the W&B fields are read.
        on_step: Told of each gradient step; the remote trainer cannot tell.

    Raises:
        ConfigError: The chosen trainer lacks a key or a package.
    """
    from babylon_rl.training.art_trainer import ArtTrainer

    trainer = ArtTrainer(_engine(settings, on_step))
    try:
        yield trainer
    finally:
        await trainer.close()


def _engine(settings: Settings, on_step: Progress | None) -> "Engine":
    match settings.trainer:
        case "cpu":
            from babylon_rl.training.cpu_backend import CpuEngine

            return CpuEngine.from_settings(settings, on_step=on_step)
        case "local":
            from babylon_rl.training.local import LocalEngine

            return LocalEngine.from_settings(settings)
        case "serverless":
            from babylon_rl.training.serverless import ServerlessEngine

            return ServerlessEngine.from_settings(settings)
