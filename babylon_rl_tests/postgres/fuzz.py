"""Rows as no writer should write them, made from real shapes: seeded for bulk, and as strategies that shrink.

A mutation damages one thing: a JSON value somewhere inside (`damage_value`), the JSON text (`damage_text`), or a
column (`damage_columns`). PostgreSQL's text holds neither U+0000 nor lone surrogates, so both stay escaped.
"""

import json
import math
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from babylon_rl.types import Json
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import a_json_call, a_json_step, a_row

Raw = Any
HALF_EMOJI, OTHER_HALF = "\ud83d", "\ude00"


class Verbatim(str):
    """JSON text that goes into the document as it stands, as Python's encoder would never write it."""

    __slots__ = ()


ODD: list[Raw] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    -0.0,
    2**53 + 1,
    2**64,
    -(2**63) - 1,
    10**30,
    math.nan,
    math.inf,
    -math.inf,
    "",
    " ",
    "null",
    "0",
    "x",
    "\x00",
    "a\x00b",
    HALF_EMOJI,
    f"to the {HALF_EMOJI}",
    f"{OTHER_HALF}{HALF_EMOJI}",
    "\ufffe",
    "\u202e",
    "</trajectory>",
    "{",
    "[]",
    '{"a":',
    "'; DROP TABLE trajectories; --",
    [],
    {},
    [None],
    [[[]]],
    {"": ""},
    {"\x00": 1},
    {HALF_EMOJI: 1},
    {"a": {HALF_EMOJI: [HALF_EMOJI]}},
    [1, "a", None, {}],
    Verbatim("1e400"),
    Verbatim("-1e-400"),
    Verbatim("1" * 400),
    Verbatim("1" * 5000),
    Verbatim("Infinity"),
    Verbatim("01"),
    Verbatim("undefined"),
    Verbatim('{"a":1,"a":{"b":2}}'),
    Verbatim('"\\u00"'),
    Verbatim("[" * 300 + "]" * 300),
    Verbatim("[" * 3000 + "]" * 3000),
    "1" * 5000,
    "9" * 400,
    "1e400",
    "nan",
    "2025-01-15T10:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    8.64e15,
    -8.64e15,
    253402300800000,
    1e300,
    "e\u0301" * 50,
    "long " * 4000,
]
"""What may stand anywhere in a document."""


def a_document(r: random.Random, window: HourWindow) -> list[Json]:
    """One tick as either writer writes it: 0–3 steps, calls with and without every optional key."""
    steps = []
    for n in range(r.choice([0, 1, 1, 1, 2, 3])):
        at = window.start_at + timedelta(seconds=r.randrange(3600))
        calls = [a_json_call(f'{{"action":"HOLD","n":{r.randrange(99)}}}')]
        if r.random() < 0.3:
            calls.insert(0, a_json_call("I think so", "reasoning", latencyMs=12.75, reasoning="because"))
        step = a_json_step(n, at=at, llmCalls=calls)
        step["providerAccesses"] = [{"providerName": "markets", "data": {"BTC": [1, 2]}, "purpose": "look"}]
        step["action"] |= {"parameters": r.choice([{"size": 1}, '{"ticker":"BTC"}', "plain"]), "result": {"pnl": 1}}
        if r.random() < 0.4:
            step |= {"stepId": f"s-{n}", "observation": {"agentBalance": 1}, "done": False, "status": "pending"}
        steps.append(step)
    return steps


def places(value: Raw, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a document, its root included."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for k, v in inside for p in places(v, (*path, k)))]


def put(value: Raw, path: tuple[Any, ...], new: Raw, *, remove: bool = False) -> Raw:
    """A copy of a document with another value at `path`, or with nothing there."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and remove:
        del copy[path[0]]
    else:
        copy[path[0]] = put(value[path[0]], path[1:], new, remove=remove)
    return copy


def text_of(document: Raw) -> str:
    """JSON as a JavaScript writer makes it: everything beyond ASCII may stand raw, halves of emoji are escaped."""
    marks: list[str] = []

    def mark(value: Raw) -> Raw:
        if isinstance(value, Verbatim):
            marks.append(str(value))
            return f"@@{len(marks) - 1}@@"
        if isinstance(value, dict):
            return {k: mark(v) for k, v in value.items()}
        return [mark(v) for v in value] if isinstance(value, list) else value

    text = json.dumps(mark(document))
    for i, verbatim in enumerate(marks):
        text = text.replace(f'"@@{i}@@"', verbatim)
    return text


def damage_value(r: random.Random, document: Raw) -> Raw:
    path = r.choice(places(document))
    return put(document, path, r.choice(ODD), remove=bool(path) and r.random() < 0.25)


def _cut(r: random.Random, text: str) -> str:
    return text[: r.randrange(len(text) + 1)]


def _flip(r: random.Random, text: str) -> str:
    at = r.randrange(max(len(text), 1))
    return text[:at] + r.choice('{}[]",:\\0eE-\u2028é') + text[at + 1 :]


def _slice_emoji(r: random.Random, text: str) -> str:
    return text.replace("HOLD", r.choice(["\\ud83d", "\\ude00", "\\ud83d\\ude00", "\\u0000", "\\ud83d\\u0000"]))


TEXT_DAMAGE: list[Callable[[random.Random, str], str]] = [
    _cut,
    _flip,
    _slice_emoji,
    lambda r, text: json.dumps(text),
    lambda r, text: json.dumps(json.dumps(text)),
    lambda r, text: json.dumps(_cut(r, text)),
    lambda r, text: "\ufeff" + text,
    lambda r, text: text + text,
    lambda r, text: text.replace('"', "'"),
    lambda r, text: text.replace("null", "NaN").replace("0", "NaN"),
    lambda r, text: r.choice(["", " ", "null", "[]", "{}", '""', "0", "[null]", "[[]]", "[{}]", '[""]', "\\u0000"]),
    lambda r, text: text.replace("You trade.", "x" * r.choice([10_000, 200_000])),
    lambda r, text: "[" * r.choice([200, 5_000]) + text,
]

COLUMN_DAMAGE: dict[str, list[Raw]] = {
    "window_id": [None, "", "test-window", "2025-13-45T99:00", "2025-01-15T10:30", "x" * 50],
    "end_time": [
        None,
        "infinity",
        "-infinity",
        "0044-03-15 12:00:00 BC",
        "294276-12-31 23:59:59",
        "0001-01-01 00:00:00",
    ],
    "start_time": ["infinity", "-infinity", "0044-03-15 12:00:00 BC", "9999-12-31 23:59:59"],
    "scenario_id": [None, "benchmark-7", "", "2025-01-15T10:00"],
    "final_pnl": [None, math.nan, math.inf, -math.inf, 1e308, 5e-324, -0.0],
    "final_balance": [None, math.nan, -1.0],
    "metadata_json": [
        "",
        "{",
        "null",
        "[]",
        '"x"',
        '{"gameKnowledge":"\\ud83d"}',
        '{"gameKnowledge":{"\\u0000":[1]}}',
        '{"gameKnowledge":{"\\ud83d":1}}',
        json.dumps(json.dumps({"gameKnowledge": {"a": 1}})),
        "[" * 9000,
        '{"gameKnowledge":1e400}',
        '{"gameKnowledge":{"n":' + "1" * 5000 + "}}",
    ],
    "is_training_data": [False],
    "is_evaluation": [True],
    "agent_id": ["", " ", "a/b", "é\u202e", "agent\nwith lines", "'; --", "x" * 300],
    "final_status": ["", "crashed"],
    "reward_components_json": ["", "{"],
}


def a_fuzzed_row(r: random.Random, window: HourWindow, agent: str) -> Json:
    """One row with one to three things wrong with it."""
    document: Raw = a_document(r, window)
    for _ in range(r.choice([0, 1, 1, 2])):
        document = damage_value(r, document)
    text = text_of(document)
    if r.random() < 0.35:
        text = r.choice(TEXT_DAMAGE)(r, text)
    row = a_row(agent, window=window, steps_json=text)
    row["start_time"] += timedelta(seconds=r.randrange(1200))
    if r.random() < 0.4:
        column = r.choice(sorted(COLUMN_DAMAGE))
        row[column] = r.choice(COLUMN_DAMAGE[column])
    return row


# ── the same, for Hypothesis to shrink ─────────────────────────────────────────────────────────────

_texts = st.text(st.characters(codec=None), max_size=12)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _texts, st.sampled_from(ODD)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_texts, inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def documents(draw: st.DrawFn, window: HourWindow) -> str:
    """JSON text of steps with values of any kind at any place, sometimes cut off or encoded again."""
    document: Raw = [a_json_step(i, at=window.start_at) for i in range(draw(st.integers(0, 2)))]
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(places(document)))
        document = put(document, path, draw(json_values), remove=bool(path) and draw(st.booleans()))
    text = text_of(document)
    match draw(st.sampled_from(["whole", "whole", "cut", "twice"])):
        case "cut":
            return text[: draw(st.integers(0, len(text)))]
        case "twice":
            return json.dumps(text)
        case _:
            return text
