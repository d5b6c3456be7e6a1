"""Server-sent events, both ways: bytes → the data of each event, and data → bytes."""

from collections.abc import Iterator
from typing import Final

import msgspec

from babylon_rl.types import Json

DONE: Final = b"[DONE]"
MOST_BYTES: Final = 8 << 20  # of one event
_LINE_END: Final = b"\n"


class EventReader:
    """Cuts a stream into events, wherever its pieces end."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the data of each event that is complete now; comments and other fields are left out.

        Raises:
            ValueError: An event is longer than `MOST_BYTES`.
        """
        *lines, self._rest = (self._rest + piece).split(_LINE_END)
        if len(self._rest) + sum(map(len, self._data)) > MOST_BYTES:
            raise ValueError("an event is too long")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                data, self._data = b"\n".join(self._data), []
                yield data


def write_event(chunk: Json) -> bytes:
    """One event with a JSON object."""
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


DONE_EVENT: Final = b"data: " + DONE + b"\n\n"
