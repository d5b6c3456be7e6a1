"""A lineage's checkpoints on disk: written whole or not at all, checked before a training continues from them.

What belongs here: directories, digests, `checkpoint.json`, and the removal of checkpoints that the ledger does not
know. Their paths are `policy/checkpoints.py`; their tensors are the trainer's.

Only what the caller's ledger records counts. A directory with a later step than the parent is left over from a training
that was not recorded, and is removed before that step is made again; a missing or changed parent is an error. A
checkpoint of another database's ledger is no leftover: it is never removed, and its step cannot be made beside it.
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

from babylon_rl.common.files import hash_file
from babylon_rl.errors import ConfigError, DataError, TransientError
from babylon_rl.policy.checkpoints import (
    LEDGER_FILE,
    METADATA_FILE,
    checkpoint_dir,
    is_finished,
    lineages,
    read_ledger_of,
    steps,
    write_ledger_of,
)

logger = logging.getLogger(__name__)

FORMAT: Final = 1
_BASE_FILES: Final = {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def file_digests(directory: Path) -> dict[str, str]:
    """File name → SHA-256 of every file directly in a directory, by name, except the id of its ledger.

    Equal trainings have equal digests, whatever database records them.
    """
    return {p.name: hash_file(p) for p in sorted(directory.iterdir()) if p.is_file() and p.name != LEDGER_FILE}


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


def find_unclaimed(root: Path) -> list[tuple[str, int]]:
    """Lineage and step of each finished checkpoint that carries no ledger's id."""
    return [
        (lineage, step)
        for lineage in lineages(root)
        for step in steps(root, lineage)
        if read_ledger_of(checkpoint_dir(root, lineage, step)) is None
    ]


def claim(root: Path, ledger_id: str, manifests: Mapping[tuple[str, int], Mapping[str, str]]) -> None:
    """Mark checkpoints from before the id as those of the ledger that recorded them.

    In a lineage with a checkpoint that the ledger recorded, those without an id are the same ledger's: what a killed
    training left behind. All others stay as they are.

    Args:
        root: Directory of all lineages.
        ledger_id: Of the ledger.
        manifests: (Lineage, step) → file → SHA-256 of each checkpoint that the ledger recorded.
    """
    unclaimed = find_unclaimed(root)
    recorded = {
        (lineage, step)
        for lineage, step in unclaimed
        if (expected := manifests.get((lineage, step), {}).get(METADATA_FILE)) is not None
        and hash_file(checkpoint_dir(root, lineage, step) / METADATA_FILE) == expected
    }
    ours = {lineage for lineage, _ in recorded}
    ours |= {lineage for lineage, _ in unclaimed if steps(root, lineage, ledger_id=ledger_id)}
    for lineage, step in unclaimed:
        if lineage in ours:
            write_ledger_of(checkpoint_dir(root, lineage, step), ledger_id)
            logger.info("claimed checkpoint lineage=%s step=%d", lineage, step)


def reconcile(
    root: Path,
    lineage: str,
    parent_step: int,
    *,
    base: str,
    manifest: Mapping[str, str] | None = None,
    ledger_id: str | None = None,
) -> list[str]:
    """Make the directory agree with the ledger, so that step `parent_step + 1` can be made.

    Args:
        root: Directory of all lineages.
        lineage: The one to train.
        parent_step: Newest step that the caller's ledger holds; 0 is the base.
        base: Digest of the base that the lineage is trained on.
        manifest: File name → SHA-256 of the parent, from the ledger.
        ledger_id: Of the caller's ledger; None: of none, so that only checkpoints without an id are its own.

    Returns:
        Names of the directories removed: unfinished ones and those after the parent.

    Raises:
        DataError: The parent is missing, changed, or was trained on another base.
        ConfigError: A checkpoint of another ledger is in the way. Nothing is removed in either case.
    """
    if parent_step:
        verify(root, lineage, parent_step, base=base, manifest=manifest)
    removed = []
    home = checkpoint_dir(root, lineage, 0).parent
    later = [d for d in sorted(home.glob("*")) if d.is_dir() and d.name.isdecimal() and int(d.name) > parent_step]
    unfinished = sorted(home.glob("*.tmp"))
    for directory in [*later, *(d for d in unfinished if d.stem > f"{parent_step:04d}")]:
        if _is_foreign(directory, ledger_id):
            raise ConfigError(
                f"checkpoint {lineage}@{parent_step + 1} cannot be trained: {str(directory)!r} was not made for this "
                "database, so it is kept; set BABYLON_LINEAGE or BABYLON_HOME to another one, or move that folder away",
                facts={"lineage": lineage, "step": parent_step + 1},
            )
    for after in later:
        # Renamed first, so that a crash halfway leaves no partial checkpoint under a valid name.
        doomed = after.with_suffix(".tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        after.rename(doomed)
    for leftover in sorted(home.glob("*.tmp")):
        if not _is_foreign(leftover, ledger_id):
            shutil.rmtree(leftover)
            removed.append(leftover.stem)
    if removed:
        logger.warning("removed unrecorded checkpoints lineage=%s parent=%d steps=%s", lineage, parent_step, removed)
    return removed


def _is_foreign(directory: Path, ledger_id: str | None) -> bool:
    """Whether another ledger's. What has no id is ours only where no ledger is asked for, or while it is unfinished."""
    owner = read_ledger_of(directory)
    if owner is None:
        return ledger_id is not None and is_finished(directory)
    return owner != ledger_id


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


def write(
    directory: Path, metadata: Mapping[str, Any], fill: Callable[[Path], None], *, ledger_id: str | None = None
) -> dict[str, str]:
    """Write a checkpoint under a name that ends in `.tmp`, force it to disk, then rename it.

    Args:
        directory: Its final place, which must not exist.
        metadata: Content of `checkpoint.json`; the digests of all other files are added.
        fill: Writes those other files into the directory it is given.
        ledger_id: Of the ledger that will record it; None: of none.

    Returns:
        The manifest: file name → SHA-256, the metadata included.
    """
    unfinished = directory.with_suffix(".tmp")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    if ledger_id is not None:
        write_ledger_of(unfinished, ledger_id)
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
