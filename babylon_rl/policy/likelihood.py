"""How likely a policy finds given answers: teacher-forced log-probabilities, at temperature 1.

`rows` are answers scored together, `slots` their tokens, padded on the right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it

from babylon_rl.policy.model import LoadedPolicy

ROWS_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of one answer: the sum of its tokens' log-probabilities, in nats, and how many tokens it has."""

    nats: float
    tokens: int


def score_answers(
    policy: LoadedPolicy, answers: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[Likelihood | None]:
    """Score answers, in their order.

    Args:
        policy: A base, or a base with a merged adapter.
        answers: Ids of a prompt and of its answer.

    Returns:
        None for an empty prompt or answer, and for one that does not fit the policy's context.
    """
    scored: list[Likelihood | None] = [None] * len(answers)
    fitting = [i for i, (p, a) in enumerate(answers) if p and a and len(p) + len(a) <= policy.context]
    fitting.sort(key=lambda i: len(answers[i][0]) + len(answers[i][1]))  # similar lengths together: less padding
    for start in range(0, len(fitting), ROWS_AT_ONCE):
        part = fitting[start : start + ROWS_AT_ONCE]
        for i, likelihood in zip(part, _score([answers[i] for i in part], policy), strict=True):
            scored[i] = likelihood
    return scored


@torch.inference_mode()
def _score(answers: Sequence[tuple[Sequence[int], Sequence[int]]], policy: LoadedPolicy) -> list[Likelihood]:
    width = max(len(p) + len(a) for p, a in answers)
    ids = torch.full((len(answers), width), policy.tokenizer.pad_token_id)  # [rows, slots] int64
    visible = torch.zeros(len(answers), width, dtype=torch.long)  # [rows, slots] int64
    wanted = torch.zeros(len(answers), width - 1, dtype=torch.bool)  # [rows, slots - 1] bool: the next token is scored
    for row, (prompt, answer) in enumerate(answers):
        length = len(prompt) + len(answer)
        ids[row, :length] = torch.tensor([*prompt, *answer])
        visible[row, :length] = 1
        wanted[row, len(prompt) - 1 : length - 1] = True
    hidden = policy.model.get_decoder()(input_ids=ids, attention_mask=visible, use_cache=False).last_hidden_state
    logits = policy.model.get_output_embeddings()(hidden[:, :-1][wanted]).float()  # [scored, vocab]
    logprobs = F.log_softmax(logits, -1).gather(1, ids[:, 1:][wanted][:, None])[:, 0].double()  # [scored]
    of_row = torch.split(logprobs, wanted.sum(1).tolist())
    return [Likelihood(float(x.sum()), len(x)) for x in of_row]
