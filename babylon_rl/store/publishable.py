"""What is published of a lineage into the game's tables: its trained batches, its evaluations, and the judged rows.

What belongs here: reading it, in bounded memory. How the game's tables call it is `pipeline/publish.py`.
A row is told apart from the group that it is stored in: a window that was grouped anew since it trained names no rows here.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from babylon_rl.common.canonical import from_json, unpack
from babylon_rl.database import tables as t
from babylon_rl.store.evaluations import PolicyResult
from babylon_rl.store.judgments import read_judgments
from babylon_rl.types import Judgment

_WINDOWS_AT_ONCE: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedBatch:
    """One checkpoint with when it was planned and trained.

    Attributes:
        judgment_keys: One per window that it trained on, in time order.
        wandb_artifact: Where W&B keeps its weights: `entity/project/name:step`; None: they are elsewhere.
    """

    step: int
    window_id: str
    base_model: str
    path: str
    judgment_keys: tuple[str, ...]
    metrics: Mapping[str, float]
    planned_at: datetime | None
    trained_at: datetime
    wandb_artifact: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedRow:
    """One source row of a ranked trajectory, as the game names it.

    Attributes:
        own: The stitched trajectory that it is part of: `<window>/<agent>`.
    """

    source_id: str
    trajectory_id: str
    own: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRows:
    """The current judgment of one window, with the rows that it ranks.

    Attributes:
        judged_at: Stitched trajectory → when it was judged.
        trained: Step that trained on the window; None: no step of the lineage did.
        learned: Stitched trajectories of the group that it trained on; empty where the window was grouped anew since.
    """

    judgment: Judgment
    judged_at: Mapping[str, datetime]
    rows: tuple[RankedRow, ...]
    trained: int | None
    learned: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutResult:
    """A checkpoint on the simulator's held-out windows, and its parent on the same ones.

    Attributes:
        lift: Mean over the base, and the ends of its interval, in US dollars a window.
        parent: The step before; None where it did not play them.
    """

    suite: str
    policy: PolicyResult
    lift: tuple[float, float, float]
    base_mean_pnl_usd: float
    parent: PolicyResult | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveResult:
    """What the last look at a rollout said: candidate less incumbent, in US dollars an agent and window."""

    rollout: str
    window_id: str
    stage: str
    decision: str
    windows: int
    mean_usd: float | None
    lo_usd: float | None
    hi_usd: float | None


def read_batches(engine: sa.Engine, lineage: str) -> list[TrainedBatch]:
    """Every checkpoint of a lineage, by step."""
    c, p = t.checkpoints.c, t.planned_batches.c
    is_its_plan = sa.and_(p.lineage == c.lineage, p.step == c.step)
    query = (
        sa.select(t.checkpoints, p.planned_at)
        .select_from(t.checkpoints.outerjoin(t.planned_batches, is_its_plan))
        .where(c.lineage == lineage)
        .order_by(c.step)
    )
    with engine.connect() as conn:
        return [
            TrainedBatch(
                step=r["step"],
                window_id=r["window_id"],
                base_model=r["base_model"],
                path=r["path"],
                judgment_keys=tuple(r["judgment_keys"]),
                metrics=from_json(r["metrics"], dict[str, float]),
                planned_at=r["planned_at"],
                trained_at=r["trained_at"],
                wandb_artifact=r["path"] if r["trainer"] == "serverless" and r["path"].count("/") == 2 else None,
            )
            for r in conn.execute(query).mappings()
        ]


# By the hour, so that the rows' index is used: a batch costs the same with a million rows as with a thousand.
_ROWS_OF_KEYS: Final = sa.text("""
    WITH ranked AS MATERIALIZED (
        SELECT judgment_key, window_id, group_id, trajectory_id, substr(trajectory_id, length(window_id) + 2) AS agent_id
        FROM babylon_rl.judgments WHERE judgment_key = ANY(:keys))
    SELECT j.judgment_key, o.source_id, o.trajectory_id, j.trajectory_id AS own
    FROM (SELECT DISTINCT left(window_id, 16) AS hour_id FROM ranked) h
    CROSS JOIN LATERAL (SELECT source_id, trajectory_id, group_id, agent_id FROM babylon_rl.row_outcomes r
                        WHERE r.window_id = h.hour_id AND r.reason = 'has_turn' OFFSET 0) o
    JOIN ranked j ON j.group_id = o.group_id AND j.agent_id = o.agent_id
    ORDER BY j.window_id COLLATE "C", j.trajectory_id COLLATE "C", o.source_id COLLATE "C" """)


def read_ranked(engine: sa.Engine, judgment_keys: Sequence[str]) -> list[tuple[Judgment | None, tuple[RankedRow, ...]]]:
    """The judgments of one batch with the rows that they rank, in the order of the keys; None: it is not stored."""
    with engine.connect() as conn:
        rows, judgments = _read_rows(conn, judgment_keys), read_judgments(conn, judgment_keys)
    return [(judgments.get(key), tuple(rows[key])) for key in judgment_keys]


def _read_rows(conn: sa.Connection, keys: Sequence[str]) -> defaultdict[str, list[RankedRow]]:
    rows: defaultdict[str, list[RankedRow]] = defaultdict(list)
    for r in conn.execute(_ROWS_OF_KEYS, {"keys": list(keys)}):
        rows[r.judgment_key].append(RankedRow(source_id=r.source_id, trajectory_id=r.trajectory_id, own=r.own))
    return rows


# A judgment that failed a check of ours is shown to nobody: its scores are no scores.
_CURRENT: Final = sa.text("""
    SELECT j.window_id, j.judgment_key, c.step, c.judgment_key AS trained_key
    FROM babylon_rl.window_judgments j
    JOIN babylon_rl.contextualized_groups g ON g.window_id = j.window_id AND g.group_id = j.group_id
    LEFT JOIN LATERAL (SELECT u.step, u.judgment_key FROM babylon_rl.consumed_windows u
                       WHERE u.lineage = :lineage AND u.window_id IN (j.window_id, g.hour_id)
                         AND (u.window_id = j.window_id OR u.whole_hour)
                       ORDER BY u.window_id DESC LIMIT 1) c ON true
    WHERE j.window_id = ANY(:windows)
      AND NOT EXISTS (SELECT FROM babylon_rl.check_results v
                      JOIN babylon_rl.required_checks q ON q.check_name = v.check_name
                      WHERE v.window_id = j.window_id AND NOT v.passed
                        AND v.about = CASE WHEN q.asset = 'ruler_scores' THEN j.judgment_key ELSE g.data_version END)
    ORDER BY j.window_id COLLATE "C" """)


def stream_judged_rows(engine: sa.Engine, lineage: str) -> Iterator[list[JudgedRows]]:
    """Every window with a current judgment that passed its checks, in time order, some hundred windows at a time."""
    with engine.connect() as conn:
        w = t.window_judgments.c.window_id
        windows = conn.scalars(sa.select(w).order_by(w.collate("C"))).all()
        for i in range(0, len(windows), _WINDOWS_AT_ONCE):
            yield _read_judged(conn, lineage, windows[i : i + _WINDOWS_AT_ONCE])


def _read_judged(conn: sa.Connection, lineage: str, windows: Sequence[str]) -> list[JudgedRows]:
    current = conn.execute(_CURRENT, {"lineage": lineage, "windows": list(windows)}).all()
    keys = sorted({r.judgment_key for r in current} | {r.trained_key for r in current if r.trained_key})
    rows, judgments = _read_rows(conn, keys), read_judgments(conn, keys)
    c = t.judgments.c
    judged_at: defaultdict[str, dict[str, datetime]] = defaultdict(dict)
    for key, own, at in conn.execute(
        sa.select(c.judgment_key, c.trajectory_id, c.judged_at).where(c.judgment_key.in_(keys))
    ):
        judged_at[key][own] = at
    found = []
    for r in current:
        judgment, trained = judgments[r.judgment_key], judgments.get(r.trained_key)
        is_as_trained = trained is not None and trained.group_id == judgment.group_id
        found.append(
            JudgedRows(
                judgment=judgment,
                judged_at=judged_at[r.judgment_key],
                rows=tuple(rows[r.judgment_key]),
                trained=r.step,
                learned=frozenset(judged_at[r.trained_key]) if is_as_trained else frozenset(),
            )
        )
    return found


def read_held_out_results(engine: sa.Engine, lineage: str) -> dict[int, HeldOutResult]:
    """The newest evaluation in the simulator of each step of a lineage that has one."""
    c = t.evaluations.c
    query = sa.select(t.evaluations).where(c.lineage == lineage).order_by(c.evaluated_at, c.suite)
    with engine.connect() as conn:
        rows = conn.execute(query).mappings().all()
    results = {(r["step"], r["suite"]): unpack(r["body"], PolicyResult) for r in rows}
    return {
        r["step"]: HeldOutResult(
            suite=r["suite"],
            policy=results[r["step"], r["suite"]],
            lift=(r["lift_usd"], r["lift_lo_usd"], r["lift_hi_usd"]),
            base_mean_pnl_usd=r["base_mean_pnl_usd"],
            parent=results.get((r["step"] - 1, r["suite"])),
        )
        for r in rows
    }


def read_live_results(engine: sa.Engine, lineage: str) -> dict[str, LiveResult]:
    """Rollout → what the last look at it said."""
    c = t.deployment_looks.c
    columns = (c.rollout, c.window_id, c.stage, c.decision, c.windows, c.mean_usd, c.lo_usd, c.hi_usd)
    query = (
        sa.select(*columns)
        .distinct(c.rollout)
        .where(c.lineage == lineage)
        .order_by(c.rollout, c.window_id.collate("C").desc())
    )
    with engine.connect() as conn:
        return {r["rollout"]: LiveResult(**r) for r in conn.execute(query).mappings()}
