"""Advisory locks of PostgreSQL: one process at a time does a thing.

What belongs here: taking and releasing them. A transaction's lock is released at its end, a session's when the session
releases it or dies; so a killed holder never blocks anyone.
"""

from collections.abc import Sequence
from enum import StrEnum

import sqlalchemy as sa


class Lock(StrEnum):
    """What a lock guards. The key of a lock is `<kind>:<name>`, so each kind has names of its own."""

    MIGRATION = "migration"
    """One migration of a database at a time."""
    WINDOW = "window"
    """Writers of what is kept of one window."""
    OUTCOMES = "outcomes"
    """Writers of one window's outcomes: the game's `market_outcomes`, or ours."""
    WINDOW_SUMMARY = "window_summary"
    """Recounts of the recorded windows."""
    JUDGMENT = "judgment"
    """Whoever is making one judgment; held by a session, because a judge takes longer than a transaction should."""
    JUDGE_BUDGET = "judge_budget"
    """Reservations of one day's judging budget."""
    DROPOUT = "dropout"
    """Decisions of one lineage about which windows drop out."""
    LINEAGE = "lineage"
    """Trainings of one lineage; held by a session, because a training outlives any transaction."""
    PUBLISH = "publish"
    """Writers of what we publish into the game's tables."""


def lock_transaction(conn: sa.Connection, kind: Lock, name: str) -> None:
    """Wait until no other transaction holds the lock, then hold it to the end of this one."""
    conn.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": f"{kind}:{name}"})


def lock_transaction_all(conn: sa.Connection, kind: Lock, names: Sequence[str]) -> None:
    """Hold several locks of one kind to the end of the transaction, taken in one order by all who take several.

    Each takes a place in the server's lock table (6,400 by default, shared by all): take some hundreds at most.
    """
    conn.execute(
        sa.text(
            "SELECT pg_advisory_xact_lock(hashtextextended(:kind || ':' || n, 0)) "
            "FROM (SELECT n FROM unnest(CAST(:names AS text[])) AS n ORDER BY n OFFSET 0) x"
        ),
        {"kind": kind.value, "names": list(names)},
    )


def try_lock_session(conn: sa.Connection, kind: Lock, name: str) -> bool:
    """Hold the lock as long as the session lives; False when another session holds it."""
    query = sa.text("SELECT pg_try_advisory_lock(hashtextextended(:key, 0))")
    return bool(conn.scalar(query, {"key": f"{kind}:{name}"}))


def unlock_session_all(conn: sa.Connection) -> None:
    """Release all locks of a session: closing its connection does so only when the server notices, a moment later."""
    conn.execute(sa.text("SELECT pg_advisory_unlock_all()"))


def holds_session(conn: sa.Connection, kind: Lock, name: str) -> bool:
    """Whether this very session holds the lock now; False after the connection was replaced by another."""
    query = sa.text("""
        SELECT EXISTS (SELECT FROM pg_locks l, (SELECT hashtextextended(:key, 0) AS key) k
                       WHERE l.locktype = 'advisory' AND l.granted AND l.pid = pg_backend_pid() AND l.objsubid = 1
                         AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                         AND ((l.classid::bigint << 32) | l.objid::bigint) = k.key)""")
    return bool(conn.scalar(query, {"key": f"{kind}:{name}"}))


def unlock_session(conn: sa.Connection, kind: Lock, name: str) -> None:
    """Release a session's lock before the session ends."""
    conn.execute(sa.text("SELECT pg_advisory_unlock(hashtextextended(:key, 0))"), {"key": f"{kind}:{name}"})
