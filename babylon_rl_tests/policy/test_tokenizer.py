from pathlib import Path

import pytest

from babylon_rl.base_policy.tokenizer import SENTINEL, train_tokenizer
from babylon_rl.policy.model import LoadedPolicy
from babylon_rl.policy.prompting import PromptRenderer
from babylon_rl.simulator.market import TICKERS
from babylon_rl.simulator.observation import SYSTEM_PROMPT


def test_the_same_seed_makes_the_same_tokenizer_byte_for_byte(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        train_tokenizer(seed, windows=60).save_pretrained(tmp_path / name)

    a, b, c = ((tmp_path / n / "tokenizer.json").read_bytes() for n in "abc")
    assert a == b
    assert a != c


def test_the_highest_token_id_is_a_sentinel_that_round_trips(policy: LoadedPolicy) -> None:
    t = policy.tokenizer
    highest = max(range(t.vocab_size))

    assert t.decode(highest) == SENTINEL
    assert t.encode(f"a{t.decode(highest)}b", add_special_tokens=False)[1] == highest
    assert highest == len(t) - 1 == policy.model.config.vocab_size - 1


@pytest.mark.parametrize("ticker", TICKERS)
def test_a_ticker_and_a_cashtag_are_one_id_wherever_they_stand(policy: LoadedPolicy, ticker: str) -> None:
    t = policy.tokenizer
    for word in (ticker, "$" + ticker):
        (one,) = t.encode(word, add_special_tokens=False)
        for text in (f"sell {word}, now", f'"{word}"', f"\n{word}9"):
            assert one in t.encode(text, add_special_tokens=False)


def test_digits_are_single_and_any_text_round_trips(policy: LoadedPolicy) -> None:
    t = policy.tokenizer

    assert len(t.encode("19482", add_special_tokens=False)) == 5
    for text in ("  ünïcode ☃ 🦄\n\n\tx", '{"a":[1.5,-2]}', "TRUMPMUSK$$ZUCK"):
        assert t.decode(t.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("user", ["plain", " spaces around ", "\n\nbreaks\n\n", "", "\x00user\x00", "{{ jinja }}", "☃"])
@pytest.mark.parametrize("system", [SYSTEM_PROMPT, "", "other\n"])
def test_a_rendered_prompt_is_what_the_chat_template_gives(policy: LoadedPolicy, system: str, user: str) -> None:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    expected = policy.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    renderer = PromptRenderer(policy.tokenizer)

    assert renderer.ids(system, user) == expected
    assert renderer.ids(system, user) == expected, "from the cache"
    assert renderer.ids_of(messages) == expected


def test_a_template_that_trims_is_rendered_in_full(policy: LoadedPolicy) -> None:
    import copy

    t = copy.deepcopy(policy.tokenizer)
    t.chat_template = t.chat_template.replace("m['content']", "m['content'] | trim")
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "  u  "}]

    expected = t.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    assert PromptRenderer(t).ids("s", "  u  ") == expected
    assert "  u" not in t.decode(expected)
