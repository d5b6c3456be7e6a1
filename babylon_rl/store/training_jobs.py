"""The remote job of a planned batch: written down before it is sent, and again as soon as its id is known.

What belongs here: what is kept of a job that costs money. What does not: how a job is sent and followed
(`training/serverless_backend.py`).

The record lives in the plan's row and dies with it. Three states: nothing was sent; a request was begun and its answer
is not known, so a job may exist; the job's id is known.
"""

import logging

import sqlalchemy as sa

from babylon_rl.database import tables as t
from babylon_rl.errors import TransientError
from babylon_rl.store.ledger import PlannedBatch
from babylon_rl.store.lineage_lock import LineageLock

logger = logging.getLogger(__name__)


class TrainingJobs:
    """The job journal of one planned batch; see `training.trainer.JobJournal`.

    Args:
        engine: Of the database that holds the plan.
        planned: The plan; nothing is written once another has taken its place.
        lock: The training lock, which must be held when a job is sent.
    """

    def __init__(self, engine: sa.Engine, planned: PlannedBatch, lock: LineageLock) -> None:
        self._engine, self._planned, self._lock = engine, planned, lock

    def is_begun(self) -> bool:
        return self.seconds_since_begun() is not None

    def seconds_since_begun(self) -> float | None:
        age = sa.func.extract("epoch", sa.func.now() - t.planned_batches.c.submitted_at)
        with self._engine.connect() as conn:
            seconds = conn.scalar(sa.select(age).where(self._is_mine()))
        return None if seconds is None else float(seconds)

    def job_id(self) -> str | None:
        with self._engine.connect() as conn:
            return conn.scalar(sa.select(t.planned_batches.c.job_id).where(self._is_mine()))

    def begin(self) -> None:
        """Compare-and-set: of two processes that hold the same plan, one gets to send it.

        Raises:
            TransientError: The training lock is lost, the plan was replaced, or another process has begun.
        """
        self._lock.require_held()
        if not self._update(t.planned_batches.c.submitted_at.is_(None), submitted_at=sa.func.now()):
            raise TransientError(
                f"the plan of {self._planned.lineage}@{self._planned.step} was replaced, or sent by another process, "
                "before this one could send it; nothing was sent; run again"
            )

    def take_back(self) -> None:
        self._update(t.planned_batches.c.job_id.is_(None), submitted_at=None)

    def store_id(self, job_id: str) -> None:
        # Logged first: if the database is gone at this very moment, a person can still find the job.
        logger.info("sent a training policy=%s@%d job=%s", self._planned.lineage, self._planned.step, job_id)
        self._update(t.planned_batches.c.submitted_at.is_not(None), job_id=job_id)

    def _update(self, condition: sa.ColumnElement[bool], **values: object) -> bool:
        with self._engine.begin() as conn:
            query = sa.update(t.planned_batches).where(self._is_mine(), condition).values(**values)
            return conn.execute(query).rowcount == 1

    def _is_mine(self) -> sa.ColumnElement[bool]:
        p, planned = t.planned_batches.c, self._planned
        return sa.and_(
            p.lineage == planned.lineage,
            p.step == planned.step,
            p.windows == list(planned.windows),
            p.judgment_keys == list(planned.judgment_keys),
        )
