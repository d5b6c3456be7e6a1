"""A lineage's checkpoints on disk: written whole or not at all, checked before a training continues from them.

What belongs here: directories, digests, `checkpoint.json`, and the removal of checkpoints that the ledger does not
know. Their paths are `policy/checkpoints.py`; their tensors are the trainer's.

Only what the caller's ledger records counts. A directory with a later step than the parent is left over from a training
that was not recorded, and is removed before that step is made again; a missing or changed parent is an error.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from babylon_rl.errors import DataError, TransientError
from babylon_rl.policy.checkpoints import METADATA_FILE, checkpoint_dir

logger = logging.getLogger(__name__)

FORMAT: Final = 1
_BASE_FILES: Final = {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def file_digests(directory: Path) -> dict[str, str]:
    """File name → SHA-256 of every file directly in a directory, by name."""
    return {p.name: _sha256(p) for p in sorted(directory.iterdir()) if p.is_file()}


def base_digest(base: Path) -> str:
    """One SHA-256 for a base policy: its weights, its configuration and its tokenizer."""
    files = file_digests(base).items()
    lines = "\n".join(f"{n} {d}" for n, d in files if n in _BASE_FILES or n.endswith(".safetensors"))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_metadata(directory: Path) -> dict[str, Any]:
    """Read a checkpoint's `checkpoint.json`.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    try:
        metadata = json.loads((directory / METADATA_FILE).read_bytes())
    except (OSError, ValueError) as e:
        raise DataError(
            f"checkpoint {str(directory)!r} has no readable {METADATA_FILE}: {e}; train that step again"
        ) from e
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise DataError(f"checkpoint {str(directory)!r} does not have format {FORMAT}; train that step again")
    return metadata


@contextmanager
def lineage_lock(root: Path, lineage: str) -> Generator[None]:
    """Lock a lineage's directory; the operating system releases the lock when the process dies, however it dies.

    Raises:
        TransientError: Another process is training this lineage.
    """
    directory = checkpoint_dir(root, lineage, 0).parent.parent
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise TransientError(
                f"lineage {lineage!r} is being trained by another process; wait until it is done and train again"
            ) from e
        yield


def reconcile(
    root: Path, lineage: str, parent_step: int, *, base: str, manifest: Mapping[str, str] | None = None
) -> list[str]:
    """Make the directory agree with the ledger, so that step `parent_step + 1` can be made.

    Args:
        root: Directory of all lineages.
        lineage: The one to train.
        parent_step: Newest step that the caller's ledger holds; 0 is the base.
        base: Digest of the base that the lineage is trained on.
        manifest: File name → SHA-256 of the parent, from the ledger.

    Returns:
        Names of the directories removed: unfinished ones and those after the parent.

    Raises:
        DataError: The parent is missing, changed, or was trained on another base. Nothing is removed then.
    """
    if parent_step:
        verify(root, lineage, parent_step, base=base, manifest=manifest)
    removed = []
    home = checkpoint_dir(root, lineage, 0).parent
    for after in sorted(home.glob("*")):
        if after.is_dir() and after.name.isdecimal() and int(after.name) > parent_step:
            # Renamed first, so that a crash halfway leaves no partial checkpoint under a valid name.
            doomed = after.with_suffix(".tmp")
            shutil.rmtree(doomed, ignore_errors=True)
            after.rename(doomed)
    for unfinished in sorted(home.glob("*.tmp")):
        shutil.rmtree(unfinished)
        removed.append(unfinished.stem)
    if removed:
        logger.warning("removed unrecorded checkpoints lineage=%s parent=%d steps=%s", lineage, parent_step, removed)
    return removed


def verify(
    root: Path, lineage: str, step: int, *, base: str, manifest: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Check a checkpoint against its own `checkpoint.json`, and against the ledger's manifest when there is one.

    Returns:
        Its metadata.

    Raises:
        DataError: It is missing, changed, or was trained on another base.
    """
    directory, name = checkpoint_dir(root, lineage, step), f"{lineage}@{step}"
    facts = {"lineage": lineage, "step": step}
    if not directory.is_dir():
        raise DataError(
            f"checkpoint {name} is recorded but {str(directory)!r} does not exist; restore it, "
            "or start a new lineage with BABYLON_LINEAGE",
            facts=facts,
        )
    metadata = read_metadata(directory)
    digests = file_digests(directory)
    expected = (
        {**dict(metadata.get("files", {})), METADATA_FILE: digests[METADATA_FILE]}
        if manifest is None
        else dict(manifest)
    )
    changed = sorted(n for n in expected if digests.get(n) != expected[n])
    if changed:
        raise DataError(
            f"checkpoint {name}: {', '.join(changed)} changed or vanished since it was trained; restore it from a copy, "
            "or start a new lineage with BABYLON_LINEAGE",
            facts={**facts, "files": changed},
        )
    if (metadata.get("lineage"), metadata.get("step")) != (lineage, step):
        raise DataError(
            f"checkpoint {name}: its {METADATA_FILE} says {metadata.get('lineage')}@{metadata.get('step')}; "
            "it was moved here from elsewhere, restore the right one",
            facts=facts,
        )
    if metadata.get("base") != base:
        raise DataError(
            f"checkpoint {name} was trained on base {str(metadata.get('base'))[:12]}, not on {base[:12]}; set "
            "BABYLON_BASE_MODEL to the base it was trained on, or start a new lineage with BABYLON_LINEAGE",
            facts=facts,
        )
    return metadata


def write(directory: Path, metadata: Mapping[str, Any], fill: Callable[[Path], None]) -> dict[str, str]:
    """Write a checkpoint under a name that ends in `.tmp`, force it to disk, then rename it.

    Args:
        directory: Its final place, which must not exist.
        metadata: Content of `checkpoint.json`; the digests of all other files are added.
        fill: Writes those other files into the directory it is given.

    Returns:
        The manifest: file name → SHA-256, the metadata included.
    """
    unfinished = directory.with_suffix(".tmp")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    fill(unfinished)
    write_metadata(unfinished, metadata)
    for path in unfinished.iterdir():
        _sync_to_disk(path)
    _sync_to_disk(unfinished)
    unfinished.rename(directory)
    _sync_to_disk(directory.parent)
    return file_digests(directory)


def write_metadata(directory: Path, metadata: Mapping[str, Any]) -> None:
    """Write `checkpoint.json`, last of all files: a directory without it is not a checkpoint."""
    body = {**metadata, "format": FORMAT, "files": file_digests(directory)}
    unfinished = directory / f"{METADATA_FILE}.tmp"
    unfinished.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")
    unfinished.rename(directory / METADATA_FILE)


def _sync_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
