"""Where checkpoints are kept and how they are named: `babylon-mmo@3` ↔ a directory.

The layout is ART's own, so its bookkeeping and ours see the same files. What a checkpoint holds is up to the
trainer; this module only checks whether it is finished, that is, has a `checkpoint.json`, and which database's it is.

The folder may hold checkpoints of another database (a BABYLON_HOME used with a second game). Each carries the id of the
ledger that it was trained for, in a file of its own: equal trainings have equal bytes in all other files.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from babylon_rl.errors import DataError
from babylon_rl.types import policy_name

PROJECT: Final = "babylon-agents"
METADATA_FILE: Final = "checkpoint.json"
LEDGER_FILE: Final = "ledger_id"
_NAME = re.compile(r"(?P<lineage>[A-Za-z0-9_-][A-Za-z0-9._-]{0,63})(?:@(?P<step>\d{1,9}|latest))?")
_STEP = re.compile(r"\d{4,9}")


def checkpoint_dir(root: Path, lineage: str, step: int) -> Path:
    """Directory of one checkpoint, whether it exists or not. `root` is `Settings.checkpoints_dir`."""
    return _lineage_dir(root, lineage) / f"{step:04d}"


def is_finished(directory: Path) -> bool:
    """Whether a checkpoint was written completely."""
    return (directory / METADATA_FILE).is_file()


def read_ledger_of(directory: Path) -> str | None:
    """Id of the ledger that a checkpoint was trained for; None for one from before the id, or trained for no ledger."""
    try:
        return (directory / LEDGER_FILE).read_text().strip() or None
    except FileNotFoundError:
        return None


def write_ledger_of(directory: Path, ledger_id: str) -> None:
    """Say that a checkpoint was trained for a ledger."""
    (directory / LEDGER_FILE).write_text(f"{ledger_id}\n")


def steps(root: Path, lineage: str, *, ledger_id: str | None = None) -> list[int]:
    """Finished steps of a lineage, ascending; unfinished checkpoints and other directories are skipped.

    Args:
        root: `Settings.checkpoints_dir`.
        lineage: Name of the lineage.
        ledger_id: Only checkpoints of this ledger count; None: all do.
    """
    folder = _lineage_dir(root, lineage)
    if not folder.is_dir():
        return []
    finished = [d for d in folder.iterdir() if _STEP.fullmatch(d.name) and is_finished(d)]
    return sorted(int(d.name) for d in finished if ledger_id is None or read_ledger_of(d) == ledger_id)


def latest_step(root: Path, lineage: str, *, ledger_id: str | None = None) -> int:
    """The last finished step, or 0 (the base policy) where nothing was trained yet; arguments as of `steps`."""
    return max(steps(root, lineage, ledger_id=ledger_id), default=0)


def lineages(root: Path, *, ledger_id: str | None = None) -> list[str]:
    """Lineages with at least one finished checkpoint, by name; arguments as of `steps`."""
    models = root / PROJECT / "models"
    if not models.is_dir():
        return []
    return sorted(d.name for d in models.iterdir() if steps(root, d.name, ledger_id=ledger_id))


def resolve(
    root: Path, name: str, *, known: Collection[str] | None = None, ledger_id: str | None = None
) -> tuple[str, int]:
    """Turn a policy's name into its lineage and step.

    Args:
        root: `Settings.checkpoints_dir`.
        name: `babylon-mmo@3`, `babylon-mmo@0` (the base), `babylon-mmo@latest`, or `babylon-mmo` for the latest.
        known: Lineages that may be named before their first checkpoint; None: any.
        ledger_id: Only checkpoints of this ledger can be named; None: all can.

    Raises:
        DataError: The text is not a policy name, its checkpoint does not exist or is of another database, or its
            lineage is not known.
    """
    m = _NAME.fullmatch(name)
    if m is None:
        raise DataError(
            f"{name!r} is not a policy name; expected the form 'babylon-mmo@3', 'babylon-mmo@latest' or 'babylon-mmo'",
            facts={"policy": name},
        )
    lineage, wanted = m["lineage"], m["step"] or "latest"
    latest = latest_step(root, lineage, ledger_id=ledger_id)
    if latest == 0 and known is not None and lineage not in known:
        known_lineages = ", ".join(sorted({*known, *lineages(root, ledger_id=ledger_id)})) or "none"
        raise DataError(
            f"policy {name!r} is unknown: lineage {lineage!r} has no checkpoint; known lineages: {known_lineages}",
            facts={"policy": name},
        )
    step = latest if wanted == "latest" else int(wanted)
    if step and step not in steps(root, lineage, ledger_id=ledger_id):
        directory = checkpoint_dir(root, lineage, step)
        if is_finished(directory):
            raise DataError(
                f"policy {name!r} is not of this database: {str(directory)!r} belongs to another one; "
                f"the latest of this one is {policy_name(lineage, latest)!r}",
                facts={"policy": name, "latest": latest},
            )
        raise DataError(
            f"policy {name!r} is unknown: {lineage!r} has no finished checkpoint {step}; "
            f"the latest is {policy_name(lineage, latest)!r}",
            facts={"policy": name, "latest": latest},
        )
    return lineage, step


def _lineage_dir(root: Path, lineage: str) -> Path:
    return root / PROJECT / "models" / lineage / "checkpoints"
