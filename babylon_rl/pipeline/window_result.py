"""The result of one asset on one window: the numbers that every per-window asset shows."""

from collections.abc import Mapping
from dataclasses import dataclass

from babylon_rl.common.canonical import digest
from babylon_rl.types import Json
from babylon_rl.windows import HourWindow


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


def combine_scenarios(results: Mapping[HourWindow, WindowResult]) -> WindowResult:
    """What was done with an hour: of one window its result; of several their sums, and the facts of each by name."""
    if len(results) == 1:
        return next(iter(results.values()))
    ordered = sorted(results.items())
    facts: Json = {"windows": len(ordered)} | {str(w): r.facts for w, r in ordered}
    if failed := [f"{w}: {r.facts['failed']}" for w, r in ordered if r.facts.get("failed")]:
        facts["failed"] = "; ".join(failed)
    return WindowResult(
        data_version=digest([r.data_version for _, r in ordered]),
        changed=any(r.changed for _, r in ordered),
        count=sum(r.count for _, r in ordered),
        facts=facts,
    )
