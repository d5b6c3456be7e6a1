"""One path through ART for every backend: plan, register, train, log.

What belongs here: the order of these steps and the checks between them. An engine (`cpu_backend.py`, `local.py`,
`serverless.py`) brings a backend and what is specific to it.
"""

import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from babylon_rl.errors import DataError
from babylon_rl.policy.checkpoints import PROJECT
from babylon_rl.training.art_groups import SCALE_REWARDS
from babylon_rl.training.art_import import isolated_art_import, without_wandb
from babylon_rl.training.sequences import TrainingPlan, plan_training
from babylon_rl.training.trainer import TrainedPolicy, TrainingBatch

if TYPE_CHECKING:
    import art

logger = logging.getLogger(__name__)


class TrainingEngine(Protocol):
    """An ART backend and what is specific to it.

    Attributes:
        backend: Satisfies `art.backend.Backend`.
        base_model: A directory, or the name under which the backend knows the base.
        base_path: Where ART keeps its own history of a lineage.
        learning_rate: Used where the batch has none.
        context: Most tokens of one sequence.
        max_staleness: Steps before the parent up to which old log-probs are recomputed with the turn's own policy.
    """

    name: str
    backend: Any
    base_model: str
    base_path: Path
    learning_rate: float
    max_staleness: int

    @property
    def tokenizer(self) -> Any: ...

    @property
    def context(self) -> int: ...

    def prepare_training(self, batch: TrainingBatch, plan: TrainingPlan) -> AbstractContextManager[None]:
        """Hold locks during the training, and turn the errors of the backend into ours."""
        ...

    def is_resuming(self) -> bool:
        """Whether a remote job of this batch may exist already; the lineage may then stand at the batch's own step."""
        ...

    def build_groups(self, plan: TrainingPlan) -> "list[art.TrajectoryGroup]": ...

    def train_options(self, plan: TrainingPlan) -> dict[str, Any]:
        """Keyword arguments of `backend.train` besides the learning rate."""
        ...

    def collect(self, batch: TrainingBatch, result: Any) -> tuple[str, dict[str, str]]:
        """Path and manifest of what was trained."""
        ...


class ArtTrainer:
    """A `Trainer` that drives `art.TrainableModel` and the backend of its engine."""

    def __init__(self, engine: TrainingEngine) -> None:
        self._engine = engine
        self.name = engine.name

    async def train(self, batch: TrainingBatch) -> TrainedPolicy:
        """See `Trainer.train`. A batch that cannot train is refused before ART is called."""
        engine = self._engine
        resuming = engine.is_resuming()
        plan = TrainingPlan(decisions=(), counts={})
        if batch.groups or not resuming:
            try:
                plan = plan_training(
                    batch, engine.tokenizer, context=engine.context, max_staleness=engine.max_staleness
                )
            except DataError:
                if not resuming:
                    raise  # else a job was sent for it, under other settings: it is followed, not refused
        with without_wandb(), engine.prepare_training(batch, plan):
            with isolated_art_import():
                import art

            model = art.TrainableModel(
                name=batch.lineage, project=PROJECT, base_model=engine.base_model, base_path=str(engine.base_path)
            )
            await model.register(engine.backend)
            found = await model.get_step()
            if not (resuming and found == batch.step):
                self._check_step(batch, found, batch.parent_step, "before")
            result = await engine.backend.train(
                model,
                engine.build_groups(plan),
                learning_rate=batch.learning_rate or engine.learning_rate,
                scale_rewards=SCALE_REWARDS,
                precalculate_logprobs=True,
                **engine.train_options(plan),
            )
            self._check_step(batch, result.step, batch.step, "after")
            metrics = {k: float(v) for k, v in {**result.metrics, **plan.counts, **_summarise(plan)}.items()}
            # Metrics only: the trajectories are in our database, whole, and ART's Parquet would lose half of them.
            await model.log(metrics=metrics, split="train", step=batch.step)
            path, manifest = engine.collect(batch, result)
        return TrainedPolicy(path=path, manifest=manifest, metrics=metrics)

    async def close(self) -> None:
        await self._engine.backend.close()

    def _check_step(self, batch: TrainingBatch, found: int, expected: int, when: str) -> None:
        if found != expected:
            raise DataError(
                f"{self.name} trainer is at {batch.lineage}@{found} {when} training step {batch.step}, but the ledger "
                f"says {expected}: a training was not recorded, or another ledger uses this lineage; run `babylon-rl "
                "adopt-checkpoint` to record a remote step, or start a new lineage with BABYLON_LINEAGE",
                facts={"lineage": batch.lineage, "found": found, "expected": expected},
            )


def _summarise(plan: TrainingPlan) -> dict[str, float]:
    """In place of ART's own numbers, which are about what it was sent: advantages, and a baseline in each group."""
    rewards = [s.reward for d in plan.decisions for s in d.sequences]
    if not rewards:
        return {}
    return {"reward": sum(rewards) / len(rewards), "data/step_num_trajectories": float(len(rewards))}
