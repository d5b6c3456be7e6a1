"""`stepsJson` as it is really found, into `Step`s, or one word why not.

What belongs here: JSON and its faults (truncated, encoded twice, lone surrogates, NaN, odd shapes).
No SQL. What a fault means for the row is decided in `source/reader.py`.
"""

import json
import math
from datetime import UTC, datetime
from typing import Any

import msgspec

from babylon_rl.types import Json, LlmCall, Step


class BadRowError(Exception):
    """A row cannot be used; `reason` is the disposition's. It never leaves this room."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _RawCall(msgspec.Struct, rename="camel", gc=False):
    purpose: Any = None
    system_prompt: Any = None
    user_prompt: Any = None
    response: Any = None
    model: Any = None
    model_version: Any = None
    temperature: Any = None
    max_tokens: Any = None
    action_type: Any = None
    reasoning: Any = None


class _RawStep(msgspec.Struct, rename="camel", gc=False):
    """What we keep of a step. Keys that are not here (`providerAccesses`, most of the bytes) are never built."""

    step_number: Any = None
    timestamp: Any = None
    environment_state: Any = msgspec.UNSET
    observation: Any = None
    llm_calls: list[_RawCall] | None = None
    action: Any = None
    reward: Any = None


_FAST = msgspec.json.Decoder(list[_RawStep])
_CALL_KEYS = tuple(zip(_RawCall.__struct_fields__, _RawCall.__struct_encode_fields__, strict=True))


def parse_json(text: str | bytes) -> Any:
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
            except (ValueError, RecursionError):  # not JSON, or not UTF-8
                raise BadRowError("bad_json") from None
        if not isinstance(value, str):
            return value
    return value


def parse_steps(text: str | bytes) -> tuple[Step, ...]:
    """Read a row's steps, in the order they stand in.

    A sound row is decoded straight into structs, past what we do not keep. Whatever that decoder refuses (and it
    refuses every lone surrogate, NaN, odd shape) is read again, key by key: slower, and more forgiving.

    Raises:
        BadRowError: `bad_json`, `bad_shape`, `no_steps`, or `lone_surrogate` in a text that could train.
    """
    try:
        quick = _FAST.decode(text)
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
        return parse_steps_slowly(text)
    if not quick:
        raise BadRowError("no_steps")
    return tuple(_step(i, s, sound=True) for i, s in enumerate(quick))


def parse_steps_slowly(text: str | bytes) -> tuple[Step, ...]:
    """`parse_steps` without the quick way; the two give the same for every text that both can read."""
    raw = parse_json(text)
    if raw is None or raw == []:
        raise BadRowError("no_steps")
    if not isinstance(raw, list):
        raise BadRowError("bad_shape")
    return tuple(_step(i, _raw_step(s), sound=False) for i, s in enumerate(raw))


def parse_metadata(text: str | bytes | None) -> Json:
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


def _raw_step(raw: Any) -> _RawStep:
    if not isinstance(raw, dict):
        raise BadRowError("bad_shape")
    calls = raw.get("llmCalls")
    if not isinstance(calls, list | None) or not all(isinstance(c, dict) for c in calls or ()):
        raise BadRowError("bad_shape")
    return _RawStep(
        step_number=raw.get("stepNumber"),
        timestamp=raw.get("timestamp"),
        environment_state=raw.get("environmentState", msgspec.UNSET),
        observation=raw.get("observation"),
        llm_calls=None if calls is None else [_raw_call(c) for c in calls],
        action=raw.get("action"),
        reward=raw.get("reward"),
    )


def _raw_call(raw: Json) -> _RawCall:
    return _RawCall(**{field: raw.get(key) for field, key in _CALL_KEYS})


def _step(index: int, raw: _RawStep, *, sound: bool) -> Step:
    """One step; `sound`: the decoder has seen that no text of it holds a lone surrogate."""
    n = number(raw.step_number)
    action = _object(raw.action, sound=sound)
    if isinstance(action.get("parameters"), str) and action["parameters"].lstrip().startswith("{"):
        action = {**action, "parameters": _decoded(action["parameters"])}
    seen = raw.observation if raw.environment_state is msgspec.UNSET else raw.environment_state
    calls = (_made(c, sound=sound) for c in raw.llm_calls or ())
    return Step(
        number=index if n is None else int(n),
        at=instant(raw.timestamp),
        environment=_object(seen, sound=sound),
        llm_calls=tuple(c for c in calls if c is not None),
        action=action,
        reward=number(raw.reward),
    )


def _object(raw: Any, *, sound: bool) -> Json:
    """A JSON object, also one encoded as text; a missing one is empty."""
    if isinstance(raw, str):
        raw = _decoded(raw)
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise BadRowError("bad_shape")
    return raw if sound else dict(repaired(raw))


def _decoded(text: str) -> Any:
    try:
        return repaired(parse_json(text))
    except BadRowError:
        return repaired(text)


def make_call(raw: Json) -> LlmCall | None:
    """One logged call by its camelCase keys; None when it failed or was never answered.

    Raises:
        BadRowError: `bad_shape` when a text is no text, `lone_surrogate` when UTF-8 cannot hold one.
    """
    return _made(_raw_call(raw), sound=False)


def _made(raw: _RawCall, *, sound: bool) -> LlmCall | None:
    texts = (raw.system_prompt, raw.user_prompt, raw.response)
    if any(t is not None and not isinstance(t, str) for t in texts):
        raise BadRowError("bad_shape")
    system, user, response = (t or "" for t in texts)
    # Nothing was asked or nothing was said: there is no turn here, and none is invented.
    if not response.strip() or not (system.strip() or user.strip()):
        return None
    if not sound and any(map(has_lone_surrogate, (system, user, response))):
        raise BadRowError("lone_surrogate")
    max_tokens = number(raw.max_tokens)
    return LlmCall(
        purpose=_text(raw.purpose) or "other",
        system_prompt=system,
        user_prompt=user,
        response=response,
        model=_text(raw.model),
        model_version=_text(raw.model_version),
        temperature=number(raw.temperature),
        max_tokens=None if max_tokens is None else int(max_tokens),
        action_type=_text(raw.action_type),
        reasoning=_text(raw.reasoning),
    )


def _text(value: Any) -> str | None:
    return repaired(value) if isinstance(value, str) and value else None
