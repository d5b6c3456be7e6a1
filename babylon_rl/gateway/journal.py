"""A journal on disk: lines are appended before they are done elsewhere, and are there after a SIGKILL.

What belongs here: files. What a line means is `recording.py`. A journal is a folder of segments, each written by one
process, which holds a lock on it while it lives; so the segments of a dead process are known by their free locks, and are
taken over. `write()` without `fsync` survives the death of a process; `sync` is for the death of the machine.
"""

import fcntl
import os
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

SEGMENT_BYTES: Final = 4 << 20
_SUFFIX: Final = ".jsonl"
_UNBORN: Final = ".new"
_UNBORN_S: Final = 60


@dataclass(slots=True, eq=False)
class _Segment:
    path: Path
    descriptor: int
    size: int
    done: int = 0


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of one segment, in the order in which they were appended.

    Attributes:
        adopted: Whether another process, now dead, appended them.
    """

    lines: tuple[bytes, ...]
    adopted: bool
    segment: _Segment
    end: int


class Journal:
    """Append on one thread, read and forget on another."""

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Use `folder`, which is made when something is appended.

        Args:
            folder: Other processes may use it too.
            segment_bytes: Size from which the next line begins a new segment.
        """
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self._current: _Segment | None = None
        self._own: deque[_Segment] = deque()
        self._adopted: deque[_Segment] = deque()

    def append(self, line: bytes) -> None:
        """Append a line, whole or not at all.

        Args:
            line: Without an end of line in it.

        Raises:
            OSError: It was not appended: no space, no right to write.
        """
        with self._lock:
            segment = self._current
            if segment is None or segment.size >= self._segment_bytes:
                segment = self._current = self._begin_segment()
                self._own.append(segment)
            data = line + b"\n"
            try:
                written = os.write(segment.descriptor, data)
            except OSError:
                written = 0
            if written != len(data):
                os.ftruncate(segment.descriptor, segment.size)
                raise OSError(f"{segment.path} takes no more: {written} of {len(data)} bytes were written")
            segment.size += written

    def read(self, *, most_lines: int, most_bytes: int) -> Lines | None:
        """The oldest lines that are not forgotten, of dead processes first; None where there are none."""
        for segment, adopted in self._all_segments():
            with self._lock:
                size = segment.size
            if size > segment.done:
                lines, end = _read_lines(segment, size, most_lines, most_bytes)
                return Lines(lines, adopted, segment, end)
            self._drop_if_done(segment)
        return None

    def forget(self, lines: Lines) -> None:
        """The lines are done; a segment of which nothing is left is deleted."""
        lines.segment.done = lines.end
        self._drop_if_done(lines.segment)

    def sync(self) -> None:
        """Have the disk hold what was appended: for lines that stay a while."""
        for segment, _ in self._all_segments():
            with suppress(OSError):
                os.fsync(segment.descriptor)

    def adopt(self) -> int:
        """Take over what dead processes have left; gives the number of lines."""
        lines = 0
        own = {s.path for s, _ in self._all_segments()}
        for unborn in self._folder.glob(f"*{_UNBORN}"):  # a process died between two system calls
            with suppress(OSError):
                if time.time() - unborn.stat().st_mtime > _UNBORN_S:
                    unborn.unlink()
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            if path in own:
                continue
            with suppress(OSError):
                segment = _try_to_adopt(path)
                if segment is not None:
                    self._adopted.append(segment)
                    lines += _count_lines(segment)
        return lines

    def close(self) -> None:
        """Give up the locks; what is not forgotten is left for the next process."""
        with self._lock:
            self._current = None
        for segment, _ in self._all_segments():
            self._drop_if_done(segment)
        for segment, _ in self._all_segments():
            os.close(segment.descriptor)
        self._own.clear()
        self._adopted.clear()

    def _all_segments(self) -> list[tuple[_Segment, bool]]:
        """Each segment, and whether it is a dead process's, oldest first."""
        with self._lock:
            return [(s, True) for s in self._adopted] + [(s, False) for s in self._own]

    def _begin_segment(self) -> _Segment:
        """A new segment takes its name when it is locked: without the lock it would look like a dead process's."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{uuid4().hex}{_SUFFIX}"
        fresh = path.with_suffix(_UNBORN)
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fresh.rename(path)
        return _Segment(path, descriptor, 0)

    def _drop_if_done(self, segment: _Segment) -> None:
        with self._lock:
            if segment is self._current or segment.done < segment.size:
                return
            (self._own if segment in self._own else self._adopted).remove(segment)
        segment.path.unlink(missing_ok=True)
        os.close(segment.descriptor)


def _try_to_adopt(path: Path) -> _Segment | None:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
        if found.st_nlink:  # else another process has just done with it
            return _Segment(path, descriptor, found.st_size)
    except BlockingIOError:
        pass  # its process lives
    os.close(descriptor)
    return None


def _count_lines(segment: _Segment) -> int:
    """Count whole lines; what follows the last end of line was never answered, and is cut off."""
    lines = end = position = 0
    while part := os.pread(segment.descriptor, 1 << 20, position):
        lines += part.count(b"\n")
        if b"\n" in part:
            end = position + part.rindex(b"\n") + 1
        position += len(part)
    segment.size = end
    return lines


def _read_lines(segment: _Segment, size: int, most_lines: int, most_bytes: int) -> tuple[tuple[bytes, ...], int]:
    """Whole lines from where the segment is done, one at least, and where they end."""
    data = os.pread(segment.descriptor, min(most_bytes, size - segment.done), segment.done)
    if b"\n" not in data:
        data = os.pread(segment.descriptor, size - segment.done, segment.done)
    lines = data[: data.rindex(b"\n")].split(b"\n")[:most_lines]
    return tuple(lines), segment.done + sum(map(len, lines)) + len(lines)
