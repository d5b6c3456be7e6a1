"""The Trainer: a judged batch goes in, a checkpoint comes out.

What belongs here: the Protocol, its values, and the checks that cost nothing. What does not: which windows make a
batch (the ledger's), which backend is chosen (`factory.py`), and how any of them trains (its own module).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from babylon_rl.errors import DataError
from babylon_rl.settings import ForeignTurns
from babylon_rl.types import TrajectoryGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardedGroup:
    """A group and what the trainer receives for each member.

    Attributes:
        rewards: Trajectory id → reward in [0, 1] (`rewards.rank_rewards`); exactly one for each member.
        judgment_key: The judgment whose scores the rewards were made from.
    """

    group: TrajectoryGroup
    rewards: Mapping[str, float]
    judgment_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch:
    """All that one training learns from. Order of `groups` and of their members never matters.

    Attributes:
        lineage: Training run whose step `step - 1` is the parent (step 0 is the base).
        step: The step to be made: 1, 2, 3, ….
        window_id: The partition that trains this step.
        learning_rate: None takes the trainer's default.
        seed: Of the adapter's first weights and of the order of rows.
        parent_manifest: File → SHA-256 of the parent as the ledger knows it, if it does; checked before training.
        ledger_id: Of the ledger that will record the checkpoint, which carries it; None: of none.
        base_model: BABYLON_BASE_MODEL: turns that name it are the base's.
        foreign_turns: Which turns of other models train (`foreign_turns.py`).
        min_own_share: Least share of own turns; below it the batch is refused.
    """

    lineage: str
    step: int
    window_id: str
    groups: tuple[RewardedGroup, ...]
    learning_rate: float | None = None
    seed: int = 1
    parent_manifest: Mapping[str, str] | None = None
    ledger_id: str | None = None
    base_model: str | None = None
    foreign_turns: ForeignTurns = "positive_only"
    min_own_share: float = 0.5

    @property
    def parent_step(self) -> int:
        return self.step - 1

    @property
    def ordered(self) -> tuple[RewardedGroup, ...]:
        """Groups in time order, whatever order they came in."""
        return tuple(sorted(self.groups, key=lambda g: (g.group.window_id, g.group.group_id)))

    @property
    def windows(self) -> tuple[str, ...]:
        """Window of each group, in `ordered`'s order."""
        return tuple(g.group.window_id for g in self.ordered)

    @property
    def judgment_keys(self) -> tuple[str, ...]:
        """Judgment of each group, beside `windows`."""
        return tuple(g.judgment_key for g in self.ordered)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPolicy:
    """A finished checkpoint.

    Attributes:
        path: Directory of the adapter, or the backend's name for weights that are remote.
        manifest: File name → SHA-256; empty when the weights are remote.
        metrics: ART's, and ours under `behaviour/` and `data/`.
    """

    path: str
    manifest: dict[str, str]
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedPolicy:
    """Where a checkpoint and its base can be asked: an OpenAI-compatible endpoint (`factory.locate_policy`).

    Attributes:
        base_url: Ends in `/v1`.
        model: The checkpoint's name there.
        base_model: Its base's name there.
        key_variable: Name of the variable that holds the endpoint's key, never the key; None: it takes none.
        project: Who is billed, where the endpoint asks: `entity/project`.
        has_likelihoods: Whether it tells how likely a given answer is.
    """

    base_url: str
    model: str
    base_model: str
    key_variable: str | None = None
    project: str | None = None
    has_likelihoods: bool = False


class JobJournal(Protocol):
    """What is known of the remote job of one planned batch; written where it survives a crash. Local trainers ignore it."""

    def is_begun(self) -> bool:
        """Whether a request was begun and not taken back: a job may exist, and must not be sent again."""
        ...

    def seconds_since_begun(self) -> float | None:
        """How long ago the request was begun; None where none was."""
        ...

    def job_id(self) -> str | None:
        """The job's id, where its answer arrived."""
        ...

    def begin(self) -> None:
        """Note, before the request leaves, that it will.

        Raises:
            TransientError: The training lock is lost, or another process has begun: nothing may be sent.
        """
        ...

    def take_back(self) -> None:
        """Note that no job exists: the request was refused, or never left."""
        ...

    def store_id(self, job_id: str) -> None:
        """Keep the job's id, before anything else is done with the answer."""
        ...


class NoJob:
    """The journal where no job is ever sent: remote checkpoints are only read, or the trainer is a local one."""

    def is_begun(self) -> bool:
        return False

    def seconds_since_begun(self) -> None:
        return None

    def job_id(self) -> None:
        return None

    def begin(self) -> None:
        raise DataError("a training job can be sent only for a planned batch; plan one first")

    def take_back(self) -> None: ...

    def store_id(self, job_id: str) -> None: ...


class Trainer(Protocol):
    """Trains one batch at a time. The caller records the result; a checkpoint that it did not record does not count.

    Where its checkpoints are served is asked without opening it: `factory.locate_policy`.
    """

    name: str

    async def train(self, batch: TrainingBatch) -> TrainedPolicy:
        """Make step `batch.step` from its parent.

        A checkpoint after the parent that the caller did not record (a crash) is removed first.

        Raises:
            DataError: Nothing in the batch can train, or the parent is missing or changed.
            ConfigError: A key, an address or a package is missing.
            TransientError: Something outside failed and may work later.
        """
        ...

    async def close(self) -> None: ...


def check_batch(batch: TrainingBatch) -> None:
    """Refuse a batch that no trainer could train correctly.

    Raises:
        DataError: A step below 1, no groups, a reward missing, extra, or outside [0, 1].
    """
    where = f"batch for {batch.lineage}@{batch.step}"
    if batch.step < 1:
        raise DataError(f"{where}: step {batch.step} cannot be trained; steps start at 1 (0 is the base)")
    if batch.learning_rate is not None and not (math.isfinite(batch.learning_rate) and batch.learning_rate > 0):
        raise DataError(f"{where}: learning rate {batch.learning_rate} is not above 0; correct it and train again")
    if not batch.groups:
        raise DataError(f"{where} holds no groups; judge windows first, then train")
    for rewarded in batch.groups:
        group = rewarded.group
        members = {m.trajectory_id for m in group.members}
        if len(members) != len(group.members):
            raise DataError(
                f"{where}: group {group.group_id!r} names a trajectory twice; rematerialize `contextualized_groups`",
                facts={"group_id": group.group_id},
            )
        if members != set(rewarded.rewards):
            unmatched = sorted(members ^ set(rewarded.rewards))
            raise DataError(
                f"{where}: group {group.group_id!r} has {len(members)} members and {len(rewarded.rewards)} rewards; "
                f"unmatched: {unmatched[:5]}; judge window {group.window_id} again",
                facts={"group_id": group.group_id, "trajectory_ids": unmatched[:20]},
            )
        for trajectory_id, reward in sorted(rewarded.rewards.items()):
            if not 0.0 <= reward <= 1.0:  # NaN fails too
                raise DataError(
                    f"{where}: trajectory {trajectory_id!r} has reward {reward}, outside [0, 1]; "
                    f"judge window {group.window_id} again",
                    facts={"group_id": group.group_id, "trajectory_id": trajectory_id},
                )
