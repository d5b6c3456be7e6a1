"""Where checkpoints are kept and how they are named: `babylon-mmo@3` ↔ a directory.

The layout is ART's own, so its bookkeeping and ours see the same files. What a checkpoint holds is up to the
trainer; this module only checks whether it is finished, that is, has a `checkpoint.json`.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from babylon_rl.errors import DataError
from babylon_rl.types import policy_name

PROJECT: Final = "babylon-agents"
METADATA_FILE: Final = "checkpoint.json"
_NAME = re.compile(r"(?P<lineage>[A-Za-z0-9._-]{1,64})(?:@(?P<step>\d{1,9}|latest))?")
_STEP = re.compile(r"\d{4,9}")


def checkpoint_dir(root: Path, lineage: str, step: int) -> Path:
    """Directory of one checkpoint, whether it exists or not. `root` is `Settings.checkpoints_dir`."""
    return _lineage_dir(root, lineage) / f"{step:04d}"


def is_finished(directory: Path) -> bool:
    """Whether a checkpoint was written completely."""
    return (directory / METADATA_FILE).is_file()


def steps(root: Path, lineage: str) -> list[int]:
    """Finished steps of a lineage, ascending; unfinished checkpoints and other directories are skipped."""
    folder = _lineage_dir(root, lineage)
    if not folder.is_dir():
        return []
    return sorted(int(d.name) for d in folder.iterdir() if _STEP.fullmatch(d.name) and is_finished(d))


def latest_step(root: Path, lineage: str) -> int:
    """The last finished step, or 0 (the base policy) where nothing was trained yet."""
    return max(steps(root, lineage), default=0)


def lineages(root: Path) -> list[str]:
    """Lineages with at least one finished checkpoint, by name."""
    models = root / PROJECT / "models"
    if not models.is_dir():
        return []
    return sorted(d.name for d in models.iterdir() if steps(root, d.name))


def resolve(root: Path, name: str, *, known: Collection[str] | None = None) -> tuple[str, int]:
    """Turn a policy's name into its lineage and step.

    Args:
        root: `Settings.checkpoints_dir`.
        name: `babylon-mmo@3`, `babylon-mmo@0` (the base), `babylon-mmo@latest`, or `babylon-mmo` for the latest.
        known: Lineages that may be named before their first checkpoint; None: any.

    Raises:
        DataError: The text is not a policy name, its checkpoint does not exist, or its lineage is not known.
    """
    m = _NAME.fullmatch(name)
    if m is None:
        raise DataError(
            f"{name!r} is not a policy name; expected the form 'babylon-mmo@3', 'babylon-mmo@latest' or 'babylon-mmo'",
            facts={"policy": name},
        )
    lineage, wanted = m["lineage"], m["step"] or "latest"
    latest = latest_step(root, lineage)
    if latest == 0 and known is not None and lineage not in known:
        known_lineages = ", ".join(sorted({*known, *lineages(root)})) or "none"
        raise DataError(
            f"policy {name!r} is unknown: lineage {lineage!r} has no checkpoint; known lineages: {known_lineages}",
            facts={"policy": name},
        )
    step = latest if wanted == "latest" else int(wanted)
    if step and not is_finished(checkpoint_dir(root, lineage, step)):
        raise DataError(
            f"policy {name!r} is unknown: {lineage!r} has no finished checkpoint {step}; "
            f"the latest is {policy_name(lineage, latest)!r}",
            facts={"policy": name, "latest": latest},
        )
    return lineage, step


def _lineage_dir(root: Path, lineage: str) -> Path:
    return root / PROJECT / "models" / lineage / "checkpoints"
