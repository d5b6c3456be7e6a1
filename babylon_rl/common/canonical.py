"""One way to turn a value into bytes, and bytes into a hash; neither depends on the time zone or the hash seed."""

import hashlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Final, TypeVar

import msgspec
import zstandard

from babylon_rl.types import OMIT_DEFAULT

T = TypeVar("T")
_PLAIN: Final = (str, int, float, bytes, type(None), msgspec.Struct)
_DEEPEST: Final = 6  # levels at which a dataclass of ours may stand; below is the game's own JSON


def to_json(value: Any) -> bytes:
    """Canonical JSON: keys sorted, no spaces, UTF-8. Dataclasses become objects, without their `OMIT_DEFAULT` fields."""
    return msgspec.json.encode(_leave_out_defaults(value, _DEEPEST), order="sorted")


def from_json(data: bytes | str, type_: type[T]) -> T:
    """Read canonical JSON back into a `type_`."""
    return msgspec.json.decode(data, type=type_)


def digest(value: Any, *, depth: int = 0) -> str:
    """64 hex digits of SHA-256 over the canonical JSON.

    Args:
        value: What `to_json` can write.
        depth: Levels of lists and dataclasses that are taken apart, so that the JSON of a window of 500 agents is never
            in memory as a whole. The result is the same.
    """
    sha256 = hashlib.sha256()
    for piece in pieces(value, depth):
        sha256.update(piece)
    return sha256.hexdigest()


def pack(value: Any, *, depth: int = 0) -> bytes:
    """Canonical JSON in zstd, for a `bytea` column (6× smaller than jsonb and 10× faster to write).

    `depth` as for `digest`; a value taken apart is encoded twice, because zstd writes the total size first.
    """
    if not depth:
        return _packer().compress(to_json(value))
    packer = _packer().compressobj(size=sum(map(len, pieces(value, depth))))
    return b"".join([*map(packer.compress, pieces(value, depth)), packer.flush()])


def pack_with_digest(value: Any) -> tuple[bytes, str]:
    """`pack` and `digest` of one value for the price of encoding it once."""
    data = to_json(value)
    return _packer().compress(data), hashlib.sha256(data).hexdigest()


def _packer() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=3, write_content_size=True)


def unpack(data: bytes, type_: type[T]) -> T:
    """Undo `pack`."""
    return from_json(zstandard.ZstdDecompressor().decompress(data), type_)


def pieces(value: Any, depth: int) -> Iterator[bytes]:
    """The canonical JSON of `value`, in pieces; joined they are `to_json(value)`."""
    if depth and isinstance(value, list | tuple) and value:
        yield b"["
        for i, item in enumerate(value):
            if i:
                yield b","
            yield from pieces(item, depth - 1)
        yield b"]"
    elif depth and is_dataclass(value) and not isinstance(value, type):
        before = b"{"
        for name, own in sorted(_choose_fields(value).items()):
            yield before + to_json(name) + b":"
            yield from pieces(own, depth - 1)
            before = b","
        yield b"}"
    else:
        yield to_json(value)


def _choose_fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, but for those with `OMIT_DEFAULT` that have their default."""
    values = [(f, getattr(value, f.name)) for f in fields(value)]
    return {f.name: v for f, v in values if f.metadata != OMIT_DEFAULT or v != f.default}


def _leave_out_defaults(value: Any, depth: int) -> Any:
    """`value` with each dataclass as a dict; anything that holds none is `value` itself."""
    if not depth or isinstance(value, _PLAIN):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {k: _leave_out_defaults(v, depth - 1) for k, v in _choose_fields(value).items()}
    if isinstance(value, dict):
        kept = {k: _leave_out_defaults(v, depth - 1) for k, v in value.items()}
        return kept if any(kept[k] is not v for k, v in value.items()) else value
    if isinstance(value, list | tuple):
        items = [_leave_out_defaults(v, depth - 1) for v in value]
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    return value
