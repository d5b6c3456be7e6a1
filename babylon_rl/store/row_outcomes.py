"""Where each source row ended: `row_dispositions`, one row for every row that was read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from babylon_rl.database import tables as t
from babylon_rl.database.upsert import upsert
from babylon_rl.types import Disposition
from babylon_rl.windows import HourWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """How the rows of one window ended: (disposition, reason) → rows."""

    window_id: str
    rows: Mapping[tuple[str, str], int]

    @property
    def total(self) -> int:
        return sum(self.rows.values())


def write_dispositions(conn: sa.Connection, ends: Sequence[Disposition]) -> None:
    """Keep where rows ended; a row that is known already has ended there from now on. The caller commits."""
    upsert(conn, t.row_dispositions, [asdict(d) for d in ends])
    mark_dropped(conn, sorted({d.window_id for d in ends}))


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


def count_rows(engine: sa.Engine, windows: Sequence[HourWindow]) -> list[RowCounts]:
    """Count how the rows of each window ended, in time order; a window without rows has none."""
    query = sa.text("""SELECT window_id, disposition, reason, count(*) AS rows FROM babylon_rl.row_dispositions
                       WHERE window_id = ANY(:w) GROUP BY window_id, disposition, reason""")
    found: dict[str, dict[tuple[str, str], int]] = {str(w): {} for w in sorted(windows)}
    with engine.connect() as conn:
        for r in conn.execute(query, {"w": list(found)}):
            found[r.window_id][r.disposition, r.reason] = r.rows
    return [RowCounts(window_id=w, rows=dict(sorted(rows.items()))) for w, rows in found.items()]


def find_disposition(engine: sa.Engine, name: str) -> Disposition | None:
    """Where a row ended, found by its id or its trajectory id; None when it was never read."""
    d = t.row_dispositions.c
    query = sa.select(t.row_dispositions).where(sa.or_(d.source_id == name, d.trajectory_id == name))
    with engine.connect() as conn:
        found = conn.execute(query.order_by(d.source_id != name)).mappings().first()
    return None if found is None else Disposition(**found)
