"""Audits of judges: the newest one of a judge's version decides whether its scores may train."""

import asyncio
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from babylon_rl.common.canonical import from_json, to_json
from babylon_rl.database import tables as t
from babylon_rl.judging.audit.audit import AUDIT_VERSION, Figures, audit
from babylon_rl.judging.hindsight_judge import HindsightJudge
from babylon_rl.types import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAudit:
    """One audit as it was stored. `figures` are `Figures.facts()`."""

    judge_model: str
    judge_version: str
    audited_at: datetime
    fit: bool
    figures: Json


def write_audit(engine: sa.Engine, figures: Figures) -> None:
    """Store an audit; earlier ones stay.

    It also decides about the windows that this judge has judged before: their results of check `judge_is_fit` become what
    the audit found. Nothing else would look at them again, since neither their group nor their judgment changes.
    """
    facts = {"judge": f"{figures.judge_model} {figures.judge_version}", "audited": True, **figures.facts()}
    v, j = t.check_results.c, t.judgments.c
    by_this_judge = sa.select(j.judgment_key).where(
        j.judge_model == figures.judge_model, j.judge_version == figures.judge_version
    )
    row = {
        "judge_model": figures.judge_model,
        "judge_version": figures.judge_version,
        "groups": figures.groups,
        "fit": figures.fit,
        "false_positive_rate": figures.false_positive_rate,
        "length_bias": figures.length_bias,
        "position_bias": figures.position_bias,
        "retest_noise": figures.retest_noise,
        "truth_agreement": figures.truth_agreement,
        "figures": to_json({**figures.facts(), "audit_version": AUDIT_VERSION}).decode(),
    }
    with engine.begin() as conn:
        conn.execute(sa.insert(t.judge_audits), [row])
        conn.execute(
            sa.update(t.check_results)
            .where(v.check_name == "judge_is_fit", v.passed != figures.fit, v.about.in_(by_this_judge))
            .values(passed=figures.fit, facts=to_json(facts).decode())
        )


def latest_audit(engine: sa.Engine, judge_model: str, judge_version: str) -> StoredAudit | None:
    """The newest audit of a judge version, or None when it was never audited."""
    c = t.judge_audits.c
    query = (
        sa.select(c.judge_model, c.judge_version, c.audited_at, c.fit, c.figures)
        .where(c.judge_model == judge_model, c.judge_version == judge_version)
        .order_by(c.audited_at.desc())
        .limit(1)
    )
    with engine.connect() as conn:
        r = conn.execute(query).mappings().first()
    return None if r is None else StoredAudit(**{**r, "figures": from_json(r["figures"], dict)})


def audit_of(engine: sa.Engine, judge_model: str, judge_version: str) -> StoredAudit | None:
    """`latest_audit`; a hindsight judge that was never audited is audited first, because that costs nothing."""
    latest = latest_audit(engine, judge_model, judge_version)
    judge = HindsightJudge()
    if latest is None and (judge_model, judge_version) == (judge.model, judge.version):
        write_audit(engine, asyncio.run(audit(judge)))
        latest = latest_audit(engine, judge_model, judge_version)
    return latest
