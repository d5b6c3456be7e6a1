"""ART's packed rows, laid out deterministically: the same results give the same tensors, to the last bit.

What belongs here: the place of each sequence in a row, and the scale of weights and advantages; both as in
`art.preprocessing.pack` (0.5.18), which shuffles rows with the process's own `random` and sums in their order.

A row is a common prompt stored once, then the rest of each sequence that starts with it, then the next such family:

    group_ids    P P P P A A A B B C C C …      what a token is part of
    parent_ids   P P P P P P P P P P P P …      what it attends to as well
"""

import math
from collections.abc import Sequence
from typing import Any


def pack_rows(results: Sequence[Any], width: int, pad_id: int) -> dict[str, Any]:
    """Lay tokenised sequences into rows.

    Args:
        results: `art` `TokenizedResult`s, those of a family side by side; none longer than `width`.
        width: Tokens of a row.
        pad_id: Token that fills a row up.

    Returns:
        ART's `PackedTensors`, each [rows, width] (axes as in `cpu_attention.py`). Weights of trainable tokens
        average 1, and so does |advantage| × weight.
    """
    import torch

    rows: list[_Row] = []
    family: dict[int, int] = {}
    trainable = [sum(r.assistant_mask) for r in results]
    total = sum(trainable)
    weight_scale = math.fsum(r.weight * n for r, n in zip(results, trainable, strict=True)) / total
    weights = [r.weight / weight_scale for r in results]
    strength = math.fsum(abs(r.advantage) * w * n for r, w, n in zip(results, weights, trainable, strict=True)) / total
    for i, (result, weight) in enumerate(zip(results, weights, strict=True)):
        parent = family.setdefault(result.prompt_id, -2 - len(family))
        shares_prompt = bool(rows) and parent in rows[-1].parents
        if not rows or len(rows[-1].tokens) + len(result.token_ids) - shares_prompt * result.prompt_length > width:
            rows.append(_Row())
            shares_prompt = False
        rows[-1].add(result, parent, i, weight, result.advantage / strength, skip=shares_prompt * result.prompt_length)

    def stack(name: str, fill: float, dtype: torch.dtype) -> torch.Tensor:
        """[rows, width], each row filled up on the right."""
        lines = [getattr(r, name) for r in rows]
        return torch.tensor([line + [fill] * (width - len(line)) for line in lines], dtype=dtype)

    mask = stack("mask", 0, torch.bool)
    nothing = torch.zeros(mask.shape)
    return {
        "tokens": stack("tokens", pad_id, torch.long),
        "group_ids": stack("groups", -1, torch.long),
        "parent_ids": stack("parents", -1, torch.long),
        "input_pos": stack("positions", 0, torch.long),
        "assistant_mask": mask,
        "logprobs": stack("logprobs", math.nan, torch.float32),
        "advantages": torch.where(mask, stack("advantages", 0.0, torch.float32), nothing),
        "weights": torch.where(mask, stack("weights", 0.0, torch.float32), nothing),
        "pixel_values": [None] * len(rows),
        "image_grid_thw": [None] * len(rows),
    }


class _Row:
    """One row while it is filled: a list per tensor."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.groups: list[int] = []
        self.parents: list[int] = []
        self.positions: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float] = []
        self.advantages: list[float] = []
        self.weights: list[float] = []

    def add(self, r: Any, parent: int, group: int, weight: float, advantage: float, *, skip: int) -> None:
        n = len(r.token_ids) - skip
        self.tokens += r.token_ids[skip:]
        self.groups += [parent] * (r.prompt_length - skip) + [group] * (len(r.token_ids) - r.prompt_length)
        self.parents += [parent] * n
        self.positions += r.input_pos[skip:]
        self.mask += r.assistant_mask[skip:]
        self.logprobs += r.logprobs[skip:]
        self.advantages += [advantage] * n
        self.weights += [weight] * n
