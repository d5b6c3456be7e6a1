"""Files that appear whole or not at all, here or behind any fsspec URL."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from babylon_rl.errors import ConfigError


def hash_file(path: Path) -> str:
    """64 hex digits of SHA-256 over a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextmanager
def atomic_file(out: str) -> Iterator[IO[bytes]]:
    """Open a binary file that takes its name only when everything was written; an error leaves nothing behind.

    A local file is synced and renamed over the old one. A remote one is moved by the storage's own means, which for
    object stores is a copy: readers see the old object or the new one.

    Args:
        out: A path, or a URL that fsspec knows (`s3://…`, `gs://…`, `memory://…`). Directories are made.

    Raises:
        ConfigError: The address is a directory, cannot be written to, or needs a package that is not installed.
    """
    fs, path = _open_filesystem(out)
    parent, _, name = path.rpartition("/")
    tmp = f"{parent}/.{name}.{uuid4().hex[:12]}.tmp"
    try:
        if not name or fs.isdir(path):
            raise ConfigError(f"{out!r} is a directory; expected the name of a file to write")
        if parent:
            fs.makedirs(parent, exist_ok=True)
        file = fs.open(tmp, "wb")
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"{out!r} cannot be written: {_describe(e)}; choose another path or fix its permissions"
        ) from None
    try:
        with file:
            yield file
            _sync(file)
        _rename(fs, tmp, path)
    except BaseException:
        with suppress(OSError):
            fs.rm(tmp)
        raise


def _open_filesystem(out: str) -> tuple[Any, str]:
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(out)
    except (ImportError, ValueError) as e:
        raise ConfigError(
            f"{out!r} cannot be opened: {_describe(e)}; install what fsspec needs for it, or give a local path"
        ) from None
    return fs, path


def _is_local(fs: Any) -> bool:
    protocol = fs.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def _sync(file: Any) -> None:
    """Write through to the disk before the rename: else a power cut could leave the new name on an empty file."""
    file.flush()
    with suppress(OSError, AttributeError):  # a remote file has no descriptor
        os.fsync(file.fileno())


def _rename(fs: Any, tmp: str, path: str) -> None:
    if _is_local(fs):
        Path(tmp).replace(path)
    else:
        fs.mv(tmp, path)


def _describe(error: BaseException) -> str:
    text = str(error).splitlines()
    return text[0][:300] if text else type(error).__name__
