"""The training ledger: which windows wait, which batch trains next, which windows each checkpoint used, each once.

A batch is planned (written) before its training starts and consumed in the same transaction that makes its
checkpoint known, so a process killed at any moment leaves either a planned batch that the next one finishes, or
a checkpoint. Files on disk without a row here do not count.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import sqlalchemy as sa

from babylon_rl.common.canonical import from_json, to_json
from babylon_rl.database import tables as t
from babylon_rl.errors import DataError
from babylon_rl.store.eligibility import Eligibility, ReadyWindow
from babylon_rl.store.lineage_lock import LineageLock, lock_lineage
from babylon_rl.types import Checkpoint, policy_name
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBatch:
    """What one training trains on; written before it starts, and never changed.

    Attributes:
        step: The checkpoint it makes; its parent is `step - 1`.
        window_id: The partition that trains it.
        windows: What it trains on, in time order.
        judgment_keys: The judgment of each window, in the same order.
        group_versions: The version of each window's group, hindsight included, in the same order.
        is_sent: Whether a remote job that costs money was, or may have been, sent for it.
    """

    lineage: str
    step: int
    window_id: str
    windows: tuple[str, ...]
    judgment_keys: tuple[str, ...]
    group_versions: tuple[str, ...]
    learning_rate: float | None
    is_sent: bool = False

    @property
    def members(self) -> tuple[ReadyWindow, ...]:
        """Its windows with what each trains on."""
        each = zip(self.windows, self.judgment_keys, self.group_versions, strict=True)
        return tuple(ReadyWindow(window_id=w, judgment_key=k, group_version=v) for w, k, v in each)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedWindow:
    """One use of a window: which checkpoint trained on it, with which judgment."""

    window_id: str
    lineage: str
    step: int
    judgment_key: str

    @property
    def policy(self) -> str:
        return policy_name(self.lineage, self.step)


def find_trainings(engine: sa.Engine, windows: Sequence[HourWindow]) -> list[TrainedWindow]:
    """Each training that used one of `windows`, or its whole hour, in all lineages, by lineage and step."""
    c = t.consumed_windows.c
    used = c.window_id.in_([str(w) for w in windows])
    with_its_hour = sa.and_(c.window_id.in_([str(w.hour) for w in windows]), c.whole_hour)
    query = sa.select(c.window_id, c.lineage, c.step, c.judgment_key).where(sa.or_(used, with_its_hour))
    with engine.connect() as conn:
        rows = conn.execute(query.order_by(c.lineage, c.step)).mappings()
        return [TrainedWindow(**r) for r in rows]


class Ledger:
    """The training ledger of one lineage."""

    def __init__(self, engine: sa.Engine, lineage: str) -> None:
        self.engine = engine
        self.lineage = lineage
        self.eligibility = Eligibility(engine, lineage)

    # ── reading ────────────────────────────────────────────────────────────────────────────────────
    def ready(self, up_to: HourWindow | None = None) -> list[ReadyWindow]:
        """Windows that may train and that the lineage has not used, oldest first."""
        return self.eligibility.ready(up_to)

    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint of the lineage, by step."""
        c = t.checkpoints.c
        with self.engine.connect() as conn:
            rows = (
                conn.execute(sa.select(t.checkpoints).where(c.lineage == self.lineage).order_by(c.step))
                .mappings()
                .all()
            )
            used = (
                conn.execute(
                    sa.select(t.consumed_windows)
                    .where(t.consumed_windows.c.lineage == self.lineage)
                    .order_by(t.consumed_windows.c.step, t.consumed_windows.c.window_id)
                )
                .mappings()
                .all()
            )
        windows: dict[int, list[str]] = {}
        for u in used:
            windows.setdefault(u["step"], []).append(u["window_id"])
        return [
            Checkpoint(
                lineage=r["lineage"],
                step=r["step"],
                window_id=r["window_id"],
                trainer=r["trainer"],
                path=r["path"],
                windows=tuple(windows.get(r["step"], ())),
                judgment_keys=tuple(r["judgment_keys"]),
                metrics=from_json(r["metrics"], dict[str, float]),
            )
            for r in rows
        ]

    def steps_after(self, step: int) -> list[int]:
        """Steps of recorded checkpoints above one, ascending."""
        c = t.checkpoints.c
        query = sa.select(c.step).where(c.lineage == self.lineage, c.step > step).order_by(c.step)
        with self.engine.connect() as conn:
            return list(conn.scalars(query))

    def latest(self, as_of: HourWindow | None = None) -> Checkpoint | None:
        """The policy as of an hour: of the checkpoints trained in that partition or before, the one with the last step."""
        candidates = [c for c in self.checkpoints() if as_of is None or c.window_id <= str(as_of)]
        return candidates[-1] if candidates else None

    def unfinished_batch(self) -> PlannedBatch | None:
        """The planned batch that has no checkpoint yet: what a killed training left behind."""
        p, c = t.planned_batches.c, t.checkpoints.c
        query = (
            sa.select(t.planned_batches)
            .where(p.lineage == self.lineage)
            .where(~sa.exists().where(sa.and_(c.lineage == p.lineage, c.step == p.step)))
            .order_by(p.step)
        )
        with self.engine.connect() as conn:
            r = conn.execute(query).mappings().first()
        return (
            None
            if r is None
            else PlannedBatch(
                lineage=r["lineage"],
                step=r["step"],
                window_id=r["window_id"],
                windows=tuple(r["windows"]),
                judgment_keys=tuple(r["judgment_keys"]),
                group_versions=tuple(r["group_versions"]),
                learning_rate=r["learning_rate"],
                is_sent=r["submitted_at"] is not None,
            )
        )

    def trained_in(self, window: HourWindow) -> list[Checkpoint]:
        """The checkpoints that this very partition trained, by step."""
        return [c for c in self.checkpoints() if c.window_id == str(window)]

    def manifest(self, step: int) -> dict[str, str] | None:
        """File → SHA-256 of a step as it was recorded; None for the base."""
        c = t.checkpoints.c
        with self.engine.connect() as conn:
            text = conn.scalar(sa.select(c.manifest).where(c.lineage == self.lineage, c.step == step))
        return None if text is None else from_json(text, dict[str, str])

    def waiting(self, window: HourWindow) -> int:
        """Ready windows up to an hour that no batch has taken."""
        return len(self.ready(up_to=window))

    def may_train(self, window: HourWindow, batch_size: int) -> bool:
        """A cheap look before the lock is taken; `plan` decides."""
        return self.unfinished_batch() is not None or self.waiting(window) >= batch_size

    def next_partition(
        self, batch_size: int, *, batches: int = 1, up_to: HourWindow | None = None
    ) -> HourWindow | None:
        """The partition whose materialization will train next, or None while too few windows are ready.

        It is the hour of the newest window of the batch, whatever the hours of earlier checkpoints: old hours that fill
        up late train as they come. A partition never comes twice: a window is used once.

        Args:
            batch_size: Windows per checkpoint.
            batches: Take the hour by which so many batches are full, or as many as there are.
            up_to: The last partition that there is; later windows do not count.
        """
        if (batch := self.resumable_batch()) is not None:
            return HourWindow.parse(batch.window_id)
        ready = self.ready(up_to=up_to)
        full = min(batches, len(ready) // batch_size)
        return HourWindow.parse(ready[full * batch_size - 1].window_id).hour if full else None

    def resumable_batch(self) -> PlannedBatch | None:
        """The unfinished batch that the next training finishes; None where it would plan another."""
        batch = self.unfinished_batch()
        return batch if batch is not None and self._stands(batch) else None

    def _stands(self, batch: PlannedBatch) -> bool:
        """Whether an unfinished batch is still to be trained: it was sent, or all that it was planned from is current."""
        return batch.is_sent or self.eligibility.still_fit(batch.members)

    def discard_plan(self, *, even_if_sent: bool = False) -> PlannedBatch | None:
        """Delete the unfinished batch, so that the next training plans a new one. It has no checkpoint, so none is lost.

        Raises:
            DataError: A remote job was, or may have been, sent for it, and `even_if_sent` is not set.
        """
        with self.training():
            batch = self.unfinished_batch()
            if batch is not None:
                if batch.is_sent and not even_if_sent:
                    raise DataError(
                        f"a remote job was, or may have been, sent for checkpoint {batch.step} of lineage "
                        f"{self.lineage!r}: without its plan the next training would pay for another; train again to follow "
                        "it, or, when W&B shows that no job runs, repeat with --even-if-sent",
                        facts={"lineage": self.lineage, "step": batch.step},
                    )
                self._delete_plan(batch)
        return batch

    def discard_unsent(self, batch: PlannedBatch) -> bool:
        """Delete a batch that could not be trained, unless a remote job may exist for it; call it inside `training()`."""
        now = self.unfinished_batch()
        if now is None or now.step != batch.step or now.is_sent:
            return False
        self._delete_plan(now)
        return True

    def _delete_plan(self, batch: PlannedBatch) -> None:
        p = t.planned_batches.c
        with self.engine.begin() as conn:
            conn.execute(sa.delete(t.planned_batches).where(p.lineage == self.lineage, p.step == batch.step))

    def stale(self) -> list[str]:
        """Windows that trained on rows or outcomes which are no longer what is stored, in time order.

        They stay consumed: nothing is retrained by itself.
        """
        query = sa.text(
            'SELECT window_id FROM babylon_rl.stale_trainings WHERE lineage = :lineage ORDER BY window_id COLLATE "C"'
        )
        with self.engine.connect() as conn:
            return list(conn.scalars(query, {"lineage": self.lineage}))

    # ── writing ────────────────────────────────────────────────────────────────────────────────────
    def training(self) -> AbstractContextManager[LineageLock]:
        """Lock the lineage for one training; see `lock_lineage`."""
        return lock_lineage(self.engine, self.lineage)

    def plan(self, window: HourWindow, batch_size: int, *, learning_rate: float | None) -> PlannedBatch | None:
        """Plan the batch that partition `window` trains, or find the planned one; None when it has nothing to train.

        A planned batch whose windows were grouped or judged anew since, or may no longer train, is discarded and planned
        anew; one that was sent to a remote trainer stands. Call it inside `training()`.
        """
        if (batch := self.unfinished_batch()) is not None:
            if self._stands(batch):
                return batch if batch.window_id <= str(window) else None
            self._delete_plan(batch)
            logger.warning("discarded a plan whose windows changed lineage=%s step=%d", self.lineage, batch.step)
        last = self.latest()
        due = self.ready(up_to=window)[:batch_size]
        if len(due) < batch_size:
            return None
        batch = PlannedBatch(
            lineage=self.lineage,
            step=1 if last is None else last.step + 1,
            window_id=str(window),
            windows=tuple(b.window_id for b in due),
            judgment_keys=tuple(b.judgment_key for b in due),
            group_versions=tuple(b.group_version for b in due),
            learning_rate=learning_rate,
        )
        with self.engine.begin() as conn:
            conn.execute(
                sa.insert(t.planned_batches),
                [
                    {
                        "lineage": batch.lineage,
                        "step": batch.step,
                        "window_id": batch.window_id,
                        "windows": list(batch.windows),
                        "judgment_keys": list(batch.judgment_keys),
                        "group_versions": list(batch.group_versions),
                        "learning_rate": batch.learning_rate,
                    }
                ],
            )
        logger.info("planned training lineage=%s step=%d windows=%d", self.lineage, batch.step, len(due))
        return batch

    def record(
        self,
        batch: PlannedBatch,
        *,
        trainer: str,
        base_model: str,
        path: str,
        manifest: dict[str, str],
        metrics: dict[str, float],
    ) -> Checkpoint:
        """Make a checkpoint known and its windows consumed, in one transaction.

        Raises:
            DataError: A window was consumed before, or the step exists: nothing is written.
        """
        try:
            with self.engine.begin() as conn:
                conn.execute(
                    sa.insert(t.checkpoints),
                    [
                        {
                            "lineage": batch.lineage,
                            "step": batch.step,
                            "window_id": batch.window_id,
                            "trainer": trainer,
                            "base_model": base_model,
                            "path": path,
                            "manifest": to_json(manifest).decode(),
                            "judgment_keys": list(batch.judgment_keys),
                            "metrics": to_json(metrics).decode(),
                        }
                    ],
                )
                conn.execute(
                    sa.insert(t.consumed_windows),
                    [
                        {
                            "lineage": batch.lineage,
                            "window_id": w,
                            "step": batch.step,
                            "judgment_key": k,
                            "data_version": v,
                        }
                        for w, k, v in zip(batch.windows, batch.judgment_keys, batch.group_versions, strict=True)
                    ],
                )
        except sa.exc.IntegrityError as e:
            raise DataError(
                f"step {batch.step} of lineage {batch.lineage!r} or one of its windows was recorded before; "
                "no window trains twice, so this training was thrown away",
                facts={"lineage": batch.lineage, "step": batch.step},
            ) from e
        return Checkpoint(
            lineage=batch.lineage,
            step=batch.step,
            window_id=batch.window_id,
            trainer=trainer,
            path=path,
            windows=batch.windows,
            judgment_keys=batch.judgment_keys,
            metrics=metrics,
        )
