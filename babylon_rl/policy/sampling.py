"""Batched sampling with a KV cache: many prompts at once, each with its own temperature and seed.

What belongs here: ids in, ids and log-probabilities out. Who asks, and how requests come to be in one batch,
is `engine.py`; text is `prompting.py`.

A comment beside each tensor gives its axes and type: `rows` requests in the batch, `slots` places in the KV cache
(padding, prompt, answer so far), `new` tokens fed at once, `vocab` token ids, `width` of the hidden state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from transformers import Cache

from babylon_rl.errors import DataError
from babylon_rl.policy.compat import undo_art_patch
from babylon_rl.policy.model import LoadedPolicy

MAX_ROWS_PER_BATCH: Final = 128  # rows decoded together: above it the KV cache leaves the processor's own caches
MAX_PROMPTS_PER_PREFILL: Final = 32  # prompts that share one prefill at most
MIN_COMMON_FRACTION: Final = 0.6  # of a prompt that must be common before it joins a block
HIDDEN_BIAS: Final = torch.finfo(torch.float32).min  # not -inf: a row that sees nothing (padding) must not become NaN
COMPACT_AT_FRACTION: Final = 0.75  # finished rows are dropped from the batch once so few are left


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """One answer wanted.

    Attributes:
        temperature: 0 means greedy.
        seed: Any integer. With the prompt and temperature it decides the answer, whoever shares the batch.
        max_tokens: Length limit of the answer, its end token included; at least 1.
    """

    prompt_ids: Sequence[int]
    temperature: float
    seed: int
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One answer.

    Attributes:
        token_ids: The answer, with its end token when it ended by itself.
        logprobs: Of each token under the distribution it was drawn from, `log softmax(logits / temperature)`.
            A greedy token was drawn from none; its figure is that of temperature 1.
        finish_reason: `stop` when it ended by itself, `length` at `max_tokens`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]


def sample(policy: LoadedPolicy, requests: Sequence[SampleRequest]) -> list[Sampled]:
    """Answer all requests, in their order.

    Prompts that begin alike (agents of one window see the same market) are prefilled once up to where they
    part, and the cache is repeated. Draws are inverse-CDF on uniforms of a counter-based generator of the
    request's own seed, so an answer depends on its batch only through float rounding.

    Raises:
        DataError: A prompt is empty or leaves no room for an answer, or a limit or temperature makes no sense.
    """
    for i, r in enumerate(requests):
        room = policy.context - len(r.prompt_ids)
        if not r.prompt_ids or r.max_tokens < 1 or r.max_tokens > room or not 0 <= r.temperature < float("inf"):
            raise DataError(
                f"sample request {i} has {len(r.prompt_ids)} prompt tokens, max_tokens {r.max_tokens} and temperature "
                f"{r.temperature}; expected at least 1 token each, {policy.context} together at most, and a "
                "temperature of 0 or more: shorten the prompt or lower max_tokens"
            )
    undo_art_patch()
    answers: dict[int, Sampled] = {}
    for chunk in _chunks(_blocks([r.prompt_ids for r in requests])):
        answers.update(_Batch(policy, requests, chunk).run())
    return [answers[i] for i in range(len(requests))]


@dataclass(slots=True)
class _Block:
    """Requests (by index) whose prompts agree in the first `common` tokens; each has more than that."""

    members: list[int]
    common: int


def _blocks(prompts: list[Sequence[int]]) -> list[_Block]:
    """Sort prompts so that like follows like, and join neighbours with a long common start."""
    blocks: list[_Block] = []
    for i in sorted(range(len(prompts)), key=lambda i: list(prompts[i])):
        mine = prompts[i]
        if blocks and len(blocks[-1].members) < MAX_PROMPTS_PER_PREFILL:
            first, top = prompts[blocks[-1].members[0]], min(blocks[-1].common, len(mine) - 1)
            n = next((k for k in range(top) if first[k] != mine[k]), top)
            if n >= MIN_COMMON_FRACTION * len(mine):
                blocks[-1].members.append(i)
                blocks[-1].common = n
                continue
        blocks.append(_Block([i], len(mine) - 1))
    return sorted(blocks, key=lambda b: b.common)


def _chunks(blocks: list[_Block]) -> list[list[_Block]]:
    """Fill batches of about `MAX_ROWS_PER_BATCH` rows with blocks of like length."""
    chunks: list[list[_Block]] = []
    rows = 0
    for b in blocks:
        if not chunks or rows + len(b.members) > MAX_ROWS_PER_BATCH:
            chunks.append([])
            rows = 0
        chunks[-1].append(b)
        rows += len(b.members)
    return chunks


class _Rows(Cache):  # type: ignore[misc]  # transformers is untyped to us
    """Keys and values of all rows, [rows, heads, slots, head width] float32 each, in buffers allocated once.

    Attention sees only the part that is filled.
    """

    def __init__(self, size: int) -> None:
        super().__init__(layers=[])
        self.size = size
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self.filled = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, heads, new, width = key_states.shape  # `value_states` alike
        if layer_idx == len(self._keys):
            self._keys.append(key_states.new_empty(rows, heads, self.size, width))
            self._values.append(value_states.new_empty(rows, heads, self.size, width))
        end = self.filled + new
        self._keys[layer_idx][:, :, self.filled : end] = key_states
        self._values[layer_idx][:, :, self.filled : end] = value_states
        return self._keys[layer_idx][:, :, :end], self._values[layer_idx][:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.filled

    def pick(self, rows: torch.Tensor, size: int) -> "_Rows":
        """A cache of `size` slots with the given `rows` [kept rows] int64 of this one, repeated or left out."""
        other = _Rows(size)
        other.filled = self.filled
        for mine, theirs in ((self._keys, other._keys), (self._values, other._values)):
            for t in mine:
                buffer = t.new_empty(len(rows), t.shape[1], size, t.shape[3])
                buffer[:, :, : self.filled] = t[rows, :, : self.filled]
                theirs.append(buffer)
        return other


class _Batch:
    """One batch: prefill what blocks share, repeat it, prefill what is each row's own, decode."""

    def __init__(self, policy: LoadedPolicy, requests: Sequence[SampleRequest], blocks: list[_Block]) -> None:
        self._model = policy.model
        self._decoder = policy.model.get_decoder()
        self._head = policy.model.get_output_embeddings()
        self._device = policy.model.device
        self._pad = policy.tokenizer.pad_token_id
        self._end = policy.tokenizer.eos_token_id
        self._blocks = blocks
        self._indices = [i for b in blocks for i in b.members]
        self._requests = [requests[i] for i in self._indices]

    @torch.inference_mode()
    def run(self) -> dict[int, Sampled]:
        """Answers by the request's index."""
        asked = self._requests
        longest = max(r.max_tokens for r in asked)
        cache, seen, hidden = self._prefill(longest)
        tokens = torch.full((len(asked), longest), self._pad, device=self._device)  # [requests, longest] int64
        logprobs = torch.zeros(len(asked), longest, device=self._device)  # [requests, longest] float32
        # These follow the rows still in the batch; `rows` says which requests they are.
        rows = torch.arange(len(asked), device=self._device)  # [rows] int64
        going = torch.ones(len(asked), dtype=torch.bool, device=self._device)  # [rows] bool
        # [rows, longest] float64
        uniforms = torch.from_numpy(np.stack([_uniforms(r.seed, longest) for r in asked])).to(self._device)
        temperatures = torch.tensor([r.temperature for r in asked], device=self._device)  # [rows] float32
        limits = torch.tensor([r.max_tokens for r in asked], device=self._device)  # [rows] int64
        positions = (seen == 0).sum(1)  # [rows] int64: where the next token stands
        for step in range(longest):
            token, logprob = _draw(self._head(hidden).float(), temperatures, uniforms[:, step])
            tokens[rows[going], step] = token[going]
            logprobs[rows[going], step] = logprob[going]
            going &= (token != self._end) & (limits > step + 1)
            left = int(going.sum())
            if left == 0:
                break
            if left <= COMPACT_AT_FRACTION * len(rows):
                kept = going.nonzero()[:, 0]  # [kept rows] int64
                rows, going, uniforms, temperatures, limits, positions, token, seen = (
                    t[kept] for t in (rows, going, uniforms, temperatures, limits, positions, token, seen)
                )
                cache = cache.pick(kept, cache.size)
            seen = F.pad(seen, (0, 1))  # the new token is seen
            hidden = self._forward(token[:, None], positions[:, None] + step, seen[:, None, None], cache)
        return {i: self._answer(tokens[k], logprobs[k], asked[k]) for k, i in enumerate(self._indices)}

    def _prefill(self, longest: int) -> tuple[_Rows, torch.Tensor, torch.Tensor]:
        """Read all prompts. Padding is on the left of both parts.

        Returns:
            The cache; what each row sees of it, [rows, slots] float32, additive: 0, or a number so low that softmax
            forgets it; and the hidden state of each last token, [rows, width] float32.
        """
        prompts = [r.prompt_ids for r in self._requests]
        common = [b.common for b in self._blocks for _ in b.members]
        owner = torch.tensor([g for g, b in enumerate(self._blocks) for _ in b.members], device=self._device)  # [rows]
        heads = [prompts[owner.tolist().index(g)][: b.common] for g, b in enumerate(self._blocks)]
        tails = [p[n:] for p, n in zip(prompts, common, strict=True)]
        head_ids, head_seen = self._left_padded(heads)  # [blocks, head slots]
        tail_ids, tail_seen = self._left_padded(tails)  # [rows, tail slots]
        size = head_ids.shape[1] + tail_ids.shape[1] + longest

        cache = _Rows(head_ids.shape[1])
        if head_ids.shape[1]:
            self._forward(head_ids, _positions(head_seen), _causal(head_seen, head_ids.shape[1]), cache)
        cache = cache.pick(owner, size)
        seen = torch.cat([head_seen[owner], tail_seen], 1)  # [rows, slots so far]
        positions = _positions(seen)[:, head_ids.shape[1] :]  # [rows, tail slots]
        hidden = self._forward(tail_ids, positions, _causal(seen, tail_ids.shape[1]), cache)
        return cache, seen, hidden

    def _left_padded(self, parts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids int64 and what is seen float32, both [parts, longest part]."""
        width = max(map(len, parts))
        ids = torch.full((len(parts), width), self._pad)
        seen = torch.full((len(parts), width), HIDDEN_BIAS)
        for row, part in enumerate(parts):
            ids[row, width - len(part) :] = torch.tensor(part, dtype=torch.long)
            seen[row, width - len(part) :] = 0.0
        return ids.to(self._device), seen.to(self._device)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: _Rows) -> torch.Tensor:
        """Feed ids and positions [rows, new] under mask [rows, 1, new, slots]; the last hidden state [rows, width]."""
        out = self._decoder(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        )
        cache.filled += ids.shape[1]
        last: torch.Tensor = out.last_hidden_state[:, -1]
        return last

    def _answer(self, tokens: torch.Tensor, logprobs: torch.Tensor, request: SampleRequest) -> Sampled:
        """Cut one request's tokens and log-probs, [longest] each, at its end token or its limit."""
        ids = tokens[: request.max_tokens].tolist()
        ended = self._end in ids
        n = ids.index(self._end) + 1 if ended else request.max_tokens
        return Sampled(
            token_ids=tuple(ids[:n]),
            logprobs=tuple(logprobs[:n].tolist()),
            finish_reason="stop" if ended else "length",
        )


def _positions(seen: torch.Tensor) -> torch.Tensor:
    """Where each slot of `seen` [rows, slots] stands in its row, padding not counted: [rows, slots] int64."""
    return ((seen == 0).cumsum(1) - 1).clamp(min=0)


def _causal(seen: torch.Tensor, new: int) -> torch.Tensor:
    """Additive mask [rows, 1, new, slots] float32: the last `new` slots look at the seen slots up to themselves."""
    length = seen.shape[1]
    later = torch.ones(new, length, dtype=torch.bool, device=seen.device).triu(length - new + 1)  # [new, slots]
    return seen[:, None, None].masked_fill(later, HIDDEN_BIAS)


def _uniforms(seed: int, n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """`n` numbers in [0, 1) that follow from the seed alone."""
    return np.random.Generator(np.random.Philox(key=seed % 2**128)).random(n)


def _draw(
    logits: torch.Tensor, temperatures: torch.Tensor, uniforms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row of logits [rows, vocab] and its log-probability (see `Sampled`), [rows] each.

    `temperatures` and `uniforms` are [rows].
    """
    greedy = temperatures == 0  # [rows] bool
    logp = F.log_softmax(logits / torch.where(greedy, 1.0, temperatures)[:, None], -1)  # [rows, vocab]
    token = logp.argmax(-1)  # [rows] int64
    if not bool(greedy.all()):
        mass = logp.double().exp().cumsum(-1)  # [rows, vocab] float64: the distribution function
        drawn = torch.searchsorted(mass, uniforms[:, None] * mass[:, -1:], right=True)[:, 0]
        token = torch.where(greedy, token, drawn.clamp(max=logits.shape[-1] - 1))
    return token, logp.gather(1, token[:, None])[:, 0]
