"""An answer that was cut at its length limit must not teach the policy to end there."""

import json
from typing import Any

import msgspec
import pytest

from babylon_rl.common.canonical import to_json
from babylon_rl.ingest.steps import parse_steps, parse_steps_slowly
from babylon_rl.ingest.stitching import stitch
from babylon_rl.policy.shipped import shipped_base
from babylon_rl.training.sequences import is_cut
from babylon_rl.types import Turn
from babylon_rl_tests.factories import a_json_step, a_source_row

ANSWER = '{"action":"BUY","ticker":"ALTMAN","size":0.3}'
TOKENS = 15  # of the answer by the shipped tokenizer, measured below


def turn_of(**call: Any) -> Turn:
    """The turn of one logged call, by the reader's own way."""
    step = a_json_step()
    step["llmCalls"] = [{**step["llmCalls"][0], "response": ANSWER, "maxTokens": None, **call}]
    text = json.dumps([step])
    assert parse_steps(text) == parse_steps_slowly(text)
    (trajectory,) = stitch([a_source_row("agent-1", *parse_steps(text))])
    return trajectory.turns[0]


@pytest.fixture(scope="module")
def tokens() -> int:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shipped_base(), local_files_only=True)
    return len(tokenizer(ANSWER, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("call", "cut"),
    [
        ({}, False),
        ({"finishReason": "stop"}, False),
        ({"finishReason": "length"}, True),
        ({"finishReason": "MAX_TOKENS"}, True),
        ({"finishReason": "stop", "maxTokens": 1}, False),
        ({"maxTokens": 64, "completionTokens": 64}, True),
        ({"maxTokens": 64, "completionTokens": 63}, False),
        ({"maxTokens": 2, "completionTokens": 2}, True),
        ({"maxTokens": 8192}, False),
        ({"maxTokens": TOKENS}, True),
        ({"maxTokens": TOKENS + 1}, False),
        ({"maxTokens": 0}, False),
        ({"maxTokens": -1}, False),
    ],
)
def test_a_cut_answer_is_known_by_what_is_logged(tokens: int, call: dict[str, Any], cut: bool) -> None:
    assert tokens == TOKENS
    assert is_cut(turn_of(**call), tokens) is cut


def test_an_answer_that_ended_keeps_its_bytes() -> None:
    """Group ids are hashes of them: every group of every database would be judged, and paid for, again."""
    plain = turn_of()
    old = {"policy_version", "response", "system", "temperature", "user"}
    assert set(msgspec.json.decode(to_json(plain))) == old
    for call in ({"maxTokens": 8192}, {"maxTokens": 64, "completionTokens": 40}, {"finishReason": "stop"}):
        assert to_json(turn_of(**call)) == to_json(plain)
    cut = turn_of(finishReason="length")
    assert set(msgspec.json.decode(to_json(cut))) == old | {"is_cut"}
    assert msgspec.json.decode(to_json(cut), type=Turn) == cut
