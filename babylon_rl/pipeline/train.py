"""`trained_checkpoint`: goes through the hours in order; a partition trains a checkpoint of each full batch that waits.

Plan (a row) → train (files, written atomically) → record (checkpoint and consumed windows, one transaction). After a
kill at any point the next run finds the planned batch and makes the same checkpoint from the same parent; if its
windows were grouped or judged anew meanwhile, it plans another.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.errors import ConfigError, DataError
from babylon_rl.pipeline.each_window import note_failure
from babylon_rl.pipeline.foreign_windows import release_foreign_windows, set_aside_foreign_windows
from babylon_rl.pipeline.workspace import Workspace, claim_checkpoints
from babylon_rl.store.ledger import PlannedBatch
from babylon_rl.store.retries import read_tries
from babylon_rl.store.training_jobs import TrainingJobs
from babylon_rl.training.factory import open_trainer
from babylon_rl.training.rewards import rewards_of
from babylon_rl.training.sequences import TURN_WEIGHTS
from babylon_rl.training.trainer import JobJournal, RewardedGroup, TrainingBatch
from babylon_rl.training.wandb_log import log_to_wandb
from babylon_rl.types import Checkpoint, Json
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)


STAGE: Final = "trained_checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class HourOutcome:
    """What one hour's partition did.

    Attributes:
        policy: The checkpoint in force as of the hour, or None while the base still is.
        trained: The checkpoints made in this run, by step; several where old windows had piled up.
        waiting: Ready windows that wait for the next batch.
        set_aside: Windows kept out because a batch with them had too few own turns; `refusal` says so.
    """

    policy: Checkpoint | None
    trained: tuple[Checkpoint, ...]
    waiting: int
    set_aside: tuple[HourWindow, ...] = ()
    refusal: str | None = None

    def facts(self) -> Json:
        """Small numbers for the partition's metadata; losses are the last checkpoint's."""
        facts: Json = {"trained": bool(self.trained), "windows_waiting": self.waiting}
        if self.refusal is not None:
            facts |= {"refused": self.refusal, "windows_set_aside": [str(w) for w in self.set_aside[:20]]}
            facts |= {"windows_set_aside_count": len(self.set_aside)}
        if self.policy is not None:
            facts |= {"policy": self.policy.name, "dagster/row_count": sum(len(c.windows) for c in self.trained)}
        if self.trained:
            metrics = self.trained[-1].metrics
            facts |= {"checkpoints": len(self.trained), "checkpoint_names": [c.name for c in self.trained]}
            facts |= {k: v for k, v in sorted(metrics.items()) if k.startswith(("loss/", "behaviour/", "data/"))}
            facts |= {"turn_weights": TURN_WEIGHTS}
        return facts


def train_range(
    workspace: Workspace,
    windows: Sequence[HourWindow],
    *,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    max_checkpoints: int | None = None,
    progress: Progress = ignore_progress,
) -> dict[HourWindow, HourOutcome]:
    """Go through `windows` in time order; each trains as long as a full batch of unused windows waits by then.

    Args:
        workspace: Its ledger says what waits; its settings which trainer trains.
        windows: Hours; a range over a month of history replays every iteration.
        batch_size: Windows per checkpoint; None: BABYLON_MIN_WINDOWS.
        learning_rate: None: BABYLON_LEARNING_RATE, or the trainer's own.
        max_checkpoints: Stop after so many; None: no limit.
        progress: Called after each gradient step.

    Raises:
        TransientError: The lineage is being trained elsewhere, or a remote trainer is out of reach.
        DataError: A batch cannot be trained; the message says why. Its plan is discarded, and the windows that are to
            blame are kept out for a while, so that the next training is planned anew. A batch with too few own turns raises
            only where no other could be trained.
    """
    release_foreign_windows(workspace)
    ledger, settings = workspace.ledger, workspace.settings
    size = batch_size or settings.training.min_windows
    rate = learning_rate or settings.training.learning_rate
    left = max_checkpoints
    outcomes: dict[HourWindow, HourOutcome] = {}
    refusal: DataError | None = None
    for window in sorted(windows):
        trained: list[Checkpoint] = []
        set_aside: list[HourWindow] = []
        while (left is None or left > 0) and ledger.may_train(window, size):
            with ledger.training() as lock:
                planned = ledger.plan(window, size, learning_rate=rate)
                if planned is None:
                    break
                try:
                    jobs = TrainingJobs(ledger.engine, planned, lock)
                    trained.append(asyncio.run(_train(workspace, planned, jobs, progress)))
                except DataError as e:
                    foreign = _give_up(workspace, planned, e)
                    if not foreign:
                        raise
                    set_aside += foreign
                    refusal = e
                    continue
            left = None if left is None else left - 1
        outcomes[window] = HourOutcome(
            policy=ledger.latest(as_of=window),
            trained=tuple(trained),
            waiting=ledger.waiting(window),
            set_aside=tuple(set_aside),
            refusal=str(refusal) if set_aside else None,
        )
    if refusal is not None and not any(o.trained for o in outcomes.values()):
        raise refusal
    return outcomes


def _give_up(workspace: Workspace, planned: PlannedBatch, error: DataError) -> list[HourWindow]:
    """Discard a plan that cannot be trained, and keep the windows out that are to blame, if any are.

    Returns:
        Those set aside because other models answered in them: without them, another batch may be trained at once.
    """
    if not workspace.ledger.discard_unsent(planned):
        return []
    logger.warning("discarded a plan that cannot be trained policy=%s@%d", planned.lineage, planned.step)
    foreign = set_aside_foreign_windows(workspace, str(error)) if error.facts.get("too_foreign") else []
    if not any(str(w) in planned.windows for w in foreign):
        foreign = []  # the same batch would be planned again
    if error.facts.get("nothing_to_train"):
        blamed = [w for w in planned.windows if HourWindow.parse(w) not in foreign]
    else:
        named = str(error.facts.get("window_id") or error.facts.get("group_id") or "").partition("#")[0]
        blamed = [named] if named in planned.windows else []
    for window in HourWindow.parse_all(blamed):
        version = read_tries(workspace.store.engine, [window])[window].version
        note_failure(workspace, window, STAGE, str(error), version=version)
    return foreign


async def _train(workspace: Workspace, planned: PlannedBatch, jobs: JobJournal, progress: Progress) -> Checkpoint:
    ledger, settings = workspace.ledger, workspace.settings
    if planned.is_sent and settings.training.trainer != "serverless":
        raise ConfigError(
            f"{planned.lineage}@{planned.step} was sent to W&B, where a paid job may exist for it, and BABYLON_TRAINER is "
            f"{settings.training.trainer!r} now; set it to serverless to finish that step, or give the job up with "
            "`babylon-rl discard-plan --even-if-sent`"
        )
    batch = TrainingBatch(
        lineage=planned.lineage,
        step=planned.step,
        window_id=planned.window_id,
        groups=_load_groups(workspace, planned),
        learning_rate=planned.learning_rate,
        seed=settings.seed,
        parent_manifest=ledger.manifest(planned.step - 1),
        ledger_id=claim_checkpoints(workspace),
        base_model=settings.training.base_model,
        foreign_turns=settings.training.foreign_turns,
        min_own_share=settings.training.min_own_share,
    )
    async with open_trainer(
        settings.training, checkpoints=settings.checkpoints_dir, jobs=jobs, progress=progress
    ) as trainer:
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
    log_to_wandb(settings.training, settings.home, lineage=planned.lineage, step=planned.step, metrics=trained.metrics)
    return checkpoint


def _load_groups(workspace: Workspace, planned: PlannedBatch) -> tuple[RewardedGroup, ...]:
    """What the plan trains on; nothing, where it was sent and its windows changed since: the job has its own copy."""
    try:
        return tuple(
            load_rewarded_group(workspace, w, k) for w, k in zip(planned.windows, planned.judgment_keys, strict=True)
        )
    except DataError:
        if not planned.is_sent:
            raise
        return ()


def load_rewarded_group(workspace: Workspace, window_id: str, judgment_key: str) -> RewardedGroup:
    """A planned window: its ranked members, and the rewards of the judgment that the planned batch names.

    Raises:
        DataError: The window was grouped again since, so that judgment is about other messages.
    """
    window = HourWindow.parse(window_id)
    group = workspace.store.group(window)
    judgment = workspace.store.find_judgment(judgment_key)
    if group is None or judgment is None or judgment.group_id != group.group_id:
        raise DataError(
            f"window {window_id!r} was planned for training with judgment {judgment_key[:12]!r}, which no longer fits "
            "its group; train again: the batch is planned anew from what is judged now",
            facts={"window_id": window_id, "judgment_key": judgment_key},
        )
    ranked = replace(group, members=tuple(m for m in group.members if m.trajectory_id not in judgment.left_out))
    return RewardedGroup(group=ranked, rewards=rewards_of(judgment), judgment_key=judgment_key)
