"""Follows what is deployed: a move is known within a fraction of a second, and the last known state outlives the database.

What belongs here: listening, polling, and the file that keeps the last state. What the state means for a call is
`state.py`.
"""

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from babylon_rl.common.backoff import backoff
from babylon_rl.common.files import atomic_file
from babylon_rl.database.connection import connect
from babylon_rl.errors import ConfigError
from babylon_rl.gateway.state import ServedState
from babylon_rl.store.deployment_state import CHANNEL, read_state, read_state_mark

logger = logging.getLogger(__name__)

POLL_S: Final = 1.0
START_S: Final = 10.0
_FIRST_WAIT: Final = timedelta(milliseconds=100)
_LONGEST_WAIT: Final = timedelta(seconds=1)
_KEEP_EVERY_S: Final = 60.0
# A server that is gone without a word (its machine died) is noticed within some seconds, too.
_LIVENESS: Final = {
    "keepalives_idle": "2",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "4000",
}


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The file: the state, and of which database it is."""

    database: str
    state: ServedState


class DeploymentFollower:
    """A `StateSource` that follows the database on a thread of its own."""

    def __init__(self, url: str, lineage: str, folder: Path, *, poll_s: float = POLL_S) -> None:
        """Nothing is opened yet.

        Args:
            url: Of the database with our schema.
            lineage: Whose deployment is followed.
            folder: Where the last state is kept, in a file of the lineage's name.
            poll_s: Seconds without a notification after which the database is asked all the same.
        """
        self._url, self._lineage, self._poll_s = url, lineage, poll_s
        self._file = folder / f"deployment-{lineage}.json"
        self._state: ServedState | None = None
        self._kept: tuple[ServedState, float] | None = None
        self._error: str | None = None
        self._stop = threading.Event()
        self._ready = threading.Event()

    def current(self) -> ServedState:
        """The newest state that is known; its `read_at` tells how old that is.

        Raises:
            ConfigError: Nothing is known: not running.
        """
        if self._state is None:
            raise ConfigError("what is deployed is not known; ask within `running()`")
        return self._state

    @property
    def error(self) -> str | None:
        """Why the database cannot be followed now, by the error's name; None: it is followed."""
        return self._error

    def has_kept_state(self) -> bool:
        """Whether an earlier gateway left what it knew of this database and lineage."""
        return self._read_kept() is not None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow until the end of the block.

        Raises:
            ConfigError: The database does not answer, and no earlier gateway has left what it knew.
        """
        thread = threading.Thread(target=self._follow_until_stopped, name="deployment-follower", daemon=True)
        thread.start()
        try:
            await asyncio.to_thread(self._ready.wait, START_S)
            if self._state is None:
                self._state = self._read_kept()
            if self._state is None:
                raise ConfigError(
                    f"what is deployed of {self._lineage!r} is not known: the database does not answer "
                    f"({self._error or 'no answer in time'}), and {str(self._file)!r} holds nothing of it; start the database"
                )
            yield
        finally:
            self._stop.set()
            await asyncio.to_thread(thread.join, START_S)

    def _follow_until_stopped(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                with _open(self._url) as (engine, listener):
                    for _ in self._ticks(engine, listener):
                        failures = 0
            except Exception as e:  # noqa: BLE001  # whatever it says, calls are answered by what is known
                failures += 1
                if self._error is None:
                    logger.warning("the deployment is not followed error=%s", type(e).__name__)
                self._error = type(e).__name__
                self._ready.set()  # a gateway that starts now goes by what was kept
                self._stop.wait(backoff(failures, first=_FIRST_WAIT, longest=_LONGEST_WAIT).total_seconds())

    def _ticks(self, engine: sa.Engine, listener: sa.Connection) -> Iterator[None]:
        """Read once, and again after each notification or poll that tells of something new."""
        raw: Any = listener.connection.driver_connection
        raw.execute(f"LISTEN {CHANNEL}")
        mark: tuple[object, ...] | None = None
        while not self._stop.is_set():
            with engine.connect() as conn:
                now = datetime.now(UTC)
                found = read_state_mark(conn, self._lineage)
                if found != mark or self._state is None:
                    state = read_state(conn, self._lineage)
                    self._take(
                        ServedState(
                            deployment=state.deployment, servable=state.servable, policies=state.policies, read_at=now
                        )
                    )
                    mark = found
                else:
                    self._take(replace(self._state, read_at=now))
            yield
            end = time.monotonic() + self._poll_s
            while (
                not self._stop.is_set() and time.monotonic() < end and not list(raw.notifies(timeout=0.1, stop_after=1))
            ):
                pass

    def _take(self, state: ServedState) -> None:
        before, self._state = self._state, state
        if self._error is not None or before is None:
            self._error = None
            logger.info("following lineage=%s deployment=%d", self._lineage, state.deployment.number)
        elif before.deployment.number != state.deployment.number:
            d = state.deployment
            logger.info("deployment=%d stage=%s incumbent=%d candidate=%s", d.number, d.stage, d.incumbent, d.candidate)
        self._ready.set()
        self._keep(state)

    def _keep(self, state: ServedState) -> None:
        """Write the file when the state changed, and its age once a minute."""
        if self._kept is not None:
            kept, at = self._kept
            if replace(kept, read_at=state.read_at) == state and time.monotonic() - at < _KEEP_EVERY_S:
                return
        self._kept = state, time.monotonic()
        try:
            with atomic_file(str(self._file)) as file:
                file.write(msgspec.json.encode(_Kept(database=_identify(self._url), state=state)))
        except (ConfigError, OSError) as e:
            logger.warning("the deployment could not be kept file=%s error=%s", self._file, type(e).__name__)

    def _read_kept(self) -> ServedState | None:
        with suppress(OSError, ValueError):  # a file that is no text is a ValueError and no MsgspecError
            kept = msgspec.json.decode(self._file.read_bytes(), type=_Kept)
            if kept.database == _identify(self._url) and kept.state.deployment.lineage == self._lineage:
                return kept.state
        return None


@contextmanager
def _open(url: str) -> Iterator[tuple[sa.Engine, sa.Connection]]:
    """An engine whose transactions see one moment each, and a connection that listens."""
    engine = connect(sa.make_url(url).update_query_dict(_LIVENESS).render_as_string(hide_password=False))
    try:
        one_moment = engine.execution_options(isolation_level="REPEATABLE READ")
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as listener:
            yield one_moment, listener
    finally:
        engine.dispose()


def _identify(url: str) -> str:
    """16 hex digits that tell databases apart, without their passwords."""
    parsed = sa.make_url(url)
    where = f"{parsed.host}:{parsed.port}/{parsed.database}?{sorted(parsed.query.items())}"
    return hashlib.sha256(where.encode()).hexdigest()[:16]
