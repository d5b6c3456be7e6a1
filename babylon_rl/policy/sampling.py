"""Batched sampling with a KV cache: many prompts at once, each with its own temperature and seed.

What belongs here: ids in, ids and log-probabilities out. How requests arrive and are batched is `engine.py`; text is
`prompting.py`.

A comment beside each tensor gives its axes and type: `rows` requests in the batch, `slots` places in the KV cache
(padding, prompt, answer so far), `new` tokens fed at once, `vocab` token ids, `width` of the hidden state.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from transformers import Cache

from babylon_rl.errors import DataError
from babylon_rl.policy.compat import undo_art_patch
from babylon_rl.policy.model import LoadedPolicy

MAX_ROWS_PER_BATCH: Final = 128  # rows decoded together: above it the KV cache no longer fits the processor's caches
MAX_PROMPTS_PER_PREFILL: Final = 32  # most prompts that share one prefill
MIN_COMMON_FRACTION: Final = 0.6  # of a prompt's tokens that must be common before it joins a block
GREEDY_BELOW: Final = 1e-6  # logits divided by 1e-38 are no numbers, and at 1e-6 the best token has all the probability
HIDDEN_BIAS: Final = torch.finfo(torch.float32).min  # not -inf: padding attends to nothing, and softmax would give NaN
COMPACT_AT_FRACTION: Final = 0.75  # finished rows are dropped from the batch once so few are left


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """A request for one answer.

    Attributes:
        temperature: 0 means greedy, and so does anything below `GREEDY_BELOW`.
        seed: Any integer. With the prompt and temperature it decides the answer, whatever else is in the batch.
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
        token_ids: The answer, with the end token if the model produced one.
        logprobs: Of each token under the distribution it was drawn from, `log softmax(logits / temperature)`.
            For greedy tokens, which are not drawn: at temperature 1.
        finish_reason: `stop` after an end token, `length` at `max_tokens`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]


TokenListener = Callable[[Mapping[int, tuple[int, float]]], Collection[int]]
"""Told of each step: request → (token id, log-prob) just drawn. Returns requests whose answers nobody waits for any more."""


def sample(
    policy: LoadedPolicy, requests: Sequence[SampleRequest], *, on_tokens: TokenListener | None = None
) -> list[Sampled]:
    """Answer all requests, in their order.

    Prompts with a common prefix (agents of one window see the same market) share its prefill; the cache is then
    repeated for each. Tokens are drawn by inverse CDF from uniforms of a counter-based generator with the request's
    own seed, so an answer depends on its batch only through float rounding.

    Args:
        policy: Which model answers.
        requests: By index; that is how `on_tokens` names them.
        on_tokens: Told of each token as it is drawn. The answer of a request that it gives up has no meaning.

    Raises:
        DataError: A prompt is empty or leaves no room for an answer, or a limit or temperature is out of range.
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
    for chunk in _split_into_batches(_group_by_prefix([r.prompt_ids for r in requests])):
        answers.update(_Batch(policy, requests, chunk).run(on_tokens))
    return [answers[i] for i in range(len(requests))]


@dataclass(slots=True)
class _Block:
    """Requests (by index) whose prompts agree in the first `common` tokens; each has more than that."""

    members: list[int]
    common: int


def _group_by_prefix(prompts: list[Sequence[int]]) -> list[_Block]:
    """Sort prompts, and join neighbours with a long common prefix."""
    blocks: list[_Block] = []
    for i in sorted(range(len(prompts)), key=lambda i: list(prompts[i])):
        prompt = prompts[i]
        if blocks and len(blocks[-1].members) < MAX_PROMPTS_PER_PREFILL:
            first, top = prompts[blocks[-1].members[0]], min(blocks[-1].common, len(prompt) - 1)
            n = next((k for k in range(top) if first[k] != prompt[k]), top)
            if n >= MIN_COMMON_FRACTION * len(prompt):
                blocks[-1].members.append(i)
                blocks[-1].common = n
                continue
        blocks.append(_Block([i], len(prompt) - 1))
    return sorted(blocks, key=lambda b: b.common)


def _split_into_batches(blocks: list[_Block]) -> list[list[_Block]]:
    """Fill batches of about `MAX_ROWS_PER_BATCH` rows with blocks of similar length."""
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
        for source, target in ((self._keys, other._keys), (self._values, other._values)):
            for t in source:
                buffer = t.new_empty(len(rows), t.shape[1], size, t.shape[3])
                buffer[:, :, : self.filled] = t[rows, :, : self.filled]
                target.append(buffer)
        return other


class _Batch:
    """One batch: prefill each block's common prefix, repeat it per row, prefill each row's own tail, decode."""

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
    def run(self, on_tokens: TokenListener | None = None) -> dict[int, Sampled]:
        """Answers by the request's index."""
        requests = self._requests
        longest = max(r.max_tokens for r in requests)
        cache, bias, hidden = self._prefill(longest)
        tokens = torch.full((len(requests), longest), self._pad, device=self._device)  # [requests, longest] int64
        logprobs = torch.zeros(len(requests), longest, device=self._device)  # [requests, longest] float32
        # These have one entry per row still in the batch; `rows` holds the numbers of their requests.
        rows = torch.arange(len(requests), device=self._device)  # [rows] int64
        active = torch.ones(len(requests), dtype=torch.bool, device=self._device)  # [rows] bool
        # [rows, longest] float64
        uniforms = torch.from_numpy(np.stack([_draw_uniforms(r.seed, longest) for r in requests])).to(self._device)
        temperatures = torch.tensor([r.temperature for r in requests], device=self._device)  # [rows] float32
        limits = torch.tensor([r.max_tokens for r in requests], device=self._device)  # [rows] int64
        positions = (bias == 0).sum(1)  # [rows] int64: position of the next token
        for step in range(longest):
            token, logprob = _draw_tokens(self._head(hidden).float(), temperatures, uniforms[:, step])
            tokens[rows[active], step] = token[active]
            logprobs[rows[active], step] = logprob[active]
            if on_tokens is not None:
                self._tell(on_tokens, rows, active, token, logprob)
            active &= (token != self._end) & (limits > step + 1)
            active_count = int(active.sum())
            if active_count == 0:
                break
            if active_count <= COMPACT_AT_FRACTION * len(rows):
                kept = active.nonzero()[:, 0]  # [kept rows] int64
                rows, active, uniforms, temperatures, limits, positions, token, bias = (
                    t[kept] for t in (rows, active, uniforms, temperatures, limits, positions, token, bias)
                )
                cache = cache.pick(kept, cache.size)
            bias = F.pad(bias, (0, 1))  # the new token is visible
            hidden = self._forward(token[:, None], positions[:, None] + step, bias[:, None, None], cache)
        return {i: self._cut_answer(tokens[k], logprobs[k], requests[k]) for k, i in enumerate(self._indices)}

    def _tell(
        self,
        on_tokens: TokenListener,
        rows: torch.Tensor,
        active: torch.Tensor,
        token: torch.Tensor,
        logprob: torch.Tensor,
    ) -> None:
        """Tell what was drawn, and end the rows that are given up; all are [rows], and `active` is changed."""
        drawn = zip(rows[active].tolist(), token[active].tolist(), logprob[active].tolist(), strict=True)
        given_up = on_tokens({self._indices[row]: (t, p) for row, t, p in drawn})
        for i in given_up:
            active &= rows != self._indices.index(i)

    def _prefill(self, longest: int) -> tuple[_Rows, torch.Tensor, torch.Tensor]:
        """Prefill all prompts: common prefixes, then each row's own tail, both padded on the left.

        Returns:
            The cache; its attention bias, [rows, slots] float32: 0 where visible, else `HIDDEN_BIAS`; and the hidden
            state of each last token, [rows, width] float32.
        """
        prompts = [r.prompt_ids for r in self._requests]
        common = [b.common for b in self._blocks for _ in b.members]
        owner = torch.tensor([g for g, b in enumerate(self._blocks) for _ in b.members], device=self._device)  # [rows]
        heads = [prompts[owner.tolist().index(g)][: b.common] for g, b in enumerate(self._blocks)]
        tails = [p[n:] for p, n in zip(prompts, common, strict=True)]
        head_ids, head_bias = self._pad_left(heads)  # [blocks, head slots]
        tail_ids, tail_bias = self._pad_left(tails)  # [rows, tail slots]
        size = head_ids.shape[1] + tail_ids.shape[1] + longest

        cache = _Rows(head_ids.shape[1])
        if head_ids.shape[1]:
            self._forward(head_ids, _count_positions(head_bias), _make_causal_mask(head_bias, head_ids.shape[1]), cache)
        cache = cache.pick(owner, size)
        bias = torch.cat([head_bias[owner], tail_bias], 1)  # [rows, slots so far]
        positions = _count_positions(bias)[:, head_ids.shape[1] :]  # [rows, tail slots]
        hidden = self._forward(tail_ids, positions, _make_causal_mask(bias, tail_ids.shape[1]), cache)
        return cache, bias, hidden

    def _pad_left(self, parts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pad parts to one length; returns ids int64 and bias float32, both [parts, longest part]."""
        width = max(map(len, parts))
        ids = torch.full((len(parts), width), self._pad)
        bias = torch.full((len(parts), width), HIDDEN_BIAS)
        for row, part in enumerate(parts):
            ids[row, width - len(part) :] = torch.tensor(part, dtype=torch.long)
            bias[row, width - len(part) :] = 0.0
        return ids.to(self._device), bias.to(self._device)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: _Rows) -> torch.Tensor:
        """Feed ids and positions [rows, new] under mask [rows, 1, new, slots]; the last hidden state [rows, width]."""
        out = self._decoder(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        )
        cache.filled += ids.shape[1]
        last: torch.Tensor = out.last_hidden_state[:, -1]
        return last

    def _cut_answer(self, tokens: torch.Tensor, logprobs: torch.Tensor, request: SampleRequest) -> Sampled:
        """Cut one request's tokens and log-probs, [longest] each, at its end token or its limit."""
        ids = tokens[: request.max_tokens].tolist()
        ended = self._end in ids
        n = ids.index(self._end) + 1 if ended else request.max_tokens
        return Sampled(
            token_ids=tuple(ids[:n]),
            logprobs=tuple(logprobs[:n].tolist()),
            finish_reason="stop" if ended else "length",
        )


def _count_positions(bias: torch.Tensor) -> torch.Tensor:
    """Position of each slot of `bias` [rows, slots] in its row, not counting padding: [rows, slots] int64."""
    return ((bias == 0).cumsum(1) - 1).clamp(min=0)


def _make_causal_mask(bias: torch.Tensor, new: int) -> torch.Tensor:
    """Additive mask [rows, 1, new, slots] float32: the last `new` slots attend to visible slots up to themselves."""
    length = bias.shape[1]
    later = torch.ones(new, length, dtype=torch.bool, device=bias.device).triu(length - new + 1)  # [new, slots]
    return bias[:, None, None].masked_fill(later, HIDDEN_BIAS)


def _draw_uniforms(seed: int, n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """`n` numbers in [0, 1) that depend on the seed alone."""
    return np.random.Generator(np.random.Philox(key=seed % 2**128)).random(n)


def _draw_tokens(
    logits: torch.Tensor, temperatures: torch.Tensor, uniforms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row of logits [rows, vocab] and its log-probability (see `Sampled`), [rows] each.

    `temperatures` and `uniforms` are [rows].
    """
    greedy = temperatures < GREEDY_BELOW  # [rows] bool
    logp = F.log_softmax(logits / torch.where(greedy, 1.0, temperatures)[:, None], -1)  # [rows, vocab]
    token = logp.argmax(-1)  # [rows] int64
    if not bool(greedy.all()):
        mass = logp.double().exp().cumsum(-1)  # [rows, vocab] float64: the distribution function
        drawn = torch.searchsorted(mass, uniforms[:, None] * mass[:, -1:], right=True)[:, 0]
        token = torch.where(greedy, token, drawn.clamp(max=logits.shape[-1] - 1))
    return token, logp.gather(1, token[:, None])[:, 0]
