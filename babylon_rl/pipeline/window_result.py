"""The result of one asset on one window: the numbers that every per-window asset shows."""

from dataclasses import dataclass

from babylon_rl.types import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowResult:
    """What one asset did with one window.

    Attributes:
        data_version: Hash of what is kept; equal versions are equal bytes.
        changed: Whether anything was written.
        count: The asset's row count.
        facts: Small numbers for the window's metadata.
    """

    data_version: str
    changed: bool
    count: int
    facts: Json
