"""Where checkpoints are kept on disk, and which of them are finished.

The layout is ART's own, so its bookkeeping and ours see the same files. What a checkpoint holds is up to the
trainer; this module only checks whether it is finished, that is, has a `checkpoint.json`, and which database's it is.
Which of them count is what the ledger has recorded (`catalog.py`).

The folder may hold checkpoints of another database (a BABYLON_HOME used with a second game). Each carries the id of the
ledger that it was trained for, in a file of its own: equal trainings have equal bytes in all other files.
"""

import re
from pathlib import Path
from typing import Final

PROJECT: Final = "babylon-agents"
METADATA_FILE: Final = "checkpoint.json"
LEDGER_FILE: Final = "ledger_id"
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


def lineages(root: Path) -> list[str]:
    """Lineages with at least one finished checkpoint, by name."""
    models = root / PROJECT / "models"
    if not models.is_dir():
        return []
    return sorted(d.name for d in models.iterdir() if steps(root, d.name))


def _lineage_dir(root: Path, lineage: str) -> Path:
    return root / PROJECT / "models" / lineage / "checkpoints"
