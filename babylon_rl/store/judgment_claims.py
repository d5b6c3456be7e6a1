"""Claims on judgments: of all processes that share a database, one makes a judgment at a time.

A claim is an advisory lock of one session, so a killed process holds none. What is kept of a judgment is in
`judgments.py`; who waits for whom is `judging/score.py`'s.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self, TypeVar

import sqlalchemy as sa

from babylon_rl.database.locks import Lock, try_lock_session, unlock_session, unlock_session_all

logger = logging.getLogger(__name__)

T = TypeVar("T")


class JudgmentClaims:
    """The claims of one process, over one connection that is opened with the first of them. Satisfies `Claims`.

    Use it inside `async with`, which gives all of them back at the end.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._conn: sa.Connection | None = None
        self._held: set[str] = set()
        self._one_at_a_time = threading.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._close)

    async def claim(self, key: str) -> bool:
        """Claim the making of a judgment; False while anyone holds it, another task of this process included.

        Raises:
            sqlalchemy.exc.OperationalError: The database is out of reach.
        """
        return await asyncio.to_thread(self._claim, key)

    async def release(self, key: str) -> None:
        """Give a claim back."""
        await asyncio.to_thread(self._release, key)

    def _close(self) -> None:
        with self._one_at_a_time:
            self._held.clear()
            if self._conn is not None:
                with suppress(sa.exc.OperationalError):  # lost, and its locks with it
                    unlock_session_all(self._conn)
            self._disconnect()

    def _claim(self, key: str) -> bool:
        with self._one_at_a_time:
            # A session may take its own lock again, so this process looks at what it holds itself.
            if key in self._held or not self._run(lambda conn: try_lock_session(conn, Lock.JUDGMENT, key)):
                return False
            self._held.add(key)
            return True

    def _release(self, key: str) -> None:
        with self._one_at_a_time:
            if key not in self._held:
                return
            self._held.discard(key)
            if self._conn is None:  # the lock went with the connection
                return
            try:
                unlock_session(self._conn, Lock.JUDGMENT, key)
            except sa.exc.OperationalError:
                self._disconnect()

    def _run(self, query: Callable[[sa.Connection], T]) -> T:
        """Run a query on the connection; on a new one if that was lost."""
        if self._conn is not None:
            try:
                return query(self._conn)
            except sa.exc.OperationalError:
                logger.warning("connection of the claims was lost held=%d", len(self._held))
                self._disconnect()
        return query(self._connect())

    def _connect(self) -> sa.Connection:
        """Open the connection and take again what is held: its locks went with the connection before."""
        conn = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._conn = conn
        lost = [key for key in sorted(self._held) if not try_lock_session(conn, Lock.JUDGMENT, key)]
        if lost:
            logger.warning("claims were taken by others while the connection was lost keys=%s", lost)
        return conn

    def _disconnect(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.invalidate()  # closed, and not back to the pool: its locks would live on there
            conn.close()
