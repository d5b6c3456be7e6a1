"""`babylon_rl.computed_outcomes`: a closed window's outcomes, computed from the game's facts, kept in our own schema.

What belongs here: keeping them, and telling `ingest/window_summary.py` that they changed: in the same transaction the window
goes into the queue of changed outcomes, which every recount empties. The arithmetic is `ingest/game_facts.py`.
"""

import logging
from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from babylon_rl.common.canonical import digest, from_json, to_json
from babylon_rl.database import tables as t
from babylon_rl.database.locks import Lock, lock_transaction
from babylon_rl.database.upsert import upsert
from babylon_rl.ingest.game_facts import GameFacts, compute_outcomes
from babylon_rl.ingest.order_of_trust import prefer_computed
from babylon_rl.ingest.outcomes import SyncStatus, compute_from_simulator
from babylon_rl.types import WindowOutcomes
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)


def sync_computed_outcomes(
    game: sa.Engine, ours: sa.Engine, facts: GameFacts, window: HourWindow, *, now: datetime, with_simulator: bool
) -> SyncStatus:
    """Compute a closed window's outcomes and keep them. The same facts change nothing.

    Where the game has deleted the facts of an hour, what was computed from them before stays.

    Args:
        game: The game's tables; only read.
        ours: Schema `babylon_rl`.
        facts: Of `game`.
        window: The hour.
        now: Aware; an hour that is not over at `now` has no outcomes yet.
        with_simulator: Also from the simulator's facts, for markets that the game's own do not tell: where it played
            into a game whose tables are not ours.

    Returns:
        `written`, `unchanged`, `open`, or `no_facts`.
    """
    if not window.closed_at(now):
        return "open"
    outcomes = compute_outcomes(game, facts, window)
    with ours.begin() as conn:
        lock_transaction(conn, Lock.OUTCOMES, str(window))
        if with_simulator:
            outcomes, _ = prefer_computed(outcomes, compute_from_simulator(conn, window))
        if not outcomes.known:
            return "no_facts"
        fingerprint = digest(outcomes)[:32]
        c = t.computed_outcomes.c
        if conn.scalar(sa.select(c.fingerprint).where(c.window_id == str(window))) == fingerprint:
            return "unchanged"
        row = {
            "window_id": str(window),
            "stocks": len(outcomes.stocks),
            "predictions": len(outcomes.predictions),
            "body": to_json(outcomes).decode(),
            "fingerprint": fingerprint,
            "computed_at": now,
        }
        upsert(conn, t.computed_outcomes, [row])
        conn.execute(sa.insert(t.outcome_changes), [{"window_id": str(window)}])
    logger.info("computed outcomes window=%s stocks=%d predictions=%d", window, row["stocks"], row["predictions"])
    return "written"


def read_computed_outcomes(ours: sa.Engine, window: HourWindow) -> WindowOutcomes | None:
    """What was computed for a window; None: nothing was."""
    c = t.computed_outcomes.c
    with ours.connect() as conn:
        body = conn.scalar(sa.select(c.body).where(c.window_id == str(window)))
    return None if body is None else from_json(body, WindowOutcomes)


def read_fingerprints(own: sa.Connection, window_ids: Sequence[str]) -> dict[str, str]:
    """Window id → fingerprint of what was computed, for the windows that have any."""
    c = t.computed_outcomes.c
    query = sa.select(c.window_id, c.fingerprint).where(
        c.window_id == sa.any_(sa.cast(list(window_ids), sa.ARRAY(sa.Text)))
    )
    return dict(own.execute(query).tuples().all())
