"""A GPU of this machine behind `ArtTrainer`: ART's `LocalBackend`, which trains with unsloth and serves with vLLM.

What belongs here: what must be installed, and the metadata that makes ART's checkpoint one of ours.

Log-probs are recomputed with the parent at temperature 1, as on W&B (`serverless.py`).
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from babylon_rl.common.canonical import digest
from babylon_rl.errors import ConfigError
from babylon_rl.policy.checkpoints import checkpoint_dir, write_ledger_of
from babylon_rl.training import checkpoint_store
from babylon_rl.training.art_groups import to_art_groups
from babylon_rl.training.sequences import TURN_WEIGHTS, TrainingPlan
from babylon_rl.training.serverless import LEARNING_RATE, context_of, load_tokenizer
from babylon_rl.training.trainer import ServedPolicy, TrainingBatch
from babylon_rl.types import Checkpoint

if TYPE_CHECKING:
    import art

    from babylon_rl.settings import TrainingSettings

NEEDED: Final = ("unsloth", "unsloth_zoo", "trl")  # ART installs vLLM by itself, into an environment of its own


def locate(settings: "TrainingSettings", inference_url: str | None, checkpoint: Checkpoint) -> ServedPolicy:
    """Where vLLM serves a checkpoint, under the name that ART gives its adapters there.

    ART's own vLLM ends with the training, so a running one has to be named.

    Raises:
        ConfigError: No address or no base is named.
    """
    if inference_url is None or settings.base_model is None:
        raise ConfigError(
            f"{checkpoint.name} was trained on a GPU, and nothing is known to serve it; start vLLM with its adapter under the "
            "name of the checkpoint, and set BABYLON_INFERENCE_URL and BABYLON_BASE_MODEL"
        )
    return ServedPolicy(
        base_url=inference_url.rstrip("/"),
        model=checkpoint.name,
        base_model=settings.base_model,
        has_likelihoods=True,
    )


class LocalEngine:
    """ART on a GPU of this machine."""

    name = "local"
    max_staleness = 0

    def __init__(self, root: Path, base_model: str, *, learning_rate: float | None = None) -> None:
        from art.local.backend import LocalBackend

        self._root, self.base_path = root, root
        self.base_model = base_model
        self.learning_rate = learning_rate or LEARNING_RATE
        self.backend = LocalBackend(path=str(root))

    @classmethod
    def from_settings(cls, settings: "TrainingSettings", checkpoints: Path) -> "LocalEngine":
        """Raises ConfigError where a package is missing or no base is named."""
        missing = [name for name in NEEDED if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"BABYLON_TRAINER=local trains on a GPU with {' and '.join(missing)}, which is not installed; "
                "run pip install 'babylon_rl[gpu]', or use BABYLON_TRAINER=cpu"
            )
        if settings.base_model is None:
            raise ConfigError(
                "BABYLON_TRAINER=local needs BABYLON_BASE_MODEL: a model that fits the GPU, such as Qwen/Qwen3-4B"
            )
        return cls(checkpoints, settings.base_model, learning_rate=settings.learning_rate)

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.base_model)

    @property
    def context(self) -> int:
        return context_of(self.tokenizer)

    @contextmanager
    def prepare_training(self, batch: TrainingBatch, plan: TrainingPlan) -> Generator[None]:
        """As on the CPU: lock the lineage, check the parent, remove checkpoints that the ledger does not know."""
        with checkpoint_store.lineage_lock(self._root, batch.lineage):
            checkpoint_store.reconcile(
                self._root,
                batch.lineage,
                batch.parent_step,
                base=digest(self.base_model),
                manifest=batch.parent_manifest,
                ledger_id=batch.ledger_id,
            )
            with redirect_stdout(sys.stderr):  # ART prints its progress
                yield

    def is_resuming(self) -> bool:
        return False

    def build_groups(self, plan: TrainingPlan) -> "list[art.TrajectoryGroup]":
        return to_art_groups(plan)

    def train_options(self, plan: TrainingPlan) -> dict[str, Any]:
        return {"loss_fn": "ppo"}

    def collect(self, batch: TrainingBatch, result: Any) -> tuple[str, dict[str, str]]:
        directory = checkpoint_dir(self._root, batch.lineage, batch.step)
        metadata = {
            "trainer": self.name,
            "lineage": batch.lineage,
            "step": batch.step,
            "base": digest(self.base_model),
            "base_model": self.base_model,
            "seed": batch.seed,
            "window_id": batch.window_id,
            "windows": list(batch.windows),
            "judgment_keys": list(batch.judgment_keys),
            "turn_weights": TURN_WEIGHTS,
            "foreign_turns": batch.foreign_turns,
        }
        if batch.ledger_id is not None:
            write_ledger_of(directory, batch.ledger_id)
        checkpoint_store.write_metadata(directory, metadata)
        return str(directory), checkpoint_store.file_digests(directory)
