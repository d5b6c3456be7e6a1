"""`stepsJson` as it is really found, into `Step`s, or one word why not.

What belongs here: JSON and its faults (truncated, encoded twice, lone surrogates, NaN, odd shapes).
No SQL. What a fault means for the row is decided in `source/reader.py`.
"""

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from babylon_rl.types import Json, LlmCall, Step


class BadRowError(Exception):
    """A row cannot be used; `reason` is the disposition's. It never leaves this room."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def parse_json(text: str) -> Any:
    """Decode JSON, once more when it was encoded twice. NaN becomes None: a number nobody knows.

    msgspec is quick and refuses lone surrogates, which Python's own decoder reads: such text comes
    back with the surrogates in it.

    Raises:
        BadRowError: `bad_json`.
    """
    value: Any = text
    for _ in range(2):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            try:
                value = json.loads(value, parse_constant=lambda _: None)
            except (ValueError, RecursionError):
                raise BadRowError("bad_json") from None
        if not isinstance(value, str):
            return value
    return value


def parse_steps(text: str) -> tuple[Step, ...]:
    """Read a row's steps, in the order they stand in.

    Raises:
        BadRowError: `bad_json`, `bad_shape`, `no_steps`, or `lone_surrogate` in a text that could train.
    """
    raw = parse_json(text)
    if raw is None or raw == []:
        raise BadRowError("no_steps")
    if not isinstance(raw, list):
        raise BadRowError("bad_shape")
    return tuple(_step(i, s) for i, s in enumerate(raw))


def parse_metadata(text: str | None) -> Json:
    """Read `metadataJson`; what cannot be read is empty, because nothing of it trains."""
    try:
        value = repaired(parse_json(text)) if text else {}
    except (BadRowError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """A finite number, also one written as text; everything else is unknown. 0 is 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        x = float(value)
    except (ValueError, OverflowError):
        return None
    return x if math.isfinite(x) else None


def instant(value: Any) -> datetime | None:
    """Milliseconds since 1970, or ISO text, as an aware UTC instant; everything else is unknown."""
    try:
        if isinstance(value, str) and not value.strip().isdigit():
            at = datetime.fromisoformat(value)
            return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
        ms = number(value)
        return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def has_lone_surrogate(text: str) -> bool:
    """Whether UTF-8 cannot hold `text` (an emoji was sliced in half)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def repaired(value: Any) -> Any:
    """`value` with U+FFFD for each lone surrogate: for what a judge reads, never for what trains."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {repaired(k): repaired(v) for k, v in value.items()}
    if isinstance(value, list):
        return [repaired(v) for v in value]
    return value


def _step(index: int, raw: Any) -> Step:
    if not isinstance(raw, dict):
        raise BadRowError("bad_shape")
    n = number(raw.get("stepNumber"))
    action = _object(raw.get("action"))
    if isinstance(action.get("parameters"), str) and action["parameters"].lstrip().startswith("{"):
        action = {**action, "parameters": _decoded(action["parameters"])}
    return Step(
        number=index if n is None else int(n),
        at=instant(raw.get("timestamp")),
        environment=_object(raw.get("environmentState", raw.get("observation"))),
        llm_calls=tuple(_calls(raw.get("llmCalls"))),
        action=action,
        reward=number(raw.get("reward")),
    )


def _object(raw: Any) -> Json:
    """A JSON object, also one encoded as text; a missing one is empty."""
    if isinstance(raw, str):
        raw = _decoded(raw)
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise BadRowError("bad_shape")
    return dict(repaired(raw))


def _decoded(text: str) -> Any:
    try:
        return repaired(parse_json(text))
    except BadRowError:
        return repaired(text)


def _calls(raw: Any) -> Iterator[LlmCall]:
    if raw is None:
        return
    if not isinstance(raw, list):
        raise BadRowError("bad_shape")
    for call in raw:
        if not isinstance(call, dict):
            raise BadRowError("bad_shape")
        if (made := make_call(call)) is not None:
            yield made


def make_call(raw: Json) -> LlmCall | None:
    """One logged call by its camelCase keys; None when it failed or was never answered.

    Raises:
        BadRowError: `bad_shape` when a text is no text, `lone_surrogate` when UTF-8 cannot hold one.
    """
    texts = [raw.get(k) for k in ("systemPrompt", "userPrompt", "response")]
    if any(t is not None and not isinstance(t, str) for t in texts):
        raise BadRowError("bad_shape")
    system, user, response = (t or "" for t in texts)
    # Nothing was asked or nothing was said: there is no turn here, and none is invented.
    if not response.strip() or not (system.strip() or user.strip()):
        return None
    if any(map(has_lone_surrogate, (system, user, response))):
        raise BadRowError("lone_surrogate")
    max_tokens = number(raw.get("maxTokens"))
    return LlmCall(
        purpose=_text(raw.get("purpose")) or "other",
        system_prompt=system,
        user_prompt=user,
        response=response,
        model=_text(raw.get("model")),
        model_version=_text(raw.get("modelVersion")),
        temperature=number(raw.get("temperature")),
        max_tokens=None if max_tokens is None else int(max_tokens),
        action_type=_text(raw.get("actionType")),
        reasoning=_text(raw.get("reasoning")),
    )


def _text(value: Any) -> str | None:
    return repaired(value) if isinstance(value, str) and value else None
