"""Attention over packed rows that computes visible pairs only: each prompt on itself, each answer on its prompt and itself.

What belongs here: the layout of a minibatch and the attention function transformers calls. Rows of a minibatch become
one line of tokens without padding. A full mask over a row of 640 tokens computes about four times as many pairs as are
visible, and was half the cost of a training step.

Axes, here and in `cpu_service.py` and `packing.py`: `rows` packed rows of a minibatch, `width` tokens of a row with its
padding, `line` tokens of all rows without padding; `prompts` common prompts of at most `prompt` tokens each, `rests`
their continuations of at most `rest` tokens each; `trained` tokens that train; `vocab` token ids.
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
    """Positions of the parts in a line of packed tokens.

    Attributes:
        prompts: [prompts, prompt] int64 positions of each prompt's tokens in the line, padded with 0.
        rests: [rests, rest] int64 the same for each rest.
        prompt_of_rest: [rests] int64 the prompt that each rest continues.
        visible: [rests, 1, rest, prompt + rest] bool what each rest's tokens attend to.
        restore: [line] int64 index of each token among the flattened prompts, then rests.
    """

    prompts: Tensor
    rests: Tensor
    prompt_of_rest: Tensor
    visible: Tensor
    restore: Tensor


def use_packed_attention(model: Any) -> Any:
    """Make a transformers model attend by a `packed_layout`, an argument of every forward pass from then on."""
    model.set_attn_implementation(_NAME)
    return model


def build_layout(group_ids: Tensor, parent_ids: Tensor, lengths: Tensor) -> PackedLayout:
    """Compute the layout from ART's ids.

    Args:
        group_ids: [rows, width] int64; tokens of one part are side by side and share an id.
        parent_ids: [rows, width] int64; the id of the part that they attend to as well; a common prompt has its own.
        lengths: [rows] int64; tokens of each row that are not padding.
    """
    prompts: list[range] = [range(0)]  # the first is empty: the prompt of rests that have none
    rests: list[range] = []
    prompt_of_rest: list[int] = []
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
                prompt_of_rest.append(known.get(parents[begin], 0))
            begin = i
        start += length
    p, s = max(map(len, prompts)), max(map(len, rests), default=0)
    seen = torch.tensor([len(prompts[i]) for i in prompt_of_rest])[:, None] > torch.arange(p)  # [rests, prompt]
    own = torch.ones(s, s, dtype=torch.bool).tril()  # [rest, rest]
    visible = torch.cat([seen[:, None].expand(-1, s, -1), own.expand(len(rests), -1, -1)], 2)[:, None]
    restore = torch.empty(start, dtype=torch.long)
    for i, part in enumerate(prompts):
        restore[part.start : part.stop] = torch.arange(len(part)) + i * p
    for i, part in enumerate(rests):
        restore[part.start : part.stop] = torch.arange(len(part)) + len(prompts) * p + i * s
    return PackedLayout(
        _pad_positions(prompts, p), _pad_positions(rests, s), torch.tensor(prompt_of_rest), visible, restore
    )


def _pad_positions(parts: list[range], width: int) -> Tensor:
    """[parts, width] int64: each part's positions in the line, then 0."""
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
    """Query, key and value [1, heads, line, head width] → [1, line, heads, head width], all float32."""
    layout = packed_layout
    heads, width = query.shape[1], query.shape[3]

    def pick(tensor: Tensor, positions: Tensor) -> Tensor:
        """Positions [parts, tokens] of a line → [parts, heads, tokens, head width]."""
        picked = tensor[0].transpose(0, 1).index_select(0, positions.flatten())  # [parts * tokens, heads, head width]
        return picked.view(*positions.shape, heads, width).transpose(1, 2)

    repeats = getattr(module, "num_key_value_groups", 1)
    if repeats > 1:
        key, value = (t.repeat_interleave(repeats, 1) for t in (key, value))
    k, v = pick(key, layout.prompts), pick(value, layout.prompts)
    prompts = F.scaled_dot_product_attention(pick(query, layout.prompts), k, v, is_causal=True, scale=scaling)
    rests = F.scaled_dot_product_attention(
        pick(query, layout.rests),
        torch.cat([k.index_select(0, layout.prompt_of_rest), pick(key, layout.rests)], 2),  # [.., prompt + rest, ..]
        torch.cat([v.index_select(0, layout.prompt_of_rest), pick(value, layout.rests)], 2),
        attn_mask=layout.visible,
        scale=scaling,
    )
    # [prompts * prompt + rests * rest, heads, head width], back into the order of the line
    out = torch.cat([t.transpose(1, 2).reshape(-1, heads, width) for t in (prompts, rests)])
    return out.index_select(0, layout.restore)[None], None


AttentionInterface.register(_NAME, _attend)
