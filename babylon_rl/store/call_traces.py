"""From a served call back to the rows that its policy learned from, and from a trained step forward to the agents it answers."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from babylon_rl.common.canonical import digest, from_json
from babylon_rl.database import tables as t
from babylon_rl.deployment.stages import Arm

_READ_AT_ONCE: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedStep:
    """One recorded checkpoint.

    Attributes:
        digest: Of its recorded manifest; empty where its weights are remote.
    """

    step: int
    window_id: str
    trainer: str
    base_model: str
    path: str
    digest: str
    trained_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedWindow:
    """One window that a step trained on.

    Attributes:
        group_id: Of the group that trained; None: its judgment is no longer stored.
        members: Trajectories that the judgment ranked, and so were trained on.
        rows: Source rows of those that are stored as they trained; 0: the window was grouped anew since.
    """

    window_id: str
    step: int
    judgment_key: str
    group_id: str | None
    judge: str | None
    members: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredAgent:
    """The newest answer that an agent got, pinned and shadow calls aside."""

    agent_id: str
    step: int
    arm: Arm
    asked_at: datetime


def read_descent(engine: sa.Engine, lineage: str, step: int) -> list[TrainedStep]:
    """A step and all steps that it was trained on top of, the newest first."""
    c = t.checkpoints.c
    columns = (c.step, c.window_id, c.trainer, c.base_model, c.path, c.manifest, c.trained_at)
    query = sa.select(*columns).where(c.lineage == lineage, c.step <= step).order_by(c.step.desc())
    with engine.connect() as conn:
        return [
            TrainedStep(
                **{k: v for k, v in r.items() if k != "manifest"},
                digest=digest_manifest(from_json(r["manifest"], dict[str, str])),
            )
            for r in conn.execute(query).mappings()
        ]


def digest_manifest(manifest: dict[str, str]) -> str:
    """One digest for a checkpoint's files, as the gateway records it; empty where there are none: its weights are remote."""
    return digest(manifest) if manifest else ""


_AGENT: Final = "substr(j.trajectory_id, length(j.window_id) + 2)"  # a stitched trajectory's id is `<window>/<agent>`
# Rows are counted by group, which reads each table once. Only where a judge left members out is it asked which.
_LEARNED: Final = sa.text(f"""
    WITH ranked AS (
        SELECT j.judgment_key, min(j.group_id COLLATE "C") AS group_id, count(*)::int AS members,
               min(j.judge_model COLLATE "C") || ' ' || min(j.judge_version COLLATE "C") AS judge
        FROM babylon_rl.judgments j GROUP BY 1),
    stored AS (SELECT group_id, count(*)::int AS rows FROM babylon_rl.row_outcomes WHERE reason = 'has_turn' GROUP BY 1)
    SELECT c.window_id, c.step, c.judgment_key, r.group_id, r.judge, coalesce(r.members, 0) AS members,
           CASE WHEN s.rows IS NULL THEN 0 WHEN g.members = r.members THEN s.rows ELSE
               (SELECT count(*)::int FROM babylon_rl.judgments j
                JOIN babylon_rl.row_outcomes o ON o.window_id = c.hour_id AND o.group_id = j.group_id
                     AND o.reason = 'has_turn' AND o.agent_id = {_AGENT}
                WHERE j.judgment_key = c.judgment_key) END AS rows
    FROM babylon_rl.consumed_windows c
    LEFT JOIN ranked r ON r.judgment_key = c.judgment_key
    LEFT JOIN stored s ON s.group_id = r.group_id
    LEFT JOIN babylon_rl.contextualized_groups g ON g.group_id = r.group_id
    WHERE c.lineage = :lineage AND c.step <= :step
    ORDER BY c.window_id COLLATE "C" DESC""")  # noqa: S608  # a constant


def read_learned_windows(engine: sa.Engine, lineage: str, step: int) -> list[LearnedWindow]:
    """Every window that a step and its ancestors trained on, the newest hour first."""
    with engine.connect() as conn:
        rows = conn.execute(_LEARNED, {"lineage": lineage, "step": step}).mappings().all()
    return [LearnedWindow(**r) for r in rows]


_ROWS: Final = f"""
    SELECT o.source_id FROM babylon_rl.consumed_windows c
    JOIN babylon_rl.judgments j ON j.judgment_key = c.judgment_key
    JOIN babylon_rl.row_outcomes o ON o.window_id = c.hour_id AND o.group_id = j.group_id AND o.reason = 'has_turn'
         AND o.agent_id = {_AGENT}
    WHERE c.lineage = :lineage AND c.step <= :step AND (CAST(:window AS text) IS NULL OR c.window_id = :window)
    ORDER BY o.window_id COLLATE "C" DESC, o.source_id COLLATE "C" DESC"""  # noqa: S608  # a constant


def stream_learned_rows(engine: sa.Engine, lineage: str, step: int, *, window: str | None = None) -> Iterator[str]:
    """Ids of the source rows that a step and its ancestors trained on, as they are stored, the newest hour first.

    Args:
        engine: With our schema.
        lineage: Of the step.
        step: Its ancestors count too.
        window: Only rows of this window.
    """
    parameters = {"lineage": lineage, "step": step, "window": window}
    with (
        engine.connect() as conn,
        conn.execution_options(yield_per=_READ_AT_ONCE).execute(sa.text(_ROWS), parameters) as found,
    ):
        for ids in found.scalars().partitions():
            yield from ids


# One look into the index per agent, and one for its newest call: a million calls cost what a thousand do.
_ANSWERED: Final = sa.text("""
    WITH RECURSIVE agents AS (
        SELECT min(agent_id) AS agent_id FROM babylon_rl.served_calls WHERE lineage = :lineage AND agent_id IS NOT NULL
        UNION ALL
        SELECT (SELECT min(c.agent_id) FROM babylon_rl.served_calls c
                WHERE c.lineage = :lineage AND c.agent_id > a.agent_id) FROM agents a WHERE a.agent_id IS NOT NULL)
    SELECT a.agent_id, n.step, n.arm, n.asked_at FROM agents a
    CROSS JOIN LATERAL (
        SELECT c.step, c.arm, c.asked_at FROM babylon_rl.served_calls c
        WHERE c.lineage = :lineage AND c.agent_id = a.agent_id AND c.asked_at >= :since
          AND c.arm IN ('incumbent', 'candidate') AND c.status = 200
        ORDER BY c.asked_at DESC LIMIT 1) n
    ORDER BY a.agent_id COLLATE "C" """)


def read_answered_agents(engine: sa.Engine, lineage: str, since: datetime) -> list[AnsweredAgent]:
    """Which step answered each agent last, of those that were answered since an instant; by agent."""
    with engine.connect() as conn:
        rows = conn.execute(_ANSWERED, {"lineage": lineage, "since": since}).mappings().all()
    return [AnsweredAgent(**{**r, "arm": Arm(r["arm"])}) for r in rows]


def count_answers(engine: sa.Engine, lineage: str) -> dict[int, int]:
    """Step → calls that it answered; nobody saw those of a shadow, so they do not count."""
    c = t.served_calls.c
    query = (
        sa.select(c.step, sa.func.count())
        .where(c.lineage == lineage, c.status == 200, c.arm != Arm.SHADOW)
        .group_by(c.step)
    )
    with engine.connect() as conn:
        return dict(conn.execute(query).tuples().all())
