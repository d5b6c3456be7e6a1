"""One training of a lineage at a time, and a look whether that still holds."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from babylon_rl.database.locks import Lock, holds_session, try_lock_session, unlock_session
from babylon_rl.errors import TransientError

logger = logging.getLogger(__name__)

# The second is what SQLAlchemy raises from then on.
_CONNECTION_LOST = (sa.exc.DBAPIError, sa.exc.PendingRollbackError)


@dataclass(frozen=True, slots=True)
class LineageLock:
    """The training lock while it is held."""

    _conn: sa.Connection
    lineage: str

    def require_held(self) -> None:
        """Look at the server, through the connection that holds the lock.

        Raises:
            TransientError: The connection is gone, and the lock with it: another process may train now.
        """
        try:
            held = holds_session(self._conn, Lock.LINEAGE, self.lineage)
        except _CONNECTION_LOST as e:
            raise TransientError(self._lost()) from e
        if not held:
            raise TransientError(self._lost())

    def _lost(self) -> str:
        return (
            f"the training lock of lineage {self.lineage!r} was lost with its database connection, so another process may "
            "train it; nothing was sent; run again"
        )


@contextmanager
def lock_lineage(engine: sa.Engine, lineage: str) -> Iterator[LineageLock]:
    """Lock a lineage: one training at a time; the server releases the lock when the holder dies.

    Local trainers also lock the lineage's directory (`training/checkpoint_store.py`): this lock is lost when the
    connection dies during a training, and another database may share the directory.

    Raises:
        TransientError: Another process is training this lineage now.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        if not try_lock_session(conn, Lock.LINEAGE, lineage):
            raise TransientError(f"lineage {lineage!r} is being trained by another process; wait for it and run again")
        try:
            yield LineageLock(conn, lineage)
        finally:
            try:
                unlock_session(conn, Lock.LINEAGE, lineage)
            except _CONNECTION_LOST:
                # The connection died during the training, and the lock with it. Windows are still not consumed
                # twice: the primary key of `consumed_windows` sees to that.
                logger.warning("lost the training lock lineage=%s", lineage)
