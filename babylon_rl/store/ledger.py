"""The training ledger: which windows wait, which batch trains next, which windows each checkpoint used, each once.

A batch is planned (written) before its training starts and consumed in the same transaction that makes its
checkpoint known, so a process killed at any moment leaves either a planned batch that the next one finishes, or
a checkpoint. Files on disk without a row here do not count.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from babylon_rl.common.canonical import from_json, to_json
from babylon_rl.database import tables as t
from babylon_rl.database.locks import Lock, try_lock_session, unlock_session
from babylon_rl.errors import DataError, TransientError
from babylon_rl.store.eligibility import Eligibility, ReadyWindow
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
    """

    lineage: str
    step: int
    window_id: str
    windows: tuple[str, ...]
    judgment_keys: tuple[str, ...]
    learning_rate: float | None


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
    """Each training that used one of `windows`, in all lineages, by lineage and step."""
    c = t.consumed_windows.c
    query = sa.select(c.window_id, c.lineage, c.step, c.judgment_key).where(c.window_id.in_([str(w) for w in windows]))
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

    def latest(self, as_of: HourWindow | None = None) -> Checkpoint | None:
        """The policy as of an hour: the newest checkpoint trained in that partition or before."""
        candidates = [c for c in self.checkpoints() if as_of is None or c.window_id <= str(as_of)]
        return candidates[-1] if candidates else None

    def unfinished_batch(self) -> PlannedBatch | None:
        """The planned batch that has no checkpoint yet: what a killed training left behind."""
        p, c = t.planned_batches.c, t.checkpoints.c
        query = (
            sa.select(p.lineage, p.step, p.window_id, p.windows, p.judgment_keys, p.learning_rate)
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
                learning_rate=r["learning_rate"],
            )
        )

    def trained_in(self, window: HourWindow) -> Checkpoint | None:
        """The checkpoint that this very partition trained."""
        return next((c for c in self.checkpoints() if c.window_id == str(window)), None)

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

    def next_partition(self, batch_size: int) -> HourWindow | None:
        """The partition whose materialization will train next, or None while too few windows are ready.

        It is the hour of the batch's last window, or the one after the last training when late windows
        filled up an older hour: checkpoints go forward in time.
        """
        if (batch := self.unfinished_batch()) is not None:
            return HourWindow.parse(batch.window_id)
        ready = self.ready()
        if len(ready) < batch_size:
            return None
        due = HourWindow.parse(ready[batch_size - 1].window_id)
        last = self.latest()
        return due if last is None else max(due, HourWindow.parse(last.window_id).next())

    def discard_plan(self) -> PlannedBatch | None:
        """Delete the unfinished batch, so that the next training plans a new one. It has no checkpoint, so none is lost."""
        with self.training():
            batch = self.unfinished_batch()
            if batch is not None:
                p = t.planned_batches.c
                with self.engine.begin() as conn:
                    conn.execute(sa.delete(t.planned_batches).where(p.lineage == self.lineage, p.step == batch.step))
        return batch

    def stale(self) -> list[str]:
        """Windows that trained on rows or outcomes which are no longer what is stored, in time order.

        They stay consumed: nothing is retrained by itself.
        """
        query = sa.text("""
            SELECT c.window_id FROM babylon_rl.consumed_windows c
            LEFT JOIN LATERAL (SELECT data_version FROM babylon_rl.contextualized_groups
                               WHERE window_id = c.window_id OFFSET 0) g ON true
            LEFT JOIN LATERAL (SELECT changes_seen FROM babylon_rl.windows
                               WHERE window_id = c.window_id OFFSET 0) w ON true
            LEFT JOIN LATERAL (SELECT changes FROM babylon_rl.window_summary
                               WHERE window_id = c.window_id OFFSET 0) s ON true
            WHERE c.lineage = :lineage
              AND (c.data_version <> coalesce(g.data_version, '') OR s.changes > w.changes_seen
                   OR EXISTS (SELECT 1 FROM babylon_rl.stale_windows x WHERE x.window_id = c.window_id))
            ORDER BY c.window_id""")
        with self.engine.connect() as conn:
            return list(conn.scalars(query, {"lineage": self.lineage}))

    # ── writing ────────────────────────────────────────────────────────────────────────────────────
    @contextmanager
    def training(self) -> Iterator[None]:
        """Lock the lineage: one training at a time; the server releases the lock when the holder dies.

        Local trainers also lock the lineage's directory (`training/checkpoint_store.py`): this lock is lost when the
        connection dies during a training, and another database may share the directory.

        Raises:
            TransientError: Another process is training this lineage now.
        """
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            if not try_lock_session(conn, Lock.LINEAGE, self.lineage):
                raise TransientError(
                    f"lineage {self.lineage!r} is being trained by another process; wait for it and run again"
                )
            try:
                yield
            finally:
                try:
                    unlock_session(conn, Lock.LINEAGE, self.lineage)
                except sa.exc.DBAPIError:
                    # The connection died during the training, and the lock with it. Windows are still not consumed
                    # twice: the primary key of `consumed_windows` sees to that.
                    logger.warning("lost the training lock lineage=%s", self.lineage)

    def plan(self, window: HourWindow, batch_size: int, *, learning_rate: float | None) -> PlannedBatch | None:
        """Plan the batch that partition `window` trains, or find the planned one; None when it has nothing to train."""
        if (batch := self.unfinished_batch()) is not None:
            return batch if batch.window_id <= str(window) else None
        last = self.latest()
        if last is not None and str(window) <= last.window_id:
            return None
        due = self.ready(up_to=window)[:batch_size]
        if len(due) < batch_size:
            return None
        batch = PlannedBatch(
            lineage=self.lineage,
            step=1 if last is None else last.step + 1,
            window_id=str(window),
            windows=tuple(b.window_id for b in due),
            judgment_keys=tuple(b.judgment_key for b in due),
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
                g = t.contextualized_groups.c
                groups = conn.execute(sa.select(g.window_id, g.data_version).where(g.window_id.in_(batch.windows)))
                versions = {r.window_id: r.data_version for r in groups}
                conn.execute(
                    sa.insert(t.consumed_windows),
                    [
                        {
                            "lineage": batch.lineage,
                            "window_id": w,
                            "step": batch.step,
                            "judgment_key": k,
                            "data_version": versions.get(w),
                        }
                        for w, k in zip(batch.windows, batch.judgment_keys, strict=True)
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
