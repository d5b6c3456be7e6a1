"""One writer of a window at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from babylon_rl.database.locks import Lock, lock_transaction
from babylon_rl.windows import HourWindow


@contextmanager
def lock_window(engine: sa.Engine, window: HourWindow) -> Iterator[sa.Connection]:
    """One transaction that no other writer of the same window can overlap."""
    with engine.begin() as conn:
        lock_transaction(conn, Lock.WINDOW, str(window))
        yield conn
