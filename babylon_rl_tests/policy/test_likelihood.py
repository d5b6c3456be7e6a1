"""Likelihoods of given answers, against those that the sampler reports for what it drew itself."""

import pytest

from babylon_rl.policy.likelihood import score_answers
from babylon_rl.policy.model import LoadedPolicy
from babylon_rl.policy.sampling import SampleRequest, sample


def test_a_drawn_answer_is_as_likely_as_the_sampler_said(policy: LoadedPolicy, prompts: list[list[int]]) -> None:
    requests = [SampleRequest(prompt_ids=p, temperature=1.0, seed=i, max_tokens=40) for i, p in enumerate(prompts[:20])]
    drawn = sample(policy, requests)

    scored = score_answers(policy, [(p, d.token_ids) for p, d in zip(prompts, drawn, strict=False)])

    for likelihood, answer in zip(scored, drawn, strict=True):
        assert likelihood is not None
        assert likelihood.tokens == len(answer.token_ids)
        assert likelihood.nats == pytest.approx(sum(answer.logprobs), abs=1e-3)


def test_what_does_not_fit_the_context_is_not_cut(policy: LoadedPolicy, prompts: list[list[int]]) -> None:
    long = [7] * (policy.context - 2)
    scored = score_answers(policy, [(long, [5, 6, 7]), (long, [5, 6]), (prompts[0], []), ([], [5]), (prompts[0], [5])])
    assert [s is None for s in scored] == [True, False, True, True, False]
