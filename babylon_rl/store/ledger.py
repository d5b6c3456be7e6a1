"""Which windows wait, which batch trains next, which windows each checkpoint used: exactly once, in the database.

A batch is planned (written) before its training starts and consumed in the same transaction that makes its
checkpoint known, so a process killed at any moment leaves either a plan that the next one finishes, or a
checkpoint. What stands on disk without a row here does not exist.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from babylon_rl.common.canonical import from_json, to_json
from babylon_rl.database import tables as t
from babylon_rl.errors import DataError, TransientError
from babylon_rl.grouping.dropout import bottom_k, dropout_count
from babylon_rl.store.row_outcomes import mark_dropped
from babylon_rl.types import Checkpoint
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyWindow:
    """A window that may train: grouped, judged, every check passed, not consumed by this lineage."""

    window_id: str
    judgment_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A batch decided once.

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


class Ledger:
    """The training ledger of one lineage."""

    def __init__(self, engine: sa.Engine, lineage: str, *, required_checks: Sequence[str]) -> None:
        self.engine = engine
        self.lineage = lineage
        self.required_checks = tuple(sorted(required_checks))

    # ── reading ────────────────────────────────────────────────────────────────────────────────────
    def ready(self, up_to: HourWindow | None = None) -> list[ReadyWindow]:
        """Unused windows whose every required check has passed, oldest first."""
        query = sa.text("""
            SELECT j.window_id, j.judgment_key
            FROM babylon_rl.window_judgments j
            JOIN (SELECT window_id FROM babylon_rl.check_results WHERE check_name = ANY(:checks)
                  GROUP BY window_id HAVING count(*) FILTER (WHERE passed) = :needed) v USING (window_id)
            WHERE NOT EXISTS (SELECT 1 FROM babylon_rl.consumed_windows c
                              WHERE c.lineage = :lineage AND c.window_id = j.window_id)
              AND NOT EXISTS (SELECT 1 FROM babylon_rl.dropped_windows d
                              WHERE d.lineage = :lineage AND d.window_id = j.window_id)
              AND NOT EXISTS (SELECT 1 FROM babylon_rl.stale_windows s WHERE s.window_id = j.window_id)
              AND (CAST(:up_to AS text) IS NULL OR j.window_id <= :up_to)
            ORDER BY j.window_id""")
        with self.engine.connect() as conn:
            rows = conn.execute(
                query,
                {
                    "checks": list(self.required_checks),
                    "needed": len(self.required_checks),
                    "lineage": self.lineage,
                    "up_to": None if up_to is None else str(up_to),
                },
            ).mappings()
            return [ReadyWindow(**r) for r in rows]

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
        known = [c for c in self.checkpoints() if as_of is None or c.window_id <= str(as_of)]
        return known[-1] if known else None

    def open_plan(self) -> Plan | None:
        """The planned batch that has no checkpoint yet: what a killed training left behind."""
        p, c = t.training_plans.c, t.checkpoints.c
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
            else Plan(
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
        return self.open_plan() is not None or self.waiting(window) >= batch_size

    def next_partition(self, batch_size: int) -> HourWindow | None:
        """The partition whose materialization will train next, or None while too few windows are ready.

        It is the hour of the batch's last window, or the one after the last training when late windows
        filled up an older hour: checkpoints go forward in time.
        """
        if (plan := self.open_plan()) is not None:
            return HourWindow.parse(plan.window_id)
        ready = self.ready()
        if len(ready) < batch_size:
            return None
        due = HourWindow.parse(ready[batch_size - 1].window_id)
        last = self.latest()
        return due if last is None else max(due, HourWindow.parse(last.window_id).next())

    def discard_plan(self) -> Plan | None:
        """Forget the open plan, so that the next training plans anew. Nothing trained is lost: it has no checkpoint."""
        with self.training():
            plan = self.open_plan()
            if plan is not None:
                p = t.training_plans.c
                with self.engine.begin() as conn:
                    conn.execute(sa.delete(t.training_plans).where(p.lineage == self.lineage, p.step == plan.step))
        return plan

    def dropped(self, window: HourWindow) -> bool:
        """Whether dropout left this window out of the lineage."""
        c = t.dropped_windows.c
        query = sa.select(sa.exists().where(c.lineage == self.lineage, c.window_id == str(window)))
        with self.engine.connect() as conn:
            return bool(conn.scalar(query))

    def stale(self) -> list[str]:
        """Windows that trained on rows or outcomes which are no longer what is stored, in time order.

        They stay consumed: nothing is retrained without being told.
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
        """Hold the lineage: one training at a time, released by the server when the holder dies.

        Raises:
            TransientError: Another process is training this lineage now.
        """
        key = {"k": f"lineage:{self.lineage}"}
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            if not conn.scalar(sa.text("SELECT pg_try_advisory_lock(hashtextextended(:k, 1))"), key):
                raise TransientError(
                    f"lineage {self.lineage!r} is being trained by another process; wait for it and run again"
                )
            try:
                yield
            finally:
                try:
                    conn.execute(sa.text("SELECT pg_advisory_unlock(hashtextextended(:k, 1))"), key)
                except sa.exc.DBAPIError:
                    # The connection died under the training, and the lock with it. What keeps windows from being
                    # consumed twice is the ledger's primary key, so nothing is lost but the exclusion.
                    logger.warning("lost the training lock lineage=%s", self.lineage)

    def drop_out(
        self, windows: Iterable[HourWindow], *, target: int | None, cap: float, seed: int
    ) -> frozenset[HourWindow]:
        """Decide, before they are judged, which of `windows` dropout leaves out; a window is decided once.

        Of all windows that have a group, `dropout_count` are dropped, those with the smallest hash. Windows
        that were judged or trained on stay in.

        Returns:
            Those of `windows` that are out, now or since before.
        """
        asked = {str(w): w for w in windows}
        with self.engine.begin() as conn:
            conn.execute(
                sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:k, 3))"), {"k": f"dropout:{self.lineage}"}
            )
            d = t.dropped_windows.c
            out = set(conn.scalars(sa.select(d.window_id).where(d.lineage == self.lineage)))
            if target is not None:
                grouped = set(conn.scalars(sa.select(t.contextualized_groups.c.window_id)))
                k = dropout_count(len(grouped), target=target, cap=cap)
                settled = set(conn.scalars(sa.select(t.window_judgments.c.window_id))) | set(
                    conn.scalars(
                        sa.select(t.consumed_windows.c.window_id).where(t.consumed_windows.c.lineage == self.lineage)
                    )
                )
                due = (bottom_k(grouped, k, seed=seed) & asked.keys()) - settled - out
                new = sorted(bottom_k(due, k - len(out), seed=seed))
                if new:
                    conn.execute(sa.insert(t.dropped_windows), [{"lineage": self.lineage, "window_id": w} for w in new])
                    mark_dropped(conn, new)
                    logger.info("dropped out lineage=%s windows=%d of=%d", self.lineage, len(new), len(grouped))
                out |= set(new)
        return frozenset(w for name, w in asked.items() if name in out)

    def plan(self, window: HourWindow, batch_size: int, *, learning_rate: float | None) -> Plan | None:
        """Decide what partition `window` trains, or find what was decided; None when it has nothing to do."""
        if (plan := self.open_plan()) is not None:
            return plan if plan.window_id <= str(window) else None
        last = self.latest()
        if last is not None and str(window) <= last.window_id:
            return None
        batch = self.ready(up_to=window)[:batch_size]
        if len(batch) < batch_size:
            return None
        plan = Plan(
            lineage=self.lineage,
            step=1 if last is None else last.step + 1,
            window_id=str(window),
            windows=tuple(b.window_id for b in batch),
            judgment_keys=tuple(b.judgment_key for b in batch),
            learning_rate=learning_rate,
        )
        with self.engine.begin() as conn:
            conn.execute(
                sa.insert(t.training_plans),
                [
                    {
                        "lineage": plan.lineage,
                        "step": plan.step,
                        "window_id": plan.window_id,
                        "windows": list(plan.windows),
                        "judgment_keys": list(plan.judgment_keys),
                        "learning_rate": plan.learning_rate,
                    }
                ],
            )
        logger.info("training planned lineage=%s step=%d windows=%d", self.lineage, plan.step, len(batch))
        return plan

    def record(
        self,
        plan: Plan,
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
                            "lineage": plan.lineage,
                            "step": plan.step,
                            "window_id": plan.window_id,
                            "trainer": trainer,
                            "base_model": base_model,
                            "path": path,
                            "manifest": to_json(manifest).decode(),
                            "judgment_keys": list(plan.judgment_keys),
                            "metrics": to_json(metrics).decode(),
                        }
                    ],
                )
                g = t.contextualized_groups.c
                found = conn.execute(sa.select(g.window_id, g.data_version).where(g.window_id.in_(plan.windows)))
                versions = {r.window_id: r.data_version for r in found}
                conn.execute(
                    sa.insert(t.consumed_windows),
                    [
                        {
                            "lineage": plan.lineage,
                            "window_id": w,
                            "step": plan.step,
                            "judgment_key": k,
                            "data_version": versions.get(w),
                        }
                        for w, k in zip(plan.windows, plan.judgment_keys, strict=True)
                    ],
                )
        except sa.exc.IntegrityError as e:
            raise DataError(
                f"step {plan.step} of lineage {plan.lineage!r} or one of its windows was recorded before; "
                "no window trains twice, so this training was thrown away",
                facts={"lineage": plan.lineage, "step": plan.step},
            ) from e
        return Checkpoint(
            lineage=plan.lineage,
            step=plan.step,
            window_id=plan.window_id,
            trainer=trainer,
            path=path,
            windows=plan.windows,
            judgment_keys=plan.judgment_keys,
            metrics=metrics,
        )
