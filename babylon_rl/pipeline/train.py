"""`trained_checkpoint`: goes through the hours in order; each partition trains at most one checkpoint.

Plan (a row) → train (files, written atomically) → record (checkpoint and consumed windows, one transaction). After a
kill at any point the next run finds the planned batch and makes the same checkpoint from the same parent.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.errors import DataError
from babylon_rl.pipeline.workspace import Workspace, claim_checkpoints
from babylon_rl.store.ledger import PlannedBatch
from babylon_rl.training.factory import open_trainer
from babylon_rl.training.rewards import rank_rewards
from babylon_rl.training.trainer import RewardedGroup, TrainingBatch
from babylon_rl.types import Checkpoint, Json
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HourOutcome:
    """What one hour's partition did.

    Attributes:
        policy: The checkpoint in force as of the hour, or None while the base still is.
        trained: Whether it was made in this run.
        waiting: Ready windows that wait for the next batch.
    """

    policy: Checkpoint | None
    trained: bool
    waiting: int

    def facts(self) -> Json:
        """Small numbers for the partition's metadata."""
        facts: Json = {"trained": self.trained, "windows_waiting": self.waiting}
        if self.policy is not None:
            facts |= {"policy": self.policy.name, "dagster/row_count": len(self.policy.windows) if self.trained else 0}
            if self.trained:
                facts |= {k: v for k, v in sorted(self.policy.metrics.items()) if k.startswith(("loss/", "behaviour/"))}
        return facts


def train_range(
    workspace: Workspace,
    windows: Sequence[HourWindow],
    *,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    progress: Progress = ignore_progress,
) -> dict[HourWindow, HourOutcome]:
    """Go through `windows` in time order; each trains when a full batch of unused windows waits by then.

    Args:
        workspace: Its ledger says what waits; its settings which trainer trains.
        windows: Hours; a range over a month of history replays every iteration.
        batch_size: Windows per checkpoint; None: BABYLON_MIN_WINDOWS.
        learning_rate: None: BABYLON_LEARNING_RATE, or the trainer's own.
        progress: Called after each gradient step.

    Raises:
        TransientError: The lineage is being trained elsewhere, or a remote trainer is out of reach.
        DataError: A batch cannot be trained; the message says why.
    """
    ledger, settings = workspace.ledger, workspace.settings
    size = batch_size or settings.training.min_windows
    rate = learning_rate or settings.training.learning_rate
    outcomes: dict[HourWindow, HourOutcome] = {}
    for window in sorted(windows):
        checkpoint = None
        if ledger.may_train(window, size):
            with ledger.training():
                planned = ledger.plan(window, size, learning_rate=rate)
                if planned is not None:
                    checkpoint = asyncio.run(_train(workspace, planned, progress))
        policy = checkpoint or ledger.latest(as_of=window)
        trained, waiting = checkpoint is not None, ledger.waiting(window)
        outcomes[window] = HourOutcome(policy=policy, trained=trained, waiting=waiting)
    return outcomes


async def _train(workspace: Workspace, planned: PlannedBatch, progress: Progress) -> Checkpoint:
    ledger, settings = workspace.ledger, workspace.settings
    batch = TrainingBatch(
        lineage=planned.lineage,
        step=planned.step,
        window_id=planned.window_id,
        groups=tuple(
            load_rewarded_group(workspace, w, k) for w, k in zip(planned.windows, planned.judgment_keys, strict=True)
        ),
        learning_rate=planned.learning_rate,
        seed=settings.seed,
        parent_manifest=ledger.manifest(planned.step - 1),
        ledger_id=claim_checkpoints(workspace),
    )
    async with open_trainer(settings.training, checkpoints=settings.checkpoints_dir, progress=progress) as trainer:
        trained = await trainer.train(batch)
        name = trainer.name
    checkpoint = ledger.record(
        planned,
        trainer=name,
        base_model=settings.training.base_model or "shipped",
        path=trained.path,
        manifest=trained.manifest,
        metrics=trained.metrics,
    )
    logger.info("trained policy=%s windows=%d", checkpoint.name, len(checkpoint.windows))
    return checkpoint


def load_rewarded_group(workspace: Workspace, window_id: str, judgment_key: str) -> RewardedGroup:
    """A planned window: its group, and the rewards of the judgment that the planned batch names.

    Raises:
        DataError: The window was grouped again since, so that judgment is about other messages.
    """
    window = HourWindow.parse(window_id)
    group = workspace.store.group(window)
    judgment = workspace.store.find_judgment(judgment_key)
    if group is None or judgment is None or judgment.group_id != group.group_id:
        raise DataError(
            f"window {window_id!r} was planned for training with judgment {judgment_key[:12]!r}, which no longer fits "
            "its group; run `babylon-rl discard-plan` to plan again from what is judged now",
            facts={"window_id": window_id, "judgment_key": judgment_key},
        )
    scores = {s.trajectory_id: s.value for s in judgment.scores}
    return RewardedGroup(group=group, rewards=rank_rewards(scores), judgment_key=judgment_key)
