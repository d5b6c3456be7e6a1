"""Observations with shared text written once: as named blocks, to which each observation refers.

Agents of one window look at the same market, so most of what they are shown occurs in many observations. Here every
piece of text (a line, or an item of a one-line JSON list) is joined with its neighbours that occur in exactly the same
observations: that run is a block, written once. A sequence of blocks that repeats is a view: one moment of the market.
What only one agent was shown stays where it was, as text.

Lossless by construction, and checked for each prompt: `observations_in` reads the written lines back, and a prompt whose
observations are not the original ones to the byte is never sent (`prompt.py` then writes the plain form).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

# Every character belongs to exactly one piece: joining the pieces gives the text back.
_ITEM: Final = re.compile(r"(?<=\},)")
_WORTH_CHARS: Final = 20  # a reference costs about as much as this

Item = str | dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Shared text and how each observation refers to it.

    Attributes:
        entries: Blocks (`{"block", "text"}`) and views (`{"view", "blocks"}`), each before its first use.
        seen: Each observation in the order given: text, and references `{"see": name}`.
    """

    entries: tuple[dict[str, Any], ...]
    seen: tuple[tuple[Item, ...], ...]


def timeline_of(texts: Sequence[str]) -> Timeline:
    """Write what many texts share only once.

    Args:
        texts: Observations in time order (by turn, then by member).
    """
    pieces = [_split_pieces(t) for t in texts]
    where: defaultdict[str, set[int]] = defaultdict(set)
    for i, parts in enumerate(pieces):
        for piece in parts:
            where[piece].add(i)
    sets: dict[frozenset[int], int] = {}
    together = {p: sets.setdefault(frozenset(s), len(sets)) if len(s) > 1 else -1 - min(s) for p, s in where.items()}
    runs = [_join_runs(row, together) for row in pieces]
    uses = Counter(text for row in runs for text, shared in row if shared)
    blocks: dict[str, str] = {}
    rows = [_merge_plain_text(_mark_worthwhile(row, uses)) for row in runs]
    stretches = Counter(s for row in rows for s in _collect_stretches(row))
    views: dict[tuple[str, ...], str] = {}
    entries: list[dict[str, Any]] = []

    def name_block(text: str) -> str:
        if text not in blocks:
            blocks[text] = f"b{len(blocks) + 1}"
            entries.append({"block": blocks[text], "text": text})
        return blocks[text]

    def refer(stretch: tuple[str, ...]) -> list[Item]:
        names = [name_block(t) for t in stretch]
        if len(names) < 2 or stretches[stretch] < 2:
            return [{"see": n} for n in names]
        if stretch not in views:
            views[stretch] = f"v{len(views) + 1}"
            entries.append({"view": views[stretch], "blocks": names})
        return [{"see": views[stretch]}]

    seen: list[tuple[Item, ...]] = []
    for line in rows:
        items: list[Item] = []
        stretch: list[str] = []
        for text, shared in [*line, ("", False)]:
            if shared:
                stretch.append(text)
                continue
            if stretch:
                items += refer(tuple(stretch))
                stretch = []
            if text:
                items.append(text)
        seen.append(tuple(items))
    return Timeline(entries=tuple(entries), seen=tuple(seen))


def observations_in(entries: Iterable[dict[str, Any]], seen: Iterable[Sequence[Item] | str]) -> list[str]:
    """Undo `timeline_of` from what was written: the observations, to the byte.

    Raises:
        KeyError: A reference names no earlier entry.
    """
    text_by_name: dict[str, str] = {}
    for e in entries:
        if "block" in e:
            text_by_name[e["block"]] = e["text"]
        else:
            text_by_name[e["view"]] = "".join(text_by_name[b] for b in e["blocks"])
    return [
        row if isinstance(row, str) else "".join(i if isinstance(i, str) else text_by_name[i["see"]] for i in row)
        for row in seen
    ]


def _split_pieces(text: str) -> list[str]:
    lines = text.splitlines(keepends=True)
    return lines if "}," not in text else [piece for line in lines for piece in _ITEM.split(line) if piece]


def _join_runs(row: Sequence[str], together: dict[str, int]) -> list[tuple[str, bool]]:
    """Join neighbouring pieces that occur in the same observations; with each run, whether others were shown it too."""
    runs: list[tuple[str, bool]] = []
    last: int | None = None
    for piece in row:
        sign = together[piece]
        if sign == last:
            runs[-1] = (runs[-1][0] + piece, runs[-1][1])
        else:
            runs.append((piece, sign >= 0))
        last = sign
    return runs


def _mark_worthwhile(row: Sequence[tuple[str, bool]], uses: Counter[str]) -> Iterable[tuple[str, bool]]:
    """Mark what is worth a reference: text that is long enough, or that joins such neighbours into one view."""
    long = [shared and uses[text] > 1 and len(text) >= _WORTH_CHARS for text, shared in row]
    for i, (text, shared) in enumerate(row):
        yield text, long[i] or (shared and uses[text] > 1 and any(long[max(0, i - 1) : i + 2]))


def _merge_plain_text(row: Iterable[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Join text that is not worth a reference with its neighbours."""
    merged: list[tuple[str, bool]] = []
    for text, shared in row:
        if merged and not shared and not merged[-1][1]:
            merged[-1] = (merged[-1][0] + text, False)
        else:
            merged.append((text, shared))
    return merged


def _collect_stretches(row: Iterable[tuple[str, bool]]) -> list[tuple[str, ...]]:
    stretches: list[tuple[str, ...]] = []
    now: list[str] = []
    for text, shared in [*row, ("", False)]:
        if shared:
            now.append(text)
        elif now:
            stretches.append(tuple(now))
            now = []
    return stretches
