"""Behaviour cloning of `habits`: how a fresh model learns to read its prompt and to answer legally.

Runs once per base. Training by reward is `training/`.
"""

import logging
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it

from babylon_rl.base_policy.corpus import Example
from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.policy.prompting import PromptRenderer
from babylon_rl.simulator.observation import SYSTEM_PROMPT

logger = logging.getLogger(__name__)

PROMPT_WEIGHT: Final = 0.02  # enough to learn what prompts look like, too little to outweigh the answer
WARMUP_STEPS: Final = 30
LAST_LR_SHARE: Final = 0.05


def clone(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    seed: int,
    batch: int,
    lr: float,
    progress: Progress = ignore_progress,
) -> None:
    """Train `model` in place to answer as the examples do, each seen once.

    Args:
        model: A causal LM; left in eval mode.
        tokenizer: Its tokenizer.
        examples: N decisions; N mod `batch` of them are left out.
        seed: Of the order in which they are seen.
        batch: Examples per step.
        lr: Peak learning rate of AdamW; 30 steps of warm-up, then linear decay to 5 %.
        progress: Called every 20 steps, and after the last, with the mean loss of answer tokens.
    """
    renderer = PromptRenderer(tokenizer)
    prompts = [renderer.ids(SYSTEM_PROMPT, e.observation.text) for e in examples]
    answers = [[*tokenizer.encode(e.answer, add_special_tokens=False), tokenizer.eos_token_id] for e in examples]
    steps = len(examples) // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / WARMUP_STEPS) * max(LAST_LR_SHARE, 1 - s / max(steps, 1))
    )
    order = np.random.default_rng(seed).permutation(len(examples))
    model.train()
    for step in range(1, steps + 1):
        chosen = order[(step - 1) * batch : step * batch].tolist()
        tokens, weights = _pad_batch([prompts[i] for i in chosen], [answers[i] for i in chosen], tokenizer.pad_token_id)
        logits = model(input_ids=tokens).logits[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        w = weights[:, 1:]
        loss = (losses * w).sum() / w.sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0 or step == steps:
            loss_now = float(losses.detach()[w == 1.0].mean())
            progress(step - (step - 1) // 20 * 20, total=steps, note=f"step {step}, loss {loss_now:.3f}")
    model.eval()
    logger.info("cloned examples=%d steps=%d", steps * batch, steps)


def _pad_batch(prompts: list[list[int]], answers: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded tokens [B, S] and their loss weights [B, S]: 1 on answers, little on prompts, 0 on padding."""
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    tokens = torch.full((len(prompts), width), pad)
    weights = torch.zeros(len(prompts), width)
    for row, (p, a) in enumerate(zip(prompts, answers, strict=True)):
        end = len(p) + len(a)
        tokens[row, :end] = torch.tensor(p + a)
        weights[row, 1 : len(p)] = PROMPT_WEIGHT
        weights[row, len(p) : end] = 1.0
    return tokens, weights
