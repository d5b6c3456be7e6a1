"""W&B Serverless behind `ArtTrainer`: ART's own `ServerlessBackend`, over plain HTTP.

What belongs here: the key and the address, and the translation of its errors into ours. How a job is sent once and
followed is `serverless_backend.py`.
What leaves this machine: the turns' messages, their token ids, advantages, ranks and weights, window and trajectory ids; in
an evaluation, the prompts of held-out windows.

The remote trainer recomputes log-probs with the parent, at temperature 1: turns of older steps, or sampled at
another temperature, count as the parent's own (`behaviour/stale`, `behaviour/recomputed`).
"""

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from babylon_rl.errors import ConfigError, DataError, TransientError
from babylon_rl.policy.checkpoints import PROJECT
from babylon_rl.training.art_groups import to_art_groups
from babylon_rl.training.art_import import isolated_art_import, without_wandb
from babylon_rl.training.sequences import TrainingPlan
from babylon_rl.training.trainer import JobJournal, ServedPolicy, TrainingBatch
from babylon_rl.types import Checkpoint

if TYPE_CHECKING:
    import art

    from babylon_rl.settings import TrainingSettings

LEARNING_RATE: Final = 1e-5
INFERENCE_URL: Final = "https://api.inference.wandb.ai/v1"
CONTEXT_TOKENS: Final = 32_768  # ART's own limit where a model names none


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteCheckpoint:
    """A checkpoint at W&B.

    Attributes:
        path: Its name there, as a training that is recorded has it.
        metrics: What W&B keeps of its training; may be empty.
    """

    path: str
    metrics: dict[str, float]


class ServerlessEngine:
    """W&B Serverless training."""

    name = "serverless"
    max_staleness = 0

    def __init__(
        self,
        api_key: str,
        base_model: str,
        base_path: Path,
        *,
        base_url: str | None,
        learning_rate: float | None,
        jobs: JobJournal,
        patience: timedelta,
    ) -> None:
        from babylon_rl.training.serverless_backend import JournaledBackend

        self._jobs = jobs
        self.backend = JournaledBackend(api_key=api_key, base_url=base_url, jobs=jobs, patience=patience)
        self.base_model, self.base_path = base_model, base_path
        self.learning_rate = learning_rate or LEARNING_RATE

    @classmethod
    def from_settings(cls, settings: "TrainingSettings", checkpoints: Path, jobs: JobJournal) -> "ServerlessEngine":
        """Raises ConfigError where the key or the base is not named."""
        if settings.wandb_api_key is None:
            raise ConfigError("BABYLON_TRAINER=serverless trains at W&B and needs WANDB_API_KEY; set it, or use cpu")
        if settings.base_model is None:
            raise ConfigError(
                "BABYLON_TRAINER=serverless needs BABYLON_BASE_MODEL: a model that W&B trains, "
                "such as OpenPipe/Qwen3-14B-Instruct"
            )
        return cls(
            settings.wandb_api_key.get_secret_value(),
            settings.base_model,
            checkpoints,
            base_url=settings.wandb_base_url,
            learning_rate=settings.learning_rate,
            jobs=jobs,
            patience=timedelta(seconds=settings.remote_patience_s),
        )

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.base_model)

    @property
    def context(self) -> int:
        return context_of(self.tokenizer)

    @contextmanager
    def prepare_training(self, batch: TrainingBatch, plan: TrainingPlan) -> Generator[None]:
        """Turn the client's errors into ours."""
        self.backend.set_batch(batch)
        with self._translate_errors(f"training {batch.lineage}@{batch.step} at {self.backend._base_url}"):
            yield

    async def list_checkpoints(self, lineage: str) -> dict[int, RemoteCheckpoint]:
        """Every checkpoint that W&B has of a lineage, by step."""
        with without_wandb(), self._translate_errors(f"reading {lineage} at {self.backend._base_url}"):
            with isolated_art_import():
                import art

            model = art.TrainableModel(
                name=lineage, project=PROJECT, base_model=self.base_model, base_path=str(self.base_path)
            )
            await model.register(self.backend)
            steps = await self.backend.list_checkpoints(model)
        return {
            step: RemoteCheckpoint(path=f"{model.entity}/{model.project}/{model.name}:step{step}", metrics=metrics)
            for step, metrics in steps.items()
        }

    @contextmanager
    def _translate_errors(self, what: str) -> Generator[None]:
        import openai

        try:
            yield
        except (openai.AuthenticationError, openai.PermissionDeniedError) as e:
            raise ConfigError(f"{what} was refused with HTTP {e.status_code}; correct WANDB_API_KEY") from e
        except (openai.RateLimitError, openai.InternalServerError) as e:
            raise TransientError(f"{what} failed with HTTP {e.status_code}; try again later") from e
        except openai.APIConnectionError as e:
            raise TransientError(f"{what}: no connection; try again, or correct BABYLON_WANDB_TRAINING_URL") from e
        except openai.APIStatusError as e:
            if e.status_code in (408, 425):  # of a question; a job that meets them is followed, not sent again
                raise TransientError(f"{what} failed with HTTP {e.status_code}; try again later") from e
            raise DataError(f"{what} was refused with HTTP {e.status_code}: {str(e)[:300]}; correct it first") from e

    def is_resuming(self) -> bool:
        return self._jobs.is_begun()

    def build_groups(self, plan: TrainingPlan) -> "list[art.TrajectoryGroup]":
        return to_art_groups(plan)

    def train_options(self, plan: TrainingPlan) -> dict[str, Any]:
        return {"ppo": True}

    def collect(self, batch: TrainingBatch, result: Any) -> tuple[str, dict[str, str]]:
        return result.artifact_name or f"{batch.lineage}:step{batch.step}", {}


def locate(settings: "TrainingSettings", checkpoint: Checkpoint) -> ServedPolicy:
    """Where W&B serves a checkpoint: its inference loads adapters by the name of their artifact (docs.wandb.ai/inference/lora).

    ART's own serverless backend sends inference to the training address, so one that is set is taken for both.

    Raises:
        ConfigError: The key or the base is not named, or the checkpoint was recorded without its artifact's name.
    """
    if settings.wandb_api_key is None:
        raise ConfigError(f"{checkpoint.name} is served by W&B, which needs WANDB_API_KEY; set it and evaluate again")
    if settings.base_model is None:
        raise ConfigError(
            f"{checkpoint.name} is served by W&B, and its base is not named; set BABYLON_BASE_MODEL to the model it was trained on"
        )
    entity, *rest = checkpoint.path.split("/")
    if len(rest) != 2:
        raise ConfigError(
            f"{checkpoint.name} was recorded as {checkpoint.path!r}, expected entity/project/name:step: W&B named no artifact, "
            "so it cannot be asked for"
        )
    return ServedPolicy(
        base_url=_inference_url(settings),
        model=f"wandb-artifact:///{checkpoint.path}",
        base_model=settings.base_model,
        key_variable="WANDB_API_KEY",
        project=f"{entity}/{rest[0]}",
    )


def locate_base(settings: "TrainingSettings") -> ServedPolicy:
    """Where W&B serves the base itself.

    Raises:
        ConfigError: The key or the base is not named.
    """
    if settings.wandb_api_key is None or settings.base_model is None:
        raise ConfigError("the base is served by W&B, which needs WANDB_API_KEY and BABYLON_BASE_MODEL; set both")
    return ServedPolicy(
        base_url=_inference_url(settings),
        model=settings.base_model,
        base_model=settings.base_model,
        key_variable="WANDB_API_KEY",
    )


def _inference_url(settings: "TrainingSettings") -> str:
    return settings.wandb_inference_url or settings.wandb_base_url or INFERENCE_URL


def load_tokenizer(base_model: str) -> Any:
    """The base's tokenizer, from a directory or from the Hugging Face hub.

    Raises:
        ConfigError: There is none under that name.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base_model)
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"no tokenizer found for base model {base_model!r}: {str(e).splitlines()[0][:200]}; "
            "correct BABYLON_BASE_MODEL, or check that the Hugging Face hub can be reached"
        ) from e


def context_of(tokenizer: Any) -> int:
    """The tokenizer's `model_max_length`, at most ART's limit; many tokenizers give 10^30, which means none."""
    limit = float(tokenizer.model_max_length)
    return int(min(limit, CONTEXT_TOKENS)) if math.isfinite(limit) else CONTEXT_TOKENS
