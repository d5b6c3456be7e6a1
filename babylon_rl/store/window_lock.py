"""One writer of an hour, with all its scenarios, at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import sqlalchemy as sa

from babylon_rl.database.locks import Lock, lock_transaction, lock_transaction_all
from babylon_rl.windows import HourWindow


@contextmanager
def lock_window(engine: sa.Engine, window: HourWindow) -> Iterator[sa.Connection]:
    """One transaction that no other writer of the same hour can overlap."""
    with engine.begin() as conn:
        lock_transaction(conn, Lock.WINDOW, str(window.hour))
        yield conn


@contextmanager
def lock_windows(engine: sa.Engine, windows: Sequence[HourWindow]) -> Iterator[sa.Connection]:
    """The same for some hundreds of windows at most, in one transaction."""
    with engine.begin() as conn:
        lock_transaction_all(conn, Lock.WINDOW, sorted({str(w.hour) for w in windows}))
        yield conn
