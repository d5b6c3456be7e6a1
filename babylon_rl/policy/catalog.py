"""Which checkpoints may be served: those that the ledger has recorded, with the weights that it recorded.

What belongs here: a policy's name → its folder and the digest of its files. A finished folder that no ledger knows, as a
killed training leaves it, has no name here. Loading weights is `model.py`; keeping them loaded is `engine.py`.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from babylon_rl.common.canonical import digest
from babylon_rl.common.files import hash_file
from babylon_rl.errors import DataError
from babylon_rl.policy.checkpoints import checkpoint_dir
from babylon_rl.store.ledger_identity import RecordedCheckpoint, read_recorded
from babylon_rl.types import policy_name

_NAME: Final = re.compile(r"(?P<lineage>[A-Za-z0-9_-][A-Za-z0-9._-]{0,63})(?:@(?P<step>\d{1,9}|latest))?")
_LOADED: Final = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServablePolicy:
    """The base, or one recorded checkpoint.

    Attributes:
        name: `babylon-mmo@3`.
        directory: Of its adapter; None: the base itself.
        digest: Of its recorded manifest: the same step made again has another one. Empty for the base.
        files: (Name, SHA-256) of each file that is loaded, as recorded.
    """

    name: str
    directory: Path | None = None
    digest: str = ""
    files: tuple[tuple[str, str], ...] = ()

    def check_files(self) -> None:
        """Compare what lies on disk with what was recorded.

        Raises:
            DataError: A file is missing, or differs.
        """
        if self.directory is None:
            return
        if not self.directory.is_dir():
            raise DataError(
                f"checkpoint {self.name!r} is recorded, but {str(self.directory)!r} does not exist; restore it from a copy",
                facts={"policy": self.name},
            )
        recorded = dict(self.files)
        for name in _LOADED:
            path = self.directory / name
            found = hash_file(path) if path.is_file() else None
            if found is None or found != recorded.get(name):
                raise DataError(
                    f"checkpoint {self.name!r}: {name} in {str(self.directory)!r} is not the one that was recorded "
                    f"(SHA-256 {'missing' if found is None else found[:12]}, expected {str(recorded.get(name))[:12]}); "
                    "restore the folder from a copy",
                    facts={"policy": self.name, "file": name},
                )


def servable_policy(root: Path, recorded: RecordedCheckpoint) -> ServablePolicy:
    """What is served of a recorded checkpoint whose weights are kept here. `root` is `Settings.checkpoints_dir`."""
    return ServablePolicy(
        name=policy_name(recorded.lineage, recorded.step),
        directory=checkpoint_dir(root, recorded.lineage, recorded.step),
        digest=digest(dict(recorded.manifest)),
        files=tuple(sorted(recorded.manifest.items())),
    )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the ledger had recorded at one moment, and the lineage that may be named before its first checkpoint."""

    root: Path
    lineage: str
    recorded: Sequence[RecordedCheckpoint]

    def resolve(self, name: str) -> ServablePolicy:
        """Turn a policy's name into what is served.

        Args:
            name: `babylon-mmo@3`, `babylon-mmo@0` (the base), `babylon-mmo@latest`, or `babylon-mmo` for the latest.

        Raises:
            DataError: The text is not a policy name, its checkpoint is not recorded, or its weights are kept elsewhere.
        """
        m = _NAME.fullmatch(name)
        if m is None:
            raise DataError(
                f"{name!r} is not a policy name; expected the form 'babylon-mmo@3', 'babylon-mmo@latest' or 'babylon-mmo'",
                facts={"policy": name},
            )
        lineage, wanted = m["lineage"], m["step"] or "latest"
        steps = {r.step: r for r in self.recorded if r.lineage == lineage}
        if not steps and lineage != self.lineage:
            known = ", ".join(sorted({self.lineage, *(r.lineage for r in self.recorded)}))
            raise DataError(
                f"policy {name!r} is unknown: lineage {lineage!r} has no checkpoint; known lineages: {known}",
                facts={"policy": name},
            )
        latest = max(steps, default=0)
        step = latest if wanted == "latest" else int(wanted)
        if step == 0:
            return ServablePolicy(name=policy_name(lineage, 0))
        if step not in steps:
            raise DataError(
                f"policy {name!r} is unknown: the ledger has recorded no checkpoint {step} of {lineage!r}; "
                f"the latest is {policy_name(lineage, latest)!r}",
                facts={"policy": name, "latest": latest},
            )
        found = steps[step]
        if not found.manifest:
            raise DataError(
                f"policy {name!r} is not served here: its trainer keeps the weights, under {found.path!r}; ask it there",
                facts={"policy": name},
            )
        return servable_policy(self.root, found)

    def names(self) -> list[tuple[str, datetime | None]]:
        """Every name that is served, with the instant its checkpoint was trained; the base has none."""
        named: list[tuple[str, datetime | None]] = []
        for lineage in sorted({self.lineage, *(r.lineage for r in self.recorded)}):
            named.append((policy_name(lineage, 0), None))
            named += [
                (policy_name(lineage, r.step), r.trained_at)
                for r in self.recorded
                if r.lineage == lineage and r.manifest
            ]
        return named


class Catalog:
    """Reads the ledger for many callers on one event loop.

    A caller sees what was recorded when it asked, or later. Those that ask while a reading is under way share the next.
    """

    def __init__(self, engine: sa.Engine, root: Path, lineage: str) -> None:
        self._engine, self._root, self._lineage = engine, root, lineage
        self._running: asyncio.Task[Snapshot] | None = None
        self._next: asyncio.Task[Snapshot] | None = None

    async def read(self) -> Snapshot:
        """What is recorded now.

        Raises:
            sqlalchemy.exc.DBAPIError: The database cannot be asked.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._read_after(self._running))
        return await asyncio.shield(self._next)

    async def _read_after(self, before: "asyncio.Task[Snapshot] | None") -> Snapshot:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        recorded = await asyncio.to_thread(read_recorded, self._engine)
        return Snapshot(self._root, self._lineage, recorded)
