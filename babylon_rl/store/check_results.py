"""What asset checks said of each window, kept as data that training obeys."""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from babylon_rl.common.canonical import from_json, to_json
from babylon_rl.database import tables as t
from babylon_rl.types import Json, Verdict
from babylon_rl.windows import HourWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVerdict:
    """An asset check's verdict on one window, as training reads it."""

    window_id: str
    check_name: str
    passed: bool
    facts: Json


def write_verdict(engine: sa.Engine, window: HourWindow, check_name: str, verdict: Verdict) -> None:
    """Keep an asset check's verdict as data that training obeys."""
    row = {
        "window_id": str(window),
        "check_name": check_name,
        "passed": verdict.passed,
        "facts": to_json(verdict.facts).decode(),
    }
    statement = insert(t.window_verdicts)
    changed = {c: statement.excluded[c] for c in ("passed", "facts")}
    with engine.begin() as conn:
        conn.execute(statement.on_conflict_do_update(index_elements=["window_id", "check_name"], set_=changed), row)


def verdicts_of(engine: sa.Engine, window: HourWindow) -> list[StoredVerdict]:
    """All verdicts on a window, by check name."""
    c = t.window_verdicts.c
    query = sa.select(c.window_id, c.check_name, c.passed, c.facts).where(c.window_id == str(window))
    with engine.connect() as conn:
        rows = conn.execute(query.order_by(c.check_name)).mappings().all()
    return [StoredVerdict(**{**r, "facts": from_json(r["facts"], dict)}) for r in rows]
