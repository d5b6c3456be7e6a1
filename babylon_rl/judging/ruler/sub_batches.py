"""A group too long for a judge, judged in sub-batches: every member whole, all scores on one scale.

The first sub-batch sets the scale. Its best and its worst member, the anchors, are judged again in every other one;
their scores there map its scale onto the first one's. A sub-batch that is still too long is split again.

With several passes each sub-batch is arranged anew, so that who stood early so far stands late (`balance_places`), and
all requests are solved together for what members are worth on the places where they really stood (`combine_sub_batches`).
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from babylon_rl.judging.ruler.order import RIDGE
from babylon_rl.types import Judgment

_APART: Final = 0.02  # anchors closer than this are too close to set a scale
_STEEPEST: Final = 4.0  # limits how far noise in the anchors stretches a sub-batch
# Pull of each sub-batch's scale towards the mean one: few members with nearly equal worth say little about it.
_SCALE_RIDGE: Final = 0.01
_ROUNDS: Final = 20  # scales and worths are solved in turn; the ranks of simulated groups stand after ten


class ShownBatch(NamedTuple):
    """One valid reply: the ids in the order in which its prompt showed them, and its score of each."""

    order: tuple[str, ...]
    scores: Mapping[str, float]


def balanced_key(key: str) -> str:
    """Key of a judgment in balanced sub-batches: the same group judged before they were keeps its own, under `key`."""
    return sha256(f"{key}|balanced sub-batches".encode()).hexdigest()


def is_unbalanced(judgment: Judgment) -> bool:
    """Whether a judgment under its judge's own key was made in several passes over sub-batches, before they were balanced."""
    return judgment.details.get("form") == "heats" and judgment.details.get("passes", 1) > 1


def balance_places(members: Sequence[str], shown: Sequence[ShownBatch], *, key: str) -> list[str]:
    """Arrange a sub-batch: who stood early in the batches shown so far stands late, and nobody where it stood before.

    A hash decides among equals. Who would stand at the same relative place again, such as the middle, changes places with
    the nearest member for whom that is no repetition either.
    """
    stood: dict[str, list[float]] = {m: [] for m in members}
    for batch in shown:
        for place, m in enumerate(batch.order):
            if m in stood:
                stood[m].append(_relative(place, len(batch.order)))
    lateness = {m: round(sum(p - 0.5 for p in places), 6) for m, places in stood.items()}
    order = sorted(members, key=lambda m: (-lateness[m], sha256(f"{key}|{m}".encode()).digest()))

    def is_new(m: str, place: int) -> bool:
        return _relative(place, len(order)) not in stood[m]

    for i, m in enumerate(order):
        if not is_new(m, i):
            nearest = sorted(range(len(order)), key=lambda j, i=i: abs(j - i))  # type: ignore[misc]
            j = next((j for j in nearest if is_new(m, j) and is_new(order[j], i)), i)
            order[i], order[j] = order[j], order[i]
    return order


def _relative(place: int, size: int) -> float:
    return round(place / (size - 1), 6)


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


def combine_sub_batches(shown: Sequence[ShownBatch], passes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One score per member from all sub-batches of several passes, the effect of places removed.

    Each score is read as `level + scale · worth of the member + effect of its place`, with a level and a scale for each
    sub-batch, since a judge stretches what it sees together. Solved by least squares, scales and worths in turn; the
    effects of places and the scales are shrunk a little.

    Args:
        shown: Every reply of every pass.
        passes: Scores by id as each pass alone gives them, where the search begins.

    Returns:
        Scores by id, in [0, 1].
    """
    import numpy as np  # not at the top: the code location imports this module

    names = sorted(passes[0])
    at = {m: i for i, m in enumerate(names)}
    members = [np.array([at[m] for m in b.order]) for b in shown]
    scores = [np.array([b.scores[m] for m in b.order]) for b in shown]
    n, places = len(names), max(map(len, members))
    worth = np.array([sum(p[m] for p in passes) / len(passes) for m in names])
    effect = np.zeros(places)
    shrink = np.hstack([np.zeros((places, n)), np.eye(places) * math.sqrt(RIDGE)])
    for _ in range(_ROUNDS):
        scales = []
        for who, given in zip(members, scores, strict=True):
            x, y = worth[who], given - effect[: len(who)]
            spread = x - x.mean()
            scales.append(float((spread @ (y - y.mean()) + _SCALE_RIDGE) / (spread @ spread + _SCALE_RIDGE)))
        mean_scale = sum(scales) / len(scales)
        scales = [s / mean_scale for s in scales] if mean_scale > _APART else [1.0] * len(shown)
        levels = [
            float((given - effect[: len(who)] - scale * worth[who]).mean())
            for who, given, scale in zip(members, scores, scales, strict=True)
        ]
        rows, wanted = [], []
        for who, given, scale, level in zip(members, scores, scales, levels, strict=True):
            block = np.zeros((len(who), n + places))
            block[np.arange(len(who)), who] = scale
            block[np.arange(len(who)), n + np.arange(len(who))] = 1.0
            rows.append(block)
            wanted.append(given - level)
        solved, *_ = np.linalg.lstsq(
            np.vstack([*rows, shrink]), np.concatenate([*wanted, np.zeros(places)]), rcond=None
        )
        worth, effect = solved[:n], solved[n:]
    return rescale_to_unit({m: float(worth[at[m]]) for m in names})
