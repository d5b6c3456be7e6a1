"""Parses `stepsJson` as it occurs in practice into `Step`s, or raises the reason why it cannot.

What belongs here: JSON and its faults (truncated, encoded twice, lone surrogates, NaN, odd shapes).
No SQL. What a fault means for the row is decided in `ingest/reader.py`.
"""

import json
import math
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from babylon_rl.ingest.rows import END_OF_TIME_MS, UNKNOWN_ENVIRONMENT, EnvironmentState, LlmCall, Step
from babylon_rl.types import Json, RowReason

JsonText = str | bytes | bytearray | memoryview


class BadRowError(Exception):
    """A row cannot be used; `reason` says why. It never leaves this package."""

    def __init__(self, reason: RowReason) -> None:
        super().__init__(reason)
        self.reason = reason


# Keys whose spelling in camelCase does not follow from that in snake_case.
_CAMEL: Final = {"agent_pnl": "agentPnL"}
_CALLS_IN_SNAKE_CASE: Final = b'"llm_calls"'
_ACCOUNT_IN_SNAKE_CASE: Final = b'"agent_'
# Decodes straight into what is kept of a step; other keys (`providerAccesses`, most of the bytes) are never built.
_DECODER = msgspec.json.Decoder(tuple[Step, ...])


def parse_json(text: JsonText) -> Any:
    """Decode JSON, once more when it was encoded twice. NaN becomes None: unknown.

    msgspec is quick and refuses lone surrogates, which Python's own decoder reads: such text comes
    back with the surrogates in it.

    Raises:
        BadRowError: `bad_json`.
    """
    value: Any = bytes(text) if isinstance(text, memoryview) else text
    for _ in range(2):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            try:
                value = json.loads(value, parse_constant=lambda _: None)
            except (ValueError, RecursionError):  # not JSON, or not UTF-8
                raise BadRowError(RowReason.BAD_JSON) from None
        if not isinstance(value, str):
            return value
    return value


def parse_steps(text: JsonText) -> tuple[Step, ...]:
    """Read a row's steps, in their order in the text.

    A sound row is decoded straight into `Step`s. Whatever that decoder refuses (every lone surrogate, NaN, odd type) is
    parsed again, key by key: slower, and more tolerant.

    Raises:
        BadRowError: `bad_json`, `bad_shape`, `no_steps`, or `lone_surrogate` in a text that could train.
    """
    try:
        steps = _DECODER.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return parse_steps_slowly(text)
    if not steps:
        raise BadRowError(RowReason.NO_STEPS)
    for step in steps:
        account = step.environment
        if account is UNKNOWN_ENVIRONMENT or _is_encoded(step.action.get("parameters")):
            return parse_steps_slowly(text)  # another writer calls it `observation`, or encodes `parameters`
        if not step.llm_calls and _holds(text, _CALLS_IN_SNAKE_CASE):
            return parse_steps_slowly(text)
        if account.balance_usd is None and account.lifetime_pnl_usd is None and _holds(text, _ACCOUNT_IN_SNAKE_CASE):
            return parse_steps_slowly(text)
        for call in step.llm_calls:
            if not (call.response.strip() and (call.user_prompt.strip() or call.system_prompt.strip())):
                return parse_steps_slowly(text)
    return steps


def parse_steps_slowly(text: JsonText) -> tuple[Step, ...]:
    """`parse_steps` without the fast decoder; both give the same for every text."""
    raw = parse_json(text)
    if raw is None or raw == []:
        raise BadRowError(RowReason.NO_STEPS)
    if not isinstance(raw, list):
        raise BadRowError(RowReason.BAD_SHAPE)
    return tuple([_parse_step(s) for s in raw])


def parse_metadata(text: str | None) -> Json:
    """Read `metadataJson`; what cannot be read is empty, because nothing of it trains."""
    try:
        value = replace_lone_surrogates(parse_json(text)) if text and text != "{}" else {}
    except (BadRowError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def parse_number(value: Any) -> float | None:
    """A finite number, also one written as text; everything else is unknown. 0 is 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        x = float(value)
    except (ValueError, OverflowError):
        return None
    return x if math.isfinite(x) else None


def parse_instant_ms(value: Any) -> int | None:
    """Milliseconds since 1970, from such a number or ISO text; everything else is unknown."""
    try:
        if isinstance(value, str) and not value.strip().isdigit():
            at = datetime.fromisoformat(value)
            ms = (at.replace(tzinfo=UTC) if at.tzinfo is None else at).timestamp() * 1000
        else:
            known = parse_number(value)
            if known is None:
                return None
            ms = known
    except (ValueError, OverflowError):
        return None
    return round(ms) if 0 <= round(ms) < END_OF_TIME_MS else None


def has_lone_surrogate(text: str) -> bool:
    """Whether UTF-8 cannot hold `text` (an emoji was sliced in half)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def replace_lone_surrogates(value: Any) -> Any:
    """`value` with U+FFFD for each lone surrogate: for what a judge reads, never for what trains."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {replace_lone_surrogates(k): replace_lone_surrogates(v) for k, v in value.items()}
    if isinstance(value, list):
        return [replace_lone_surrogates(v) for v in value]
    return value


def make_storable(text: str) -> str:
    """`text` without what PostgreSQL cannot hold: lone surrogates and NUL become U+FFFD."""
    if "\x00" not in text and not has_lone_surrogate(text):
        return text
    sound: str = replace_lone_surrogates(text)
    return sound.replace("\x00", "\ufffd")


def _is_encoded(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("{")


def _holds(text: JsonText, key: bytes) -> bool:
    return key.decode() in text if isinstance(text, str) else key in bytes(text)


def _to_camel_case(raw: Json) -> Json:
    """An object whose keys are in snake_case, with those of the game's own spelling; such a key that it has already wins."""
    renamed = {_rename(k): v for k, v in raw.items()}
    return {**renamed, **{k: v for k, v in raw.items() if k in renamed}}


def _rename(key: str) -> str:
    first, *rest = key.split("_")
    return _CAMEL.get(key) or first + "".join(w[:1].upper() + w[1:] for w in rest) if first else key


def _is_in_snake_case(raw: Json, *keys: str) -> bool:
    """Whether an object has one of `keys`, and none of them in the game's own spelling."""
    return any(k in raw for k in keys) and not any(c in raw for c in _to_camel_case(dict.fromkeys(keys)))


def _parse_step(raw: Any) -> Step:
    """One step parsed key by key: faults are repaired, and a sound step is what the fast decoder gives."""
    if not isinstance(raw, dict):
        raise BadRowError(RowReason.BAD_SHAPE)
    is_snake = _is_in_snake_case(raw, "llm_calls") or _is_in_snake_case(raw, "environment_state")
    if is_snake:
        raw = _to_camel_case(raw)
    calls = raw.get("llmCalls")
    if not isinstance(calls, list | None) or not all(isinstance(c, dict) for c in calls or ()):
        raise BadRowError(RowReason.BAD_SHAPE)
    environment = _parse_object(raw.get("environmentState", raw.get("observation")))
    if _is_in_snake_case(environment, "agent_balance", "agent_pnl"):
        environment = _to_camel_case(environment)
    action = replace_lone_surrogates(_parse_object(raw.get("action")))
    if is_snake:
        action = _to_camel_case(action)
    if _is_encoded(action.get("parameters")):
        action = {**action, "parameters": _decode_text(action["parameters"])}
    parsed = (make_call(c) for c in calls or ())
    return Step(
        at_ms=parse_instant_ms(raw.get("timestamp")),
        environment=EnvironmentState(
            balance_usd=parse_number(environment.get("agentBalance")),
            lifetime_pnl_usd=parse_number(environment.get("agentPnL")),
        ),
        llm_calls=tuple(c for c in parsed if c is not None),
        action=action,
        trust_state=replace_lone_surrogates(raw.get("trustState")),
        counterparty=replace_lone_surrogates(raw.get("counterpartyContext")),
    )


def _parse_object(raw: Any) -> Json:
    """A JSON object, also one encoded as text; a missing one is empty."""
    if isinstance(raw, str):
        raw = _decode_text(raw)
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise BadRowError(RowReason.BAD_SHAPE)
    return raw


def _decode_text(text: str) -> Any:
    try:
        return replace_lone_surrogates(parse_json(text))
    except BadRowError:
        return replace_lone_surrogates(text)


def make_call(raw: Json) -> LlmCall | None:
    """One logged call, its keys in camelCase or all in snake_case; None when it failed or was never answered.

    Raises:
        BadRowError: `bad_shape` when a text is no text, `lone_surrogate` when UTF-8 cannot hold one.
    """
    if _is_in_snake_case(raw, "system_prompt", "user_prompt"):
        raw = _to_camel_case(raw)
    texts = (raw.get("systemPrompt"), raw.get("userPrompt"), raw.get("response"))
    if any(t is not None and not isinstance(t, str) for t in texts):
        raise BadRowError(RowReason.BAD_SHAPE)
    system, user, response = (t or "" for t in texts)
    call = LlmCall(
        purpose=_text(raw.get("purpose")) or "other",
        system_prompt=system,
        user_prompt=user,
        response=response,
        model=_text(raw.get("model")),
        model_version=_text(raw.get("modelVersion")),
        temperature=parse_number(raw.get("temperature")),
        max_tokens=parse_number(raw.get("maxTokens")),
        completion_tokens=parse_number(raw.get("completionTokens")),
        finish_reason=_text(raw.get("finishReason")),
    )
    # Without a prompt or without an answer there is no turn, and none is invented.
    if not response.strip() or not (user.strip() or system.strip()):
        return None
    if any(map(has_lone_surrogate, (system, user, response))):
        raise BadRowError(RowReason.LONE_SURROGATE)
    return call


def _text(value: Any) -> str | None:
    return replace_lone_surrogates(value) if isinstance(value, str) and value else None
