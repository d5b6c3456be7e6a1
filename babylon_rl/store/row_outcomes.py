"""The outcome of each source row: the only reader and writer of `babylon_rl.row_outcomes`."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Final

import sqlalchemy as sa

from babylon_rl.database import tables as t
from babylon_rl.database.upsert import insert_missing, upsert
from babylon_rl.types import Json, RowOutcome, RowOutcomeCounts, RowReason, RowStatus
from babylon_rl.windows import HOUR_ID_LENGTH, HourWindow

_CHUNK: Final = 2_000


def row_outcomes_of(engine: sa.Engine, window: HourWindow) -> list[RowOutcome]:
    """The outcomes of a window's source rows, by source id."""
    with engine.connect() as conn:
        return read_row_outcomes(conn, window)


def read_row_outcomes(conn: sa.Connection, window: HourWindow) -> list[RowOutcome]:
    """The same in the caller's transaction."""
    c = t.row_outcomes.c
    query = sa.select(t.row_outcomes).where(c.window_id == str(window.hour)).order_by(c.source_id)
    return [_read(r) for r in conn.execute(query).mappings()]


def find_row_outcome(engine: sa.Engine, name: str) -> RowOutcome | None:
    """The outcome of a row, found by its id or else its trajectory id; None when it was never read."""
    c = t.row_outcomes.c
    query = sa.select(t.row_outcomes).where(sa.or_(c.source_id == name, c.trajectory_id == name))
    with engine.connect() as conn:
        row = conn.execute(query.order_by(c.source_id != name)).mappings().first()
    return None if row is None else _read(row)


def count_row_outcomes(engine: sa.Engine, windows: Sequence[HourWindow]) -> list[RowOutcomeCounts]:
    """Count the outcomes of each window, in time order; a window without rows has none."""
    c = t.row_outcomes.c
    counts: dict[str, dict[tuple[RowStatus, RowReason], int]] = {str(w): {} for w in sorted(windows)}
    query = sa.select(c.window_id, c.status, c.reason, sa.func.count()).where(c.window_id.in_(list(counts)))
    with engine.connect() as conn:
        for window_id, status, reason, rows in conn.execute(query.group_by(c.window_id, c.status, c.reason)):
            counts[window_id][RowStatus(status), RowReason(reason)] = rows
    return [RowOutcomeCounts(window_id=w, rows=dict(sorted(rows.items()))) for w, rows in counts.items()]


def write_row_outcomes(conn: sa.Connection, outcomes: Sequence[RowOutcome]) -> None:
    """Write outcomes; the one a row had before is replaced. The caller commits."""
    upsert(conn, t.row_outcomes, [asdict(o) for o in outcomes])
    mark_dropped(conn, sorted({o.window_id for o in outcomes}))


def fingerprint_outcomes_after(engine: sa.Engine, newest: HourWindow) -> str:
    """One text that stands for the outcomes of rows of hours after `newest`, as `ingest.future_rows.fingerprint` gives it."""
    query = sa.text("""SELECT count(*) || ':' || coalesce(sum(hashtextextended(source_id || '|' || window_id, 0)), 0)::text
                       FROM babylon_rl.row_outcomes WHERE window_id > :newest""")
    with engine.connect() as conn:
        return str(conn.scalar(query, {"newest": str(newest)}))


def stream_future_outcomes(engine: sa.Engine, newest: HourWindow) -> Iterator[dict[str, str]]:
    """Source id → window id of rows that are quarantined because their hour is after `newest`, 2,000 at a time."""
    c = t.row_outcomes.c
    query = sa.select(c.source_id, c.window_id).where(c.window_id > str(newest), c.reason == RowReason.FUTURE_WINDOW)
    with engine.connect() as conn:
        for rows in conn.execution_options(stream_results=True).execute(query).partitions(_CHUNK):
            yield {r.source_id: r.window_id for r in rows}


def write_missing_outcomes(engine: sa.Engine, outcomes: Sequence[RowOutcome]) -> int:
    """Write the outcomes of rows that have none, and leave the others alone. Returns how many were written."""
    c = t.row_outcomes.c
    with engine.begin() as conn:
        known = set(conn.scalars(sa.select(c.source_id).where(c.source_id.in_([o.source_id for o in outcomes]))))
        missing = [asdict(o) for o in outcomes if o.source_id not in known]
        insert_missing(conn, t.row_outcomes, missing)
    return len(missing)


def delete_future_outcomes(engine: sa.Engine, source_ids: Sequence[str]) -> None:
    """Forget that rows are of hours that have not come; one that was read meanwhile keeps what reading decided."""
    c = t.row_outcomes.c
    if source_ids:
        with engine.begin() as conn:
            conn.execute(
                sa.delete(t.row_outcomes).where(c.source_id.in_(source_ids), c.reason == RowReason.FUTURE_WINDOW)
            )


def mark_dropped(conn: sa.Connection, window_ids: Sequence[str]) -> None:
    """Set the grouped rows of windows that dropout left out, and that no lineage trained on, to `dropped_out`."""
    conn.execute(
        sa.text("""
            UPDATE babylon_rl.row_outcomes o SET status = 'dropped_out', reason = 'dropout'
            FROM (SELECT split_part(r.group_id, '#', 1) AS window_id, r.source_id FROM babylon_rl.row_outcomes r
                  WHERE r.window_id = ANY(:hours) AND r.status = 'grouped') g
            WHERE o.source_id = g.source_id
              AND EXISTS (SELECT 1 FROM babylon_rl.dropped_windows x WHERE x.window_id = g.window_id)
              AND NOT EXISTS (SELECT 1 FROM babylon_rl.consumed_windows c WHERE c.window_id = g.window_id)"""),
        {"hours": sorted({w[:HOUR_ID_LENGTH] for w in window_ids})},
    )


def version_entry(outcome: RowOutcome) -> Json:
    """What the data version of a window hashes of a row: the result of reading it, not what grouping decided.

    Its keys and words are frozen: others would give every window that was ingested before a new version, and so
    call its group stale.
    """
    status, reason = outcome.status.value, outcome.reason.value
    if not outcome.status.is_set_aside:
        status = "ineligible"
        reason = "no_turns" if outcome.reason in (RowReason.NO_TURN, RowReason.NO_TURNS) else "too_few_agents"
    return {
        "source_id": outcome.source_id,
        "trajectory_id": outcome.trajectory_id,
        "agent_id": outcome.agent_id,
        "window_id": outcome.window_id,
        "disposition": status,
        "reason": reason,
        "group_id": None,
    }


def _read(row: sa.RowMapping) -> RowOutcome:
    return RowOutcome(**{**row, "status": RowStatus(row["status"]), "reason": RowReason(row["reason"])})
