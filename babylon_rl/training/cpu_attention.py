"""Attention over packed rows that computes only what is seen: each prompt on itself, each answer on its prompt and itself.

What belongs here: the layout of a minibatch and the attention function transformers calls. Rows of a minibatch become
one line of tokens without padding. A full mask over a row of 640 tokens computes about four times as many pairs as are
visible, and was half the cost of a training step.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch  # noqa: TID253  imported by cpu_service.py only
import torch.nn.functional as F  # noqa: N812, TID253  torch's own habit
from torch import Tensor  # noqa: TID253
from transformers import AttentionInterface  # noqa: TID253

_NAME: Final = "babylon_packed"


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where the parts of T packed tokens lie. F common prompts of at most P tokens, S rests of at most L tokens.

    Attributes:
        prompts: [F, P] positions of each prompt's tokens in the line, padded with 0.
        rests: [S, L] the same for each rest.
        family: [S] the prompt that each rest hangs from.
        visible: [S, 1, L, P + L] what each rest's tokens see.
        back: [T] where each token lies among the flattened prompts, then rests.
    """

    prompts: Tensor
    rests: Tensor
    family: Tensor
    visible: Tensor
    back: Tensor


def use_packed_attention(model: Any) -> Any:
    """Make a transformers model attend by `packed_layout`, which every forward pass then needs; returns the model."""
    model.set_attn_implementation(_NAME)
    return model


def build_layout(group_ids: Tensor, parent_ids: Tensor, lengths: Tensor) -> PackedLayout:
    """Read the layout out of ART's ids.

    Args:
        group_ids: [R, width]; tokens of one part are side by side and share an id.
        parent_ids: [R, width]; the id of the part they see besides; a common prompt has its own.
        lengths: [R] tokens of each row that are not padding.
    """
    prompts: list[range] = [range(0)]  # the first is empty: what hangs from no prompt hangs from it
    rests: list[range] = []
    family: list[int] = []
    start = 0
    for ids, parents, length in zip(group_ids.tolist(), parent_ids.tolist(), lengths.tolist(), strict=True):
        known: dict[int, int] = {}
        begin = 0
        for i in range(1, length + 1):
            if i < length and ids[i] == ids[begin]:
                continue
            part = range(start + begin, start + i)
            if ids[begin] == parents[begin]:
                known[ids[begin]] = len(prompts)
                prompts.append(part)
            else:
                rests.append(part)
                family.append(known.get(parents[begin], 0))
            begin = i
        start += length
    p, s = max(map(len, prompts)), max(map(len, rests), default=0)
    seen = torch.tensor([len(prompts[f]) for f in family])[:, None] > torch.arange(p)
    own = torch.ones(s, s, dtype=torch.bool).tril()
    visible = torch.cat([seen[:, None].expand(-1, s, -1), own.expand(len(rests), -1, -1)], 2)[:, None]
    back = torch.empty(start, dtype=torch.long)
    for i, part in enumerate(prompts):
        back[part.start : part.stop] = torch.arange(len(part)) + i * p
    for i, part in enumerate(rests):
        back[part.start : part.stop] = torch.arange(len(part)) + len(prompts) * p + i * s
    return PackedLayout(_positions(prompts, p), _positions(rests, s), torch.tensor(family), visible, back)


def _positions(parts: list[range], width: int) -> Tensor:
    return torch.tensor([[*part] + [0] * (width - len(part)) for part in parts], dtype=torch.long).view(-1, width)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packed_layout: PackedLayout,
    **_: Any,
) -> tuple[Tensor, None]:
    """Query, key and value [1, heads, T, d] of one line → [1, T, heads, d]."""
    x = packed_layout
    heads, width = query.shape[1], query.shape[3]

    def parts(tensor: Tensor, positions: Tensor) -> Tensor:  # [n, heads, m, d]
        picked = tensor[0].transpose(0, 1).index_select(0, positions.flatten())
        return picked.view(*positions.shape, heads, width).transpose(1, 2)

    repeats = getattr(module, "num_key_value_groups", 1)
    if repeats > 1:
        key, value = (t.repeat_interleave(repeats, 1) for t in (key, value))
    k, v = parts(key, x.prompts), parts(value, x.prompts)
    prompts = F.scaled_dot_product_attention(parts(query, x.prompts), k, v, is_causal=True, scale=scaling)
    rests = F.scaled_dot_product_attention(
        parts(query, x.rests),
        torch.cat([k.index_select(0, x.family), parts(key, x.rests)], 2),
        torch.cat([v.index_select(0, x.family), parts(value, x.rests)], 2),
        attn_mask=x.visible,
        scale=scaling,
    )
    out = torch.cat([t.transpose(1, 2).reshape(-1, heads, width) for t in (prompts, rests)])
    return out.index_select(0, x.back)[None], None


AttentionInterface.register(_NAME, _attend)
