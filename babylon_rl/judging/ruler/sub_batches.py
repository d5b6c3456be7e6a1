"""A group too long for a judge, judged in sub-batches: every member whole, all scores on one scale.

The first sub-batch sets the scale. Its best and its worst member, the anchors, are judged again in every other one;
their scores there map its scale onto the first one's. A sub-batch that is still too long is split again.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

_APART: Final = 0.02  # anchors closer than this are too close to set a scale
_STEEPEST: Final = 4.0  # limits how far noise in the anchors stretches a sub-batch


def sub_batch_size(members: int) -> int:
    """Members of a sub-batch: about half, the first one's two anchors among them; fewer than `members`."""
    return (members + 1) // 2 + 1 if members > 3 else 2


async def score_in_sub_batches(
    order: Sequence[str], run: Callable[[Sequence[str], str], Awaitable[dict[str, float]]]
) -> dict[str, float]:
    """Score members sub-batch by sub-batch.

    Args:
        order: N ≥ 3 ids in random order.
        run: Scores the ids given, as one sub-batch under the slot name given.

    Returns:
        Scores by id in [0, 1], on one scale.
    """
    size = sub_batch_size(len(order))
    first, rest = list(order[:size]), list(order[size:])
    # Slot names are stored with each call and part of its prompt: another name would not find its earlier reply.
    known = await run(first, f"h1of{size}")
    ranked = sorted(first, key=lambda m: (known[m], m))
    anchors = [ranked[0], ranked[-1]] if size > 2 else [ranked[-1]]
    step, n = size - len(anchors), 1
    for start in range(0, len(rest), step):
        n += 1
        fresh = rest[start : start + step]
        batch = await run([*anchors, *fresh], f"h{n}of{size}")
        known |= {m: v for m, v in map_to_scale(batch, known, anchors).items() if m in fresh}
    return rescale_to_unit(known)


def map_to_scale(batch: Mapping[str, float], known: Mapping[str, float], anchors: Sequence[str]) -> dict[str, float]:
    """Read a sub-batch's scores on the scale on which its anchors are known; values may lie outside [0, 1]."""
    measured = [batch[a] for a in anchors]
    expected = [known[a] for a in anchors]
    measured_span, expected_span = measured[-1] - measured[0], expected[-1] - expected[0]
    slope = 1.0
    if measured_span > _APART and expected_span > _APART:
        slope = min(_STEEPEST, max(1 / _STEEPEST, expected_span / measured_span))
    measured_mean, expected_mean = sum(measured) / len(measured), sum(expected) / len(expected)
    return {m: expected_mean + slope * (v - measured_mean) for m, v in batch.items()}


def rescale_to_unit(scores: Mapping[str, float]) -> dict[str, float]:
    """Bring scores that went beyond [0, 1] back, all by one straight line; others stay as they are."""
    low, high = min(0.0, *scores.values()), max(1.0, *scores.values())
    return {m: min(1.0, max(0.0, (v - low) / (high - low))) for m, v in scores.items()}
