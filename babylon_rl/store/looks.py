"""What each closed hour of a rollout said when it was looked at: the interval over time, and what it rests on.

A look is written once, with its move in one transaction where it made one, and stays as it is: it records what a decision
rested on. The hour's evidence is kept with it, so that the next look reads only the hours that changed since.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
import sqlalchemy as sa

from babylon_rl.common.canonical import from_json, to_json
from babylon_rl.database import tables as t
from babylon_rl.database.upsert import insert_missing, upsert
from babylon_rl.deployment.evidence import WindowEvidence
from babylon_rl.deployment.stages import Stage
from babylon_rl.types import Json
from babylon_rl.windows import HourWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was collected of one hour, and of which rows.

    Attributes:
        version: Changes with the hour's rows, outcomes and served calls.
    """

    version: str
    window: WindowEvidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at a rollout, after one closed hour.

    Attributes:
        number: Of the deployment that was looked at.
        decision: Of `deployment.rules`.
        reason: A sentence.
        windows: That the interval rests on.
        mean_usd: Candidate less incumbent, an agent and window; None: nothing can be compared yet.
        facts: Small values: arms, guard rails.
        evidence: Of the hour itself; None: not asked for.
        looked_at: None: not yet written.
    """

    lineage: str
    rollout: str
    window_id: str
    number: int
    stage: Stage
    decision: str
    reason: str
    windows: int
    mean_usd: float | None = None
    lo_usd: float | None = None
    hi_usd: float | None = None
    facts: Json
    evidence: Evidence | None = None
    looked_at: datetime | None = None


_LIGHT = """SELECT lineage, rollout, window_id, number, stage, decision, reason, windows, mean_usd, lo_usd, hi_usd, looked_at,
                   (CAST(facts AS jsonb) - 'evidence')::text AS facts
            FROM babylon_rl.deployment_looks WHERE lineage = :lineage AND """


def read_looks(engine: sa.Engine, lineage: str, rollout: str) -> list[Look]:
    """Every look at a rollout, in the order of hours, without evidence."""
    return _read(engine, 'rollout = :rollout ORDER BY window_id COLLATE "C"', lineage=lineage, rollout=rollout)


def read_looks_of(engine: sa.Engine, lineage: str, window: HourWindow) -> list[Look]:
    """The looks at one hour: one for each rollout that met agents in it, the newest deployment last."""
    return _read(engine, "window_id = :window_id ORDER BY number", lineage=lineage, window_id=str(window))


def newest_looked(engine: sa.Engine, lineage: str, rollout: str) -> HourWindow | None:
    """The newest hour of a rollout that was looked at."""
    c = t.deployment_looks.c
    query = sa.select(sa.func.max(c.window_id.collate("C"))).where(c.lineage == lineage, c.rollout == rollout)
    with engine.connect() as conn:
        newest = conn.scalar(query)
    return None if newest is None else HourWindow.parse(newest)


def read_evidence(engine: sa.Engine, lineage: str, rollout: str) -> dict[str, Evidence | None]:
    """Window id → the evidence that was collected when that hour was looked at; None: it is not there, or of another shape."""
    query = sa.text(
        "SELECT window_id, (CAST(facts AS json) -> 'evidence')::text AS evidence FROM babylon_rl.deployment_looks "
        "WHERE lineage = :lineage AND rollout = :rollout"
    )
    with engine.connect() as conn:
        rows = conn.execute(query, {"lineage": lineage, "rollout": rollout}).all()
    return {r.window_id: _parse_evidence(r.evidence) for r in rows}


def _parse_evidence(text: str | None) -> Evidence | None:
    try:
        return None if text is None else from_json(text, Evidence)
    except msgspec.ValidationError:  # written by another version of ours
        return None


def write_look(engine: sa.Engine, look: Look) -> None:
    """Keep a look that made no move; one of the same hour and rollout that is there stays."""
    with engine.begin() as conn:
        insert_missing(conn, t.deployment_looks, [_make_row(look)])


def replace_look(conn: sa.Connection, look: Look) -> None:
    """Keep the look that made a move, in the move's transaction."""
    upsert(conn, t.deployment_looks, [_make_row(look)])


def write_evidence(engine: sa.Engine, lineage: str, rollout: str, collected: Sequence[Evidence]) -> None:
    """Replace the evidence of hours that were looked at; what was decided then stays as it is."""
    statement = sa.text(
        "UPDATE babylon_rl.deployment_looks SET facts = jsonb_set(CAST(facts AS jsonb), '{evidence}', CAST(:e AS jsonb))::text "
        "WHERE lineage = :lineage AND rollout = :rollout AND window_id = :w"
    )
    rows = [
        {"lineage": lineage, "rollout": rollout, "w": e.window.window_id, "e": to_json(e).decode()} for e in collected
    ]
    if rows:
        with engine.begin() as conn:
            conn.execute(statement, rows)


def _read(engine: sa.Engine, where: str, **values: str) -> list[Look]:
    with engine.connect() as conn:
        rows = conn.execute(sa.text(_LIGHT + where), values).mappings().all()
    return [Look(**{**r, "stage": Stage(r["stage"]), "facts": from_json(r["facts"], Json)}) for r in rows]


def _make_row(look: Look) -> Json:
    return {
        "lineage": look.lineage,
        "rollout": look.rollout,
        "window_id": look.window_id,
        "number": look.number,
        "stage": look.stage.value,
        "decision": look.decision,
        "reason": look.reason,
        "windows": look.windows,
        "mean_usd": look.mean_usd,
        "lo_usd": look.lo_usd,
        "hi_usd": look.hi_usd,
        "facts": to_json(look.facts | {"evidence": look.evidence}).decode(),
    }
