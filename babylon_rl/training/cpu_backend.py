"""ART's `LocalBackend` on a CPU: its tokenising, advantages and packing, without unsloth, vLLM or a progress bar.

What belongs here: the connection to ART, and the engine that `ArtTrainer` drives. The arithmetic is `cpu_service.py`.
"""

import json
import tempfile
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils.logging import disable_progress_bar

from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.errors import ConfigError, DataError
from babylon_rl.policy.checkpoints import checkpoint_dir
from babylon_rl.policy.compat import undo_art_patch
from babylon_rl.training import checkpoint_store
from babylon_rl.training.art_groups import to_art_groups
from babylon_rl.training.art_import import isolated_art_import
from babylon_rl.training.config import CpuTrainingConfig
from babylon_rl.training.cpu_service import CpuJob, CpuService
from babylon_rl.training.packing import pack_rows
from babylon_rl.training.sequences import MAX_STALENESS, TrainingPlan
from babylon_rl.training.trainer import TrainingBatch

with isolated_art_import():
    from art.local.backend import LocalBackend
    from art.metrics_taxonomy import build_training_summary_metrics, summarize_trajectory_groups
    from art.preprocessing.pack import packed_tensors_to_dir
    from art.preprocessing.tokenize import tokenize_trajectory_groups

if TYPE_CHECKING:
    import art

    from babylon_rl.settings import TrainingSettings


class CpuBackend(LocalBackend):  # type: ignore[misc]  # ART is not typed for us
    """A complete `art.backend.Backend`: `await backend.train(model, groups)` works, with or without `set_job`.

    Args:
        root: Directory of all lineages, `path` of ART's backend.
        base: Directory of the base policy; a model registered here must name the same.
    """

    def __init__(
        self, root: Path, base: Path, *, config: CpuTrainingConfig | None = None, progress: Progress = ignore_progress
    ) -> None:
        super().__init__(in_process=True, path=str(root))
        undo_art_patch()
        disable_progress_bar()  # transformers draws one for every model it loads
        self._root, self._base = root, base
        self._recipe, self._progress = config or CpuTrainingConfig(), progress
        self._job: CpuJob | None = None

    def set_job(self, job: CpuJob) -> None:
        """Set what the next `train` makes."""
        self._job = job

    async def _prepare_backend_for_training(self, model: Any, config: Any = None) -> tuple[str, str]:
        return "http://127.0.0.1:9/v1", "unused"  # nothing is served from here, and no port is taken

    async def _get_service(self, model: Any) -> CpuService:
        if model.name not in self._services:
            self._services[model.name] = CpuService(self._root, self._base, self._recipe, self._progress)
        return self._services[model.name]  # type: ignore[no-any-return]

    def _get_packed_tensors(
        self,
        model: Any,
        trajectory_groups: "list[art.TrajectoryGroup]",
        advantage_balance: float,
        allow_training_without_logprobs: bool,
        scale_rewards: bool,
        plot_tensors: bool,
        packed_sequence_length: int | None,
        logprob_calculation_chunk_size: int,
    ) -> Any:
        """As ART's, but the same rows each time (`packing.py`), and a row as long as the longest sequence needs."""
        if advantage_balance:
            raise ConfigError("the CPU trainer keeps advantages as they are; leave advantage_balance at 0")
        key = (model.base_model, None)
        if key not in self._tokenizers:
            from transformers import AutoTokenizer

            self._tokenizers[key] = AutoTokenizer.from_pretrained(model.base_model, local_files_only=True)
        tokenizer = self._tokenizers[key]
        results = list(
            tokenize_trajectory_groups(
                tokenizer,
                trajectory_groups,
                allow_training_without_logprobs,
                scale_rewards,
                shuffle_group_trajectories=False,
            )
        )
        if not results:
            return None
        width = max(packed_sequence_length or self._recipe.row_tokens, max(len(r.token_ids) for r in results))
        return pack_rows(results, width, tokenizer.pad_token_id)

    async def _train_model(
        self, model: Any, trajectory_groups: Any, config: Any, dev_config: Any, verbose: bool = False
    ) -> AsyncIterator[dict[str, float]]:
        """As ART's, without its progress bar, and with an error where ART would copy the parent and call the copy a step."""
        service = await self._get_service(model)
        service.job = self._job or self._next_job(model)
        self._job = None
        base_metrics = build_training_summary_metrics(
            summarize_trajectory_groups(trajectory_groups), include_trainable_groups=True
        )
        packed = self._get_packed_tensors(
            model,
            trajectory_groups,
            advantage_balance=dev_config.get("advantage_balance", 0.0),
            allow_training_without_logprobs=dev_config.get("allow_training_without_logprobs", False),
            scale_rewards=dev_config.get("scale_rewards", True),
            plot_tensors=False,
            packed_sequence_length=dev_config.get("packed_sequence_length"),
            logprob_calculation_chunk_size=1,
        )
        if packed is None:
            raise DataError(
                f"nothing to train {model.name} on: in all {len(trajectory_groups)} ART groups the rewards are equal "
                "or no assistant turn has tokens; train on groups whose rewards differ"
            )
        base_metrics["data/step_trainer_tokens"] = float(packed["assistant_mask"].sum())
        base_metrics["data/rows"] = float(len(packed["tokens"]))
        with tempfile.TemporaryDirectory() as directory:
            async for metrics in service.train(packed_tensors_to_dir(packed, directory), config, dev_config, verbose):
                yield {**base_metrics, **metrics}

    def _next_job(self, model: Any) -> CpuJob:
        """The job for a caller that uses ART alone: the step after the newest on disk."""
        from art.utils.get_model_step import get_model_step

        digest = checkpoint_store.base_digest(self._base)
        return CpuJob(
            lineage=model.name, step=get_model_step(model, self._path) + 1, seed=0, base_digest=digest, behaviours=()
        )


class CpuEngine:
    """The CPU behind `ArtTrainer`."""

    name = "cpu"
    max_staleness = MAX_STALENESS

    def __init__(
        self,
        root: Path,
        base: Path,
        *,
        config: CpuTrainingConfig | None = None,
        learning_rate: float | None = None,
        progress: Progress = ignore_progress,
    ) -> None:
        self._root, self._base = root, base
        self._config = config or CpuTrainingConfig()
        self.base_model, self.base_path = str(base), root
        self.learning_rate = learning_rate or self._config.learning_rate
        self.backend = CpuBackend(root, base, config=self._config, progress=progress)

    @classmethod
    def from_settings(
        cls, settings: "TrainingSettings", checkpoints: Path, *, progress: Progress = ignore_progress
    ) -> "CpuEngine":
        from babylon_rl.policy.process import base_of

        return cls(checkpoints, base_of(settings), learning_rate=settings.learning_rate, progress=progress)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._base, local_files_only=True)

    @cached_property
    def context(self) -> int:
        return int(json.loads((self._base / "config.json").read_text())["max_position_embeddings"])

    @contextmanager
    def prepare_training(self, batch: TrainingBatch, plan: TrainingPlan) -> Generator[None]:
        """Lock the lineage, check the parent and every behaviour policy, remove checkpoints that the ledger does not know."""
        digest = checkpoint_store.base_digest(self._base)
        with checkpoint_store.lineage_lock(self._root, batch.lineage):
            checkpoint_store.reconcile(
                self._root,
                batch.lineage,
                batch.parent_step,
                base=digest,
                manifest=batch.parent_manifest,
                ledger_id=batch.ledger_id,
            )
            for step in {b.step for b in plan.behaviours if b.step} - {batch.parent_step}:
                checkpoint_store.verify(self._root, batch.lineage, step, base=digest)
            self.backend.set_job(
                CpuJob(
                    lineage=batch.lineage,
                    step=batch.step,
                    seed=batch.seed,
                    base_digest=digest,
                    window_id=batch.window_id,
                    windows=batch.windows,
                    judgment_keys=batch.judgment_keys,
                    behaviours=plan.behaviours,
                    ledger_id=batch.ledger_id,
                    foreign_turns=batch.foreign_turns,
                )
            )
            yield

    def is_resuming(self) -> bool:
        return False

    def build_groups(self, plan: TrainingPlan) -> "list[art.TrajectoryGroup]":
        return to_art_groups(plan, behaviours=plan.behaviours)

    def train_options(self, plan: TrainingPlan) -> dict[str, Any]:
        c = self._config
        return {"loss_fn": "ppo", "epsilon": c.clip, "packed_sequence_length": max(c.row_tokens, plan.longest)}

    def collect(self, batch: TrainingBatch, result: Any) -> tuple[str, dict[str, str]]:
        directory = checkpoint_dir(self._root, batch.lineage, batch.step)
        return str(directory), checkpoint_store.file_digests(directory)
