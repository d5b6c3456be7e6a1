"""Records each served call off the request's path: into a journal at once, into the database by a thread of its own.

What belongs here: when calls are written, and what happens when they cannot be. The journal's files are `journal.py`.

A call is appended to the journal before its answer ends, so a SIGKILL loses none whose answer was sent whole; the next
gateway on the same folder writes what the dead one had not. Each row is written once, by its call's id, however often it is
tried. The journal is synced to the disk when the database is away: a machine that loses power meanwhile keeps it, and one
that loses power otherwise loses the last batch.
"""

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg
import sqlalchemy as sa

from babylon_rl.common.backoff import backoff
from babylon_rl.database.connection import connect
from babylon_rl.deployment.stages import Arm
from babylon_rl.errors import ConfigError, TransientError
from babylon_rl.gateway.calls import ServedCall
from babylon_rl.gateway.journal import Journal, Lines
from babylon_rl.ingest.call_logs import AnsweredCall, write_call_logs
from babylon_rl.ingest.steps import make_storable
from babylon_rl.store.served_calls import write_calls
from babylon_rl.types import Json, policy_name

logger = logging.getLogger(__name__)

GATHER_S: Final = 0.05
STOP_S: Final = 5.0
ADOPT_EVERY_S: Final = 30.0
MOST_IN_MEMORY: Final = 10_000
_MOST_ROWS: Final = 1_000
_MOST_BYTES: Final = 4 << 20
_FIRST_WAIT: Final = timedelta(milliseconds=100)
_LONGEST_WAIT: Final = timedelta(seconds=2)
_OF_THE_ROW: Final = (
    psycopg.DataError,
    psycopg.IntegrityError,
    sa.exc.DataError,
    sa.exc.IntegrityError,
    msgspec.MsgspecError,
    ValueError,
    TypeError,
    ArithmeticError,
)
_DECODER: Final = msgspec.json.Decoder(ServedCall)
_COLUMNS: Final = [
    "call_id",
    "agent_id",
    "window_id",
    "lineage",
    "step",
    "digest",
    "arm",
    "deployment",
    "rollout",
    "fell_back_from",
    "upstream",
    "status",
    "error",
    "asked_at",
    "first_token_ms",
    "latency_ms",
    "prompt_tokens",
    "completion_tokens",
    "temperature",
    "finish_reason",
    "streamed",
    "trajectory_id",
    "step_number",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingStats:
    """Counts of one process since its start.

    Attributes:
        recorded: Calls taken.
        waiting: In the journal and not in the database, those of dead processes included.
        written: Rows of `served_calls` written.
        spilled: Calls that waited in the journal because the database was away, or their process died.
        lost: Calls kept nowhere: neither the disk nor memory took them.
        rejected: Calls that the database refuses; they are in `rejected.txt` beside the journal.
        logged: Rows of the game's `llm_call_logs` written.
        refused: Calls that named a trajectory and may not be logged in the game's table.
        error: Why the database does not take calls now, by the error's name; None: it does.
    """

    recorded: int
    waiting: int
    written: int
    spilled: int
    lost: int
    rejected: int
    logged: int
    refused: int
    error: str | None


class CallRecorder:
    """A `CallSink` that loses no answered call.

    `record` is called on one thread, the event loop's; the database is used on another.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        game_url: str | None = None,
        into_foreign_game: bool = False,
        gather_s: float = GATHER_S,
    ) -> None:
        """Nothing is opened yet.

        Args:
            url: Of the database with our schema.
            folder: Of the journal; gateways may share it.
            game_url: Of the database with the game's tables; None: the same.
            into_foreign_game: Log calls in the game's table although our migrations did not create it.
            gather_s: Seconds that the first call of a batch waits for more.
        """
        self._urls = (url, game_url or url)
        self._into_foreign_game = into_foreign_game
        self._gather_s = gather_s
        self._folder = folder
        self._journal = Journal(folder)
        self._memory: deque[bytes] = deque()  # where the disk takes no more
        self._engines: dict[str, sa.Engine] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._deadline = float("inf")
        self._taken = self._done = self._adopted = 0
        self._written = self._spilled = self._lost = self._rejected = self._logged = self._refused = 0
        self._error: str | None = None
        self._said: set[str] = set()

    @property
    def waiting(self) -> int:
        return self._taken + self._adopted - self._done

    @property
    def stats(self) -> RecordingStats:
        return RecordingStats(
            recorded=self._taken + self._lost,
            waiting=self.waiting,
            written=self._written,
            spilled=self._spilled,
            lost=self._lost,
            rejected=self._rejected,
            logged=self._logged,
            refused=self._refused,
            error=self._error,
        )

    def record(self, call: ServedCall) -> None:
        """Take a call; when this returns, it survives a SIGKILL."""
        try:
            line = _encode(call)
            try:
                self._journal.append(line)
            except OSError as e:
                if len(self._memory) >= MOST_IN_MEMORY:
                    raise
                self._memory.append(line)
                self._say_once("journal", "the journal of served calls takes no more, memory does error=%s", e)
        except Exception as e:  # noqa: BLE001  # an agent's call never fails because it cannot be recorded
            self._lost += 1
            self._say_once("lost", "a served call was lost call=%s error=%s", call.call_id, type(e).__name__)
            return
        self._taken += 1
        if self._error is not None:
            self._spilled += 1
        self._wake.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write calls until the end of the block, which writes what is left; what cannot be written stays in the journal."""
        writer = threading.Thread(target=self._write_until_stopped, name="call-recorder", daemon=True)
        writer.start()
        try:
            yield
        finally:
            self._deadline = time.monotonic() + STOP_S
            self._stop.set()
            self._wake.set()
            await asyncio.to_thread(writer.join, 2 * STOP_S)

    def _write_until_stopped(self) -> None:
        failures, adopt_at = 0, 0.0
        while True:
            stopping = self._stop.is_set()
            try:
                if time.monotonic() >= adopt_at:
                    adopt_at = time.monotonic() + ADOPT_EVERY_S
                    self._adopt()
                while self._write_next():
                    failures = 0
                self._note_success()
            except Exception as e:  # noqa: BLE001  # whatever the database says, the calls wait in the journal
                failures += 1
                self._note_failure(e)
                if stopping and time.monotonic() >= self._deadline:
                    break
                wait = backoff(failures, first=_FIRST_WAIT, longest=_FIRST_WAIT if stopping else _LONGEST_WAIT)
                (time.sleep if stopping else self._stop.wait)(wait.total_seconds())
                continue
            if stopping:
                break
            self._wake.wait(max(0.0, adopt_at - time.monotonic()))
            self._wake.clear()
            self._stop.wait(self._gather_s)
        self._hand_memory_over()
        self._journal.close()
        for engine in self._engines.values():
            engine.dispose()

    def _hand_memory_over(self) -> None:
        """What only memory has goes to the disk, which may take it by now."""
        try:
            while self._memory:
                self._journal.append(self._memory[0])
                self._memory.popleft()
        except OSError as e:
            self._lost += len(self._memory)
            logger.warning("served calls are lost: the disk takes no more calls=%d error=%s", len(self._memory), e)

    def _adopt(self) -> None:
        lines = self._journal.adopt()
        self._adopted += lines
        self._spilled += lines
        if lines:
            logger.info("taken over from a gateway that died calls=%d", lines)

    def _write_next(self) -> bool:
        """Write the oldest calls; False: there are none."""
        lines: Lines | None = None
        if not self._memory:
            lines = self._journal.read(most_lines=_MOST_ROWS, most_bytes=_MOST_BYTES)
            if lines is None:
                return False
        batch = list(islice(self._memory, _MOST_ROWS)) if lines is None else lines.lines
        self._write([c for c in map(self._decode, batch) if c is not None])
        if lines is None:
            for _ in batch:
                self._memory.popleft()
        else:
            self._journal.forget(lines)
        self._done += len(batch)
        return True

    def _decode(self, line: bytes) -> ServedCall | None:
        try:
            return _DECODER.decode(line)
        except ValueError as e:  # no JSON, not of this shape, or no text at all
            self._reject(line, e)
            return None

    def _write(self, calls: Sequence[ServedCall]) -> None:
        ours = self._open(self._urls[0])
        self._written += self._write_or_split(calls, lambda some: write_calls(ours, [_make_row(c) for c in some]))
        logged = [c for c in calls if _is_for_game(c)]
        if logged:
            self._log_for_game(logged)

    def _log_for_game(self, calls: Sequence[ServedCall]) -> None:
        engine = self._open(self._urls[1])

        def write(some: Sequence[ServedCall]) -> int:
            with engine.begin() as conn:
                return write_call_logs(conn, [_to_log(c) for c in some], into_foreign_game=self._into_foreign_game)

        try:
            self._logged += self._write_or_split(calls, write)
        except ConfigError as e:
            self._refused += len(calls)
            self._say_once("refused", "%s", e)

    def _write_or_split(self, calls: Sequence[ServedCall], write: Callable[[Sequence[ServedCall]], int]) -> int:
        """Write calls in one transaction; where one of them is refused, the others are written without it."""
        if not calls:
            return 0
        try:
            return write(calls)
        except _OF_THE_ROW as e:
            if len(calls) == 1:
                self._reject(_encode(calls[0]), e)
                return 0
        half = len(calls) // 2
        return self._write_or_split(calls[:half], write) + self._write_or_split(calls[half:], write)

    def _reject(self, line: bytes, error: Exception) -> None:
        self._rejected += 1
        path = self._folder / "rejected.txt"
        with suppress(OSError):  # nothing more can be done for it, and the others go on
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(line + b"\n")
        self._say_once("rejected", "a served call cannot be recorded error=%s kept=%s", type(error).__name__, path)

    def _open(self, url: str) -> sa.Engine:
        if url not in self._engines:
            try:
                self._engines[url] = connect(url)
            except ConfigError as e:
                raise TransientError(str(e)) from None  # unlike a refusal, it may pass
        return self._engines[url]

    def _note_failure(self, e: Exception) -> None:
        if self._error is None:
            self._spilled += self.waiting
            logger.warning("served calls wait on disk error=%s waiting=%d", type(e).__name__, self.waiting)
        self._error = type(e).__name__
        self._journal.sync()  # they may wait for long

    def _note_success(self) -> None:
        if self._error is not None:
            self._error = None
            logger.info("served calls are written again written=%d", self._written)

    def _say_once(self, topic: str, message: str, *values: object) -> None:
        if topic not in self._said:
            self._said.add(topic)
            logger.warning(message, *values)


def _encode(call: ServedCall) -> bytes:
    try:
        return msgspec.json.encode(call)
    except UnicodeEncodeError:  # half an emoji
        return msgspec.json.encode(_make_storable(call))


def _make_storable(call: ServedCall) -> ServedCall:
    values: dict[str, Any] = {f.name: getattr(call, f.name) for f in fields(call)}
    storable: dict[str, Any] = {k: make_storable(v) for k, v in values.items() if type(v) is str}
    return replace(call, **storable)


def _make_row(call: ServedCall) -> Json:
    row: dict[str, Any] = {name: getattr(call, name) for name in _COLUMNS}
    row["arm"] = call.arm.value
    row["messages"], row["response"] = (call.messages, call.response) if call.keep_text else (None, None)
    row = {k: make_storable(v) if isinstance(v, str) else v for k, v in row.items()}
    row |= {k: _fit_integer(row[k]) for k in ("prompt_tokens", "completion_tokens", "step_number")}
    row["logprobs"] = None if call.logprobs is None else list(call.logprobs)
    return row


def _fit_integer(value: int | None) -> int | None:
    """A count that an upstream or a caller gave; one that the column cannot hold is unknown: COPY would cut its bits off."""
    return value if value is None or -(2**31) <= value < 2**31 else None


def _is_for_game(call: ServedCall) -> bool:
    """Whether the game is told: its agent named a trajectory and got an answer."""
    answered = call.status == 200 and call.response is not None and call.messages is not None
    return call.trajectory_id is not None and answered and call.arm is not Arm.SHADOW


def _to_log(call: ServedCall) -> AnsweredCall:
    return AnsweredCall(
        call_id=call.call_id,
        trajectory_id=call.trajectory_id or "",
        step_number=call.step_number,
        answered_at=call.asked_at + timedelta(milliseconds=call.latency_ms),
        model=call.model_asked or call.lineage,
        model_version=policy_name(call.lineage, call.step),
        purpose=call.purpose,
        messages=msgspec.json.decode(call.messages or "[]"),
        response=call.response or "",
        reasoning=call.reasoning,
        temperature=call.temperature,
        max_tokens=_fit_integer(call.max_tokens),
        top_p=call.top_p,
        finish_reason=call.finish_reason,
        latency_ms=call.latency_ms,
        prompt_tokens=_fit_integer(call.prompt_tokens),
        completion_tokens=_fit_integer(call.completion_tokens),
    )
