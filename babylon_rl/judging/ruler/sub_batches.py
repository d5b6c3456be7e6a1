"""A group too long for a judge, judged in heats: every heat whole, all on one scale, nobody cut.

The first heat sets the scale. Its best and its worst run again in every other heat, and where they land there says how
that heat's scores read on the first one's scale. A heat that is still too long is run in heats itself.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

_APART: Final = 0.02  # anchors closer than this say nothing about a scale
_STEEPEST: Final = 4.0  # noise between anchors must not blow a heat up

Run = Callable[[Sequence[str], str], Awaitable[dict[str, float]]]


def heat_size(members: int) -> int:
    """How many run in a heat: about half, with the two anchors of the first heat among them; fewer than `members`."""
    return (members + 1) // 2 + 1 if members > 3 else 2


async def in_heats(order: Sequence[str], run: Run) -> dict[str, float]:
    """Score members heat by heat.

    Args:
        order: N ≥ 3 ids in an order that nobody chose.
        run: Scores the ids given, as one heat of the name given.

    Returns:
        Scores by id in [0, 1], on one scale.
    """
    size = heat_size(len(order))
    first, rest = list(order[:size]), list(order[size:])
    known = await run(first, f"h1of{size}")
    ranked = sorted(first, key=lambda m: (known[m], m))
    anchors = [ranked[0], ranked[-1]] if size > 2 else [ranked[-1]]
    step, n = size - len(anchors), 1
    for start in range(0, len(rest), step):
        n += 1
        fresh = rest[start : start + step]
        heat = await run([*anchors, *fresh], f"h{n}of{size}")
        known |= {m: v for m, v in on_scale(heat, known, anchors).items() if m in fresh}
    return into_unit(known)


def on_scale(heat: Mapping[str, float], known: Mapping[str, float], anchors: Sequence[str]) -> dict[str, float]:
    """Read a heat's scores on the scale on which its anchors are known; values may lie outside [0, 1]."""
    here = [heat[a] for a in anchors]
    there = [known[a] for a in anchors]
    low, high = here[0], here[-1]
    slope = 1.0
    if high - low > _APART and there[-1] - there[0] > _APART:
        slope = min(_STEEPEST, max(1 / _STEEPEST, (there[-1] - there[0]) / (high - low)))
    middle_here, middle_there = sum(here) / len(here), sum(there) / len(there)
    return {m: middle_there + slope * (v - middle_here) for m, v in heat.items()}


def into_unit(scores: Mapping[str, float]) -> dict[str, float]:
    """Bring scores that went beyond [0, 1] back, all by one straight line; others stay as they are."""
    low, high = min(0.0, *scores.values()), max(1.0, *scores.values())
    return {m: min(1.0, max(0.0, (v - low) / (high - low))) for m, v in scores.items()}
