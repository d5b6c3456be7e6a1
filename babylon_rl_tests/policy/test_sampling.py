import math
import random
from collections.abc import Mapping

import pytest
import torch

from babylon_rl.errors import DataError
from babylon_rl.policy.detokenizing import Detokenizer
from babylon_rl.policy.model import LoadedPolicy
from babylon_rl.policy.sampling import Sampled, SampleRequest, sample


def ask(prompt: list[int], *, temperature: float = 1.0, seed: int = 7, max_tokens: int = 64) -> SampleRequest:
    return SampleRequest(prompt_ids=prompt, temperature=temperature, seed=seed, max_tokens=max_tokens)


def forced(policy: LoadedPolicy, prompt: list[int], answer: Sampled, temperature: float) -> torch.Tensor:
    """Log-probabilities of an answer by one plain forward over prompt and answer."""
    ids = torch.tensor([[*prompt, *answer.token_ids]])
    with torch.inference_mode():
        logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / (temperature or 1.0)
    return torch.log_softmax(logits, -1)[torch.arange(len(answer.token_ids)), torch.tensor(answer.token_ids)]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 1.5])
def test_log_probabilities_are_those_of_a_teacher_forced_forward(
    policy: LoadedPolicy, prompts: list[list[int]], temperature: float
) -> None:
    answers = sample(policy, [ask(p, temperature=temperature, seed=i) for i, p in enumerate(prompts)])

    for p, a in zip(prompts, answers, strict=True):
        torch.testing.assert_close(
            torch.tensor(a.logprobs), forced(policy, p, a, temperature), atol=1e-4, rtol=0, check_dtype=False
        )


def test_greedy_sampling_is_the_same_in_a_batch_and_alone(policy: LoadedPolicy, prompts: list[list[int]]) -> None:
    mixed = [[5, 9], prompts[0][:40], *prompts[:9], prompts[3]]
    together = sample(policy, [ask(p, temperature=0, seed=i) for i, p in enumerate(mixed)])

    for p, a in zip(mixed, together, strict=True):
        alone = sample(policy, [ask(p, temperature=0)])[0]
        assert alone.token_ids == a.token_ids
    ids = list(mixed[2])
    with torch.inference_mode():
        for token in together[2].token_ids:
            assert int(policy.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)


def test_a_temperature_that_divides_to_infinity_is_greedy(policy: LoadedPolicy, prompts: list[list[int]]) -> None:
    tiny = sample(policy, [ask(prompts[0], temperature=t) for t in (1e-7, 1e-38, 1e-45)])
    greedy = sample(policy, [ask(prompts[0], temperature=0)])[0]

    assert {a.token_ids for a in tiny} == {greedy.token_ids}
    assert all(math.isfinite(p) for a in tiny for p in a.logprobs)


def test_an_answer_does_not_depend_on_who_shares_the_batch(policy: LoadedPolicy, prompts: list[list[int]]) -> None:
    asked = [ask(p, seed=100 + i, temperature=0.5 + 0.1 * (i % 9)) for i, p in enumerate(prompts)]
    together = sample(policy, asked)
    reversed_ = sample(policy, asked[::-1])[::-1]
    alone = [sample(policy, [r])[0] for r in asked[:6]]

    assert [a.token_ids for a in together] == [a.token_ids for a in reversed_]
    assert [a.token_ids for a in together[:6]] == [a.token_ids for a in alone]


def test_sampled_frequencies_are_the_models_probabilities(policy: LoadedPolicy, prompts: list[list[int]]) -> None:
    """The first free choice, drawn 400 times, against the model's own distribution."""
    text = '{"read":"TRUMP good, MUSK up, event yes","why":"'
    prompt = prompts[0] + policy.tokenizer.encode(text, add_special_tokens=False)
    answers = sample(policy, [ask(prompt, seed=s, max_tokens=1) for s in range(400)])
    with torch.inference_mode():
        expected = torch.softmax(policy.model(input_ids=torch.tensor([prompt])).logits[0, -1], -1)

    got = torch.bincount(torch.tensor([a.token_ids[0] for a in answers]), minlength=len(expected)) / len(answers)

    assert (got > 0.05).sum() >= 2, "this choice should be open"
    assert float((got - expected).abs().max()) < 4 * (0.25 / 400) ** 0.5


def test_each_request_has_its_own_length_and_says_why_it_ended(policy: LoadedPolicy, prompts: list[list[int]]) -> None:
    limits = [1, 3, 64, 10]
    answers = sample(policy, [ask(prompts[0], max_tokens=n) for n in limits])

    assert [a.finish_reason for a in answers] == ["length", "length", "stop", "length"]
    assert [len(a.token_ids) for a in answers][:2] == [1, 3]
    assert answers[2].token_ids[-1] == policy.tokenizer.eos_token_id
    for a in answers:
        assert a.token_ids == answers[2].token_ids[: len(a.token_ids)]
        assert len(a.logprobs) == len(a.token_ids)


def test_nothing_asked_is_nothing_answered(policy: LoadedPolicy) -> None:
    assert sample(policy, []) == []


@pytest.mark.parametrize(
    ("prompt", "temperature", "max_tokens"),
    [([], 1.0, 5), ([1], 1.0, 0), ([1], -1.0, 5), ([1], float("nan"), 5), ([1] * 2048, 1.0, 1), ([1], 1.0, 2048)],
)
def test_an_impossible_request_is_refused_with_its_numbers(
    policy: LoadedPolicy, prompt: list[int], temperature: float, max_tokens: int
) -> None:
    with pytest.raises(DataError, match=rf"request 0 has {len(prompt)} prompt tokens"):
        sample(policy, [ask(prompt, temperature=temperature, max_tokens=max_tokens)])


def test_tokens_are_told_as_they_are_drawn_and_change_nothing(policy: LoadedPolicy, prompts: list[list[int]]) -> None:
    asked = [SampleRequest(prompt_ids=p, temperature=1.0, seed=i, max_tokens=12) for i, p in enumerate(prompts[:6])]
    told: dict[int, list[tuple[int, float]]] = {}
    steps: list[int] = []

    def listen(drawn: Mapping[int, tuple[int, float]]) -> list[int]:
        steps.append(len(drawn))
        for i, token in drawn.items():
            told.setdefault(i, []).append(token)
        return []

    answers = sample(policy, asked, on_tokens=listen)

    assert answers == sample(policy, asked)
    for i, a in enumerate(answers):
        assert [t for t, _ in told[i]] == list(a.token_ids)
        assert [p for _, p in told[i]] == list(a.logprobs)
    assert steps[0] == 6
    assert len(steps) <= 12


def test_a_request_that_is_given_up_is_drawn_no_further(policy: LoadedPolicy, prompts: list[list[int]]) -> None:
    asked = [SampleRequest(prompt_ids=p, temperature=2.0, seed=i, max_tokens=40) for i, p in enumerate(prompts[:3])]
    told = [0, 0, 0]

    def listen(drawn: Mapping[int, tuple[int, float]]) -> list[int]:
        for i in drawn:
            told[i] += 1
        return [1] if told[1] == 5 else []

    answers = sample(policy, asked, on_tokens=listen)

    alone = sample(policy, asked)
    assert [answers[0].token_ids, answers[2].token_ids] == [alone[0].token_ids, alone[2].token_ids]
    assert told == [len(alone[0].token_ids), 5, len(alone[2].token_ids)]


@pytest.mark.parametrize("text", ["BUY $MUSK 100", "Zürich € 漢字 👩‍🚀 end", "🚀", ""])
def test_a_text_comes_in_pieces_of_whole_characters(policy: LoadedPolicy, text: str) -> None:
    detokenizer = Detokenizer(policy.tokenizer)
    ids = policy.tokenizer.encode(text, add_special_tokens=False)

    pieces = [detokenizer.add(i) for i in ids]

    assert "".join(pieces) == text
    assert detokenizer.end() == ""
    assert all("\ufffd" not in p for p in pieces)


def test_bytes_that_are_no_character_come_as_decoding_gives_them(policy: LoadedPolicy) -> None:
    rng = random.Random(5)
    for _ in range(60):
        ids = [rng.randrange(3, len(policy.tokenizer)) for _ in range(40)]
        detokenizer = Detokenizer(policy.tokenizer)
        pieces = [detokenizer.add(i) for i in ids]
        assert "".join(pieces) + detokenizer.end() == policy.tokenizer.decode(ids, skip_special_tokens=True)
