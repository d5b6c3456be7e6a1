"""Judgments, each stored once and never deleted, and which of them is the current one of a window."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from babylon_rl.common.canonical import from_json, to_json
from babylon_rl.database import tables as t
from babylon_rl.database.upsert import insert_missing, upsert
from babylon_rl.store.window_lock import lock_window
from babylon_rl.types import Judgment, Score
from babylon_rl.windows import HourWindow

Settled = Literal["set", "unchanged", "superseded"]


class JudgmentStore:
    """Judgments, over one engine."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def find_judgment(self, key: str) -> Judgment | None:
        """A judgment made before, by the hash of all that went into it."""
        with self.engine.connect() as conn:
            return read_judgment(conn, key)

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
                # One call judges a whole group: its price is in the first row only.
                "prompt_tokens": judgment.prompt_tokens if i == 0 else 0,
                "completion_tokens": judgment.completion_tokens if i == 0 else 0,
                "cost_usd": judgment.cost_usd if i == 0 else 0.0,
                "details": to_json(judgment.details).decode() if i == 0 and judgment.details else None,
            }
            for i, s in enumerate(judgment.scores)
        ]
        with self.engine.begin() as conn:
            insert_missing(conn, t.judgments, rows)

    def set_current_judgment(
        self, window: HourWindow, judgment: Judgment, *, group_version: str, instead_of: str | None
    ) -> Settled:
        """Make a judgment the current one of its window, if what it was made of is still what is stored.

        Args:
            window: The hour.
            judgment: Of its group.
            group_version: Version of the group that was judged.
            instead_of: Key of the judgment that was current when the group was read; None: there was none.

        Returns:
            `set`; `unchanged`: it was current already; `superseded`: the window was grouped or judged anew meanwhile,
            and nothing was written.
        """
        c, g = t.window_judgments.c, t.contextualized_groups.c
        w = str(window)
        with lock_window(self.engine, window) as conn:
            if conn.scalar(sa.select(g.data_version).where(g.window_id == w)) != group_version:
                return "superseded"
            current = conn.scalar(sa.select(c.judgment_key).where(c.window_id == w))
            if current == judgment.key:
                return "unchanged"
            if current != instead_of:
                return "superseded"
            row = {"window_id": w, "group_id": judgment.group_id, "judgment_key": judgment.key}
            upsert(conn, t.window_judgments, [row])
        return "set"

    def judgment(self, window: HourWindow) -> Judgment | None:
        """The current judgment of a window."""
        c = t.window_judgments.c
        with self.engine.connect() as conn:
            key = conn.scalar(sa.select(c.judgment_key).where(c.window_id == str(window)))
        return None if key is None else self.find_judgment(key)


def read_judgment(conn: sa.Connection, key: str) -> Judgment | None:
    """A judgment made before, its scores by trajectory id."""
    return read_judgments(conn, [key]).get(key)


def read_judgments(conn: sa.Connection, keys: Sequence[str]) -> dict[str, Judgment]:
    """Key → judgment, of those that are stored, in one query."""
    c = t.judgments.c
    query = (
        sa.select(t.judgments)
        .where(c.judgment_key == sa.any_(sa.literal(list(keys), ARRAY(sa.Text))))
        .order_by(c.trajectory_id.collate("C"))
    )
    by_key: defaultdict[str, list[sa.RowMapping]] = defaultdict(list)
    for row in conn.execute(query).mappings():
        by_key[row["judgment_key"]].append(row)
    return {key: _make_judgment(rows) for key, rows in by_key.items()}


def _make_judgment(rows: Sequence[sa.RowMapping]) -> Judgment:
    first = rows[0]
    return Judgment(
        key=first["judgment_key"],
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
