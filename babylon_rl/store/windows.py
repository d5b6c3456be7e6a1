"""What the assets keep between each other: the only reader and writer of our per-window tables.

Every write of a window happens in one transaction under that window's advisory lock and changes nothing
when the data version is the same: same inputs, same bytes. Training's ledger is `store/ledger.py`.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from babylon_rl.common.canonical import digest, from_json, pack, pack_with_digest, to_json, unpack
from babylon_rl.database import tables as t
from babylon_rl.types import (
    Disposition,
    Hindsight,
    Judgment,
    Score,
    Trajectory,
    TrajectoryGroup,
    WindowOutcomes,
)
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

# Levels at which `canonical` takes a group apart: object → members → one member.
_OF_ONE: Final = 2
_OF_BOTH: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTrajectory:
    """A stitched trajectory as it is kept: a window of any size fits in memory so."""

    trajectory_id: str
    agent_id: str
    turns: int
    pnl_usd: float | None
    digest: str
    body: bytes

    @classmethod
    def of(cls, x: Trajectory) -> "PackedTrajectory":
        """Pack one."""
        body, digest_ = pack_with_digest(x)
        return cls(
            trajectory_id=x.trajectory_id, agent_id=x.agent_id, turns=len(x.turns), pnl_usd=x.pnl_usd,
            digest=digest_, body=body,
        )  # fmt: skip


class Store:
    """Our schema, over one engine. Safe to use from several processes at once."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    @contextmanager
    def locked(self, window: HourWindow) -> Iterator[sa.Connection]:
        """One transaction that no other writer of the same window can overlap."""
        with self.engine.begin() as conn:
            conn.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:w, 0))"), {"w": f"window:{window}"})
            yield conn

    # ── raw_trajectories ───────────────────────────────────────────────────────────────────────────
    def write_ingest(
        self,
        window: HourWindow,
        trajectories: Sequence[Trajectory | PackedTrajectory],
        dispositions: Sequence[Disposition],
        *,
        rows: int,
        changes_seen: int | None = None,
    ) -> tuple[str, bool]:
        """Keep a window's stitched trajectories and where each of its rows ended.

        A new version takes the window's current judgment and verdicts away: they spoke of other rows. Its group
        stands until it is made anew, and neither is judged nor trains meanwhile (view `stale_windows`).

        Args:
            window: The hour.
            trajectories: One per agent, in any order.
            dispositions: One per row, in any order.
            rows: Rows read.
            changes_seen: `window_summary.changes` before they were read, if anybody watches.

        Returns:
            The window's data version, and whether it is a new one.
        """
        packed = [x if isinstance(x, PackedTrajectory) else PackedTrajectory.of(x) for x in trajectories]
        packed.sort(key=lambda x: x.trajectory_id)
        ends = sorted(dispositions, key=lambda d: d.source_id)
        version = digest([[x.digest for x in packed], ends])
        w = str(window)
        d = t.row_dispositions.c
        with self.locked(window) as conn:
            if conn.scalar(sa.select(t.windows.c.data_version).where(t.windows.c.window_id == w)) == version:
                seen = {"changes_seen": changes_seen}
                conn.execute(sa.update(t.windows).where(t.windows.c.window_id == w).values(seen))
                # A row that went to another window and came back left its disposition there.
                kept = conn.scalar(sa.select(sa.func.count()).select_from(t.row_dispositions).where(d.window_id == w))
                if kept == len(ends):
                    return version, False
            for table in (t.window_trajectories, t.row_dispositions, t.windows, t.window_judgments, t.check_results):
                conn.execute(sa.delete(table).where(table.c.window_id == w))
            conn.execute(
                sa.insert(t.windows),
                [
                    {
                        "window_id": w,
                        "data_version": version,
                        "rows": rows,
                        "agents": len({x.agent_id for x in packed if x.turns}),
                        "turns": sum(x.turns for x in packed),
                        "changes_seen": changes_seen,
                    }
                ],
            )
            if packed:
                conn.execute(sa.insert(t.window_trajectories), [_trajectory_row(w, x) for x in packed])
            self._write_dispositions(conn, ends)
        return version, True

    def _write_dispositions(self, conn: sa.Connection, ends: Sequence[Disposition]) -> None:
        if not ends:
            return
        rows = [
            {
                "source_id": d.source_id,
                "trajectory_id": d.trajectory_id,
                "agent_id": d.agent_id,
                "window_id": d.window_id,
                "disposition": d.disposition,
                "reason": d.reason,
                "group_id": d.group_id,
            }
            for d in ends
        ]
        statement = insert(t.row_dispositions)
        changed = {c: statement.excluded[c] for c in rows[0] if c != "source_id"}
        conn.execute(statement.on_conflict_do_update(index_elements=["source_id"], set_=changed), rows)
        mark_dropped(conn, sorted({d.window_id for d in ends}))

    def data_version(self, window: HourWindow) -> str | None:
        """Data version of the ingested window, or None when it was never ingested."""
        with self.engine.connect() as conn:
            found: str | None = conn.scalar(
                sa.select(t.windows.c.data_version).where(t.windows.c.window_id == str(window))
            )
        return found

    def ingested(self) -> list[str]:
        """Ids of all windows that were ingested, in time order."""
        with self.engine.connect() as conn:
            return list(conn.scalars(sa.select(t.windows.c.window_id).order_by(t.windows.c.window_id)))

    def rows_read(self, window: HourWindow) -> int | None:
        """Rows that the window had when it was ingested, or None when it never was."""
        with self.engine.connect() as conn:
            found: int | None = conn.scalar(sa.select(t.windows.c.rows).where(t.windows.c.window_id == str(window)))
        return found

    def trajectories(self, window: HourWindow) -> list[Trajectory]:
        """Stitched trajectories of a window, by trajectory id."""
        query = sa.select(t.window_trajectories.c.body).where(t.window_trajectories.c.window_id == str(window))
        with self.engine.connect() as conn:
            rows = conn.execution_options(yield_per=50).scalars(query.order_by(t.window_trajectories.c.trajectory_id))
            return [unpack(b, Trajectory) for b in rows]

    def dispositions(self, window: HourWindow) -> list[Disposition]:
        """Where each source row of a window ended, by source id."""
        d = t.row_dispositions.c
        query = sa.select(t.row_dispositions).where(d.window_id == str(window)).order_by(d.source_id)
        with self.engine.connect() as conn:
            return [Disposition(**r) for r in conn.execute(query).mappings()]

    # ── market_outcomes ────────────────────────────────────────────────────────────────────────────
    def write_outcomes(self, outcomes: WindowOutcomes) -> tuple[str, bool]:
        """Keep the truth about a closed window; a corrected outcome is a new data version."""
        version = digest(outcomes)
        w = outcomes.window_id
        c = t.window_outcomes.c
        with self.locked(HourWindow.parse(w)) as conn:
            if conn.scalar(sa.select(c.data_version).where(c.window_id == w)) == version:
                return version, False
            for table in (t.window_outcomes, t.window_judgments, t.check_results):  # they spoke of other outcomes
                conn.execute(sa.delete(table).where(table.c.window_id == w))
            conn.execute(
                sa.insert(t.window_outcomes),
                [
                    {
                        "window_id": w,
                        "data_version": version,
                        "stocks": len(outcomes.stocks),
                        "predictions": len(outcomes.predictions),
                        "body": pack(outcomes),
                    }
                ],
            )
        return version, True

    def outcomes(self, window: HourWindow) -> WindowOutcomes:
        """Outcomes of a window; empty (`known` is False) when none were kept."""
        c = t.window_outcomes.c
        with self.engine.connect() as conn:
            body = conn.scalar(sa.select(c.body).where(c.window_id == str(window)))
        return WindowOutcomes(window_id=str(window)) if body is None else unpack(body, WindowOutcomes)

    # ── contextualized_groups ──────────────────────────────────────────────────────────────────────────
    def write_group(
        self,
        window: HourWindow,
        group: TrajectoryGroup | None,
        hindsight: Hindsight | None,
        dispositions: Iterable[Disposition],
        *,
        min_agents: int | None = None,
    ) -> tuple[str, bool]:
        """Keep a window's group (or that it has none), its hindsight apart, and its rows' dispositions.

        A new version takes the window's current judgment and verdicts away: they spoke of other data. `min_agents` is
        what the group was asked for; it is no part of the version.
        """
        ends = sorted(dispositions, key=lambda d: d.source_id)
        version = digest([group, hindsight], depth=_OF_BOTH)
        w = str(window)
        c = t.contextualized_groups.c
        with self.locked(window) as conn:
            self._write_dispositions(conn, ends)
            made_from = _made_from(conn, w)
            if conn.scalar(sa.select(c.data_version).where(c.window_id == w)) == version:
                asked = {"made_from": made_from, "min_agents": min_agents}
                conn.execute(sa.update(t.contextualized_groups).where(c.window_id == w).values(asked))
                return version, False
            for table in (t.contextualized_groups, t.window_judgments, t.check_results):
                conn.execute(sa.delete(table).where(table.c.window_id == w))
            if group is not None and hindsight is not None:
                conn.execute(
                    sa.insert(t.contextualized_groups),
                    [
                        {
                            "group_id": group.group_id,
                            "window_id": w,
                            "data_version": version,
                            "members": len(group.members),
                            "turns": sum(len(m.turns) for m in group.members),
                            "body": pack(group, depth=_OF_ONE),
                            "hindsight": pack(hindsight, depth=_OF_ONE),
                            "min_agents": min_agents,
                            "made_from": made_from,
                        }
                    ],
                )
        return version, True

    def group(self, window: HourWindow) -> TrajectoryGroup | None:
        """What may be trained on; the hindsight is another call on purpose."""
        c = t.contextualized_groups.c
        with self.engine.connect() as conn:
            body = conn.scalar(sa.select(c.body).where(c.window_id == str(window)))
        return None if body is None else unpack(body, TrajectoryGroup)

    def min_agents(self, window: HourWindow) -> int | None:
        """Distinct agents that the window's group was asked for; None: there is no group, or nobody recorded it."""
        c = t.contextualized_groups.c
        with self.engine.connect() as conn:
            asked: int | None = conn.scalar(sa.select(c.min_agents).where(c.window_id == str(window)))
        return asked

    def is_stale(self, window: HourWindow) -> bool:
        """Whether the window's rows or outcomes changed since its group was made: it must be made anew first."""
        query = sa.text("SELECT EXISTS (SELECT 1 FROM babylon_rl.stale_windows WHERE window_id = :w)")
        with self.engine.connect() as conn:
            return bool(conn.scalar(query, {"w": str(window)}))

    def hindsight(self, window: HourWindow) -> Hindsight | None:
        """For the judge's eyes only."""
        c = t.contextualized_groups.c
        with self.engine.connect() as conn:
            body = conn.scalar(sa.select(c.hindsight).where(c.window_id == str(window)))
        return None if body is None else unpack(body, Hindsight)

    # ── ruler_scores ───────────────────────────────────────────────────────────────────────────────
    def find_judgment(self, key: str) -> Judgment | None:
        """A judgment made before, by the hash of all that went into it."""
        c = t.judgments.c
        with self.engine.connect() as conn:
            rows = (
                conn.execute(sa.select(t.judgments).where(c.judgment_key == key).order_by(c.trajectory_id))
                .mappings()
                .all()
            )
        if not rows:
            return None
        first = rows[0]
        return Judgment(
            key=key,
            group_id=first["group_id"],
            window_id=first["window_id"],
            judge_model=first["judge_model"],
            judge_version=first["judge_version"],
            scores=tuple(
                Score(trajectory_id=r["trajectory_id"], value=r["score"], explanation=r["explanation"]) for r in rows
            ),
            prompt_tokens=sum(r["prompt_tokens"] for r in rows),
            completion_tokens=sum(r["completion_tokens"] for r in rows),
            cost_usd=sum(r["cost_usd"] for r in rows),
            details=next((from_json(r["details"], dict) for r in rows if r["details"] is not None), {}),
        )

    def write_judgment(self, judgment: Judgment) -> None:
        """Keep a judgment before anything else is done with it; the same key is never written twice."""
        rows = [
            {
                "judgment_key": judgment.key,
                "trajectory_id": s.trajectory_id,
                "group_id": judgment.group_id,
                "window_id": judgment.window_id,
                "score": s.value,
                "explanation": s.explanation,
                "judge_model": judgment.judge_model,
                "judge_version": judgment.judge_version,
                # One call judges a whole group: its price stands once, in the first row.
                "prompt_tokens": judgment.prompt_tokens if i == 0 else 0,
                "completion_tokens": judgment.completion_tokens if i == 0 else 0,
                "cost_usd": judgment.cost_usd if i == 0 else 0.0,
                "details": to_json(judgment.details).decode() if i == 0 and judgment.details else None,
            }
            for i, s in enumerate(judgment.scores)
        ]
        with self.engine.begin() as conn:
            conn.execute(insert(t.judgments).on_conflict_do_nothing(), rows)

    def set_current_judgment(self, window: HourWindow, group_id: str, key: str | None) -> bool:
        """Say which judgment speaks for a window now (None: none does); returns whether that is news."""
        c = t.window_judgments.c
        with self.locked(window) as conn:
            now = conn.scalar(sa.select(c.judgment_key).where(c.window_id == str(window)))
            if now == key:
                return False
            conn.execute(sa.delete(t.window_judgments).where(c.window_id == str(window)))
            if key is not None:
                conn.execute(
                    sa.insert(t.window_judgments),
                    [{"window_id": str(window), "group_id": group_id, "judgment_key": key}],
                )
        return True

    def judgment(self, window: HourWindow) -> Judgment | None:
        """The current judgment of a window."""
        c = t.window_judgments.c
        with self.engine.connect() as conn:
            key = conn.scalar(sa.select(c.judgment_key).where(c.window_id == str(window)))
        return None if key is None else self.find_judgment(key)


def mark_dropped(conn: sa.Connection, window_ids: Sequence[str]) -> None:
    """Say of the grouped rows of windows that dropout left out, and that no lineage trained on, that they dropped out."""
    conn.execute(
        sa.text("""
            UPDATE babylon_rl.row_dispositions d SET disposition = 'dropped_out', reason = 'dropout'
            WHERE d.window_id = ANY(:w) AND d.disposition IN ('grouped', 'stitched')
              AND EXISTS (SELECT 1 FROM babylon_rl.dropped_windows x WHERE x.window_id = d.window_id)
              AND NOT EXISTS (SELECT 1 FROM babylon_rl.consumed_windows c WHERE c.window_id = d.window_id)"""),
        {"w": list(window_ids)},
    )


def _made_from(conn: sa.Connection, window_id: str) -> str:
    """What a group made now is made from, as the view `stale_windows` compares it."""
    versions = (
        conn.scalar(sa.select(table.c.data_version).where(table.c.window_id == window_id)) or ""
        for table in (t.windows, t.window_outcomes)
    )
    return "|".join(versions)


def _trajectory_row(window_id: str, x: PackedTrajectory) -> dict[str, object]:
    return {
        "trajectory_id": x.trajectory_id,
        "window_id": window_id,
        "agent_id": x.agent_id,
        "turns": x.turns,
        "pnl_usd": x.pnl_usd,
        "body": x.body,
    }
