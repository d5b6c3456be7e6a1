"""What a caller asked: the body, read as leniently as an upstream may need it, and the headers that say for whom."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Self

import msgspec

from babylon_rl.errors import DataError
from babylon_rl.ingest.steps import replace_lone_surrogates
from babylon_rl.policy.wire import RequestError
from babylon_rl.types import Json
from babylon_rl.windows import HourWindow

MAX_ID_CHARS: Final = 256
_LIMITS: Final = ("max_completion_tokens", "max_tokens")
_UNREADABLE: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request.

    Attributes:
        fields: The body as it was sent, unknown fields too.
        agent_id: Header `x-babylon-agent`, else the body's `user`; None: not said.
        window_id: The hour of header `x-babylon-window`, whatever its scenario, else the UTC hour of `at`.
        trajectory_id: Header `x-babylon-trajectory`.
        step_number: Header `x-babylon-step`.
        purpose: Header `x-babylon-purpose`.
        at: When it had arrived.
    """

    fields: Json
    model: str
    stream: bool
    include_usage: bool
    temperature: float | None
    limit: int | None
    agent_id: str | None
    window_id: str
    trajectory_id: str | None
    step_number: int | None
    purpose: str
    at: datetime

    @classmethod
    def read(cls, body: bytes, headers: Iterable[tuple[bytes, bytes]], at: datetime) -> Self:
        """Read a request.

        Raises:
            RequestError: A field that the gateway itself needs is missing or of another kind, or a header is wrong.
        """
        fields = _read_object(body)
        model, messages = fields.get("model"), fields.get("messages")
        if not isinstance(model, str) or not model:
            raise _refuse("model", "a policy's name")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise _refuse("messages", "a list of at least one message")
        named = {name.lower(): value for name, value in headers if name.lower().startswith(b"x-babylon-")}
        return cls(
            fields=fields,
            model=model,
            stream=_check(fields, "stream", bool, "true or false") or False,
            include_usage=bool((_check(fields, "stream_options", dict, "an object") or {}).get("include_usage")),
            temperature=_read_temperature(fields),
            limit=_read_limit(fields),
            agent_id=_read_id(named, "x-babylon-agent") or _clean_id(_check(fields, "user", str, "a text"), "user"),
            window_id=_read_window(named, at),
            trajectory_id=_read_id(named, "x-babylon-trajectory"),
            step_number=_read_number(named, "x-babylon-step"),
            purpose=_read_id(named, "x-babylon-purpose") or "action",
            at=at,
        )

    def mirrored(self, at: datetime) -> "Asked":
        """The same question, asked of a shadow: whole, and part of no trajectory."""
        fields = {k: v for k, v in self.fields.items() if k not in ("stream", "stream_options")}
        return replace(
            self, fields=fields, stream=False, include_usage=False, trajectory_id=None, step_number=None, at=at
        )

    def fields_for(self, model: str, *, temperature: float, most_tokens: int) -> Json:
        """The body for an upstream: as it was sent, but for the model, and what the caller left to us.

        Args:
            model: The policy's name there.
            temperature: Where the caller named none.
            most_tokens: Longest answer; a caller may ask for a shorter one.
        """
        fields = {**self.fields, "model": model, "temperature": self.temperature}
        if self.temperature is None:
            fields["temperature"] = temperature
        for name in [n for n in _LIMITS if fields.get(n) is not None] or ["max_tokens"]:
            fields[name] = most_tokens if self.limit is None else min(self.limit, most_tokens)
        return fields

    def limit_of(self, most_tokens: int) -> int:
        """Most pieces of a streamed answer: an upstream that tells more is cut off."""
        choices = self.fields.get("n")
        longest = most_tokens if self.limit is None else min(self.limit, most_tokens)
        return longest * (choices if isinstance(choices, int) and choices > 1 else 1)


def decode_json(body: bytes) -> Any:
    """JSON as agents and upstreams send it: half an emoji, as a text that was cut has it, is no reason to fail.

    Raises:
        ValueError: It is no JSON. Also RecursionError, where it is nested too deeply.
    """
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return msgspec.json.decode(replace_lone_surrogates(json.dumps(json.loads(body), ensure_ascii=False)))


def _read_object(body: bytes) -> Json:
    try:
        fields = decode_json(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as e:
        raise RequestError(
            400, f"the body is not JSON ({str(e)[:100]}); correct it and send the request again"
        ) from None
    if not isinstance(fields, dict):
        raise RequestError(400, "the body is JSON, but no object; send an object with model and messages")
    return fields


def _refuse(name: str, expected: str) -> RequestError:
    return RequestError(400, f"{name} is missing or of another kind; expected {expected}", param=name)


def _check(fields: Json, name: str, kind: type, expected: str) -> Any:
    value = fields.get(name)
    if value is not None and not isinstance(value, kind):
        raise _refuse(name, expected)
    return value


def _read_temperature(fields: Json) -> float | None:
    value = fields.get("temperature")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2:
        raise _refuse("temperature", "a number from 0 to 2")
    return float(value)


def _read_limit(fields: Json) -> int | None:
    for name in _LIMITS:
        value = fields.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise _refuse(name, "a whole number from 1")
            return value
    return None


def _read_id(headers: Mapping[bytes, bytes], name: str) -> str | None:
    value = headers.get(name.encode())
    if value is None:
        return None
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return _clean_id(text, name)


def _clean_id(text: str | None, name: str) -> str | None:
    text = (text or "").strip()
    if len(text) > MAX_ID_CHARS or _UNREADABLE.search(text):
        raise _refuse(name, f"at most {MAX_ID_CHARS} letters, none of them a control character")
    return text or None


def _read_window(headers: Mapping[bytes, bytes], at: datetime) -> str:
    text = _read_id(headers, "x-babylon-window")
    if text is None:
        return str(HourWindow.containing(at.astimezone(UTC)))
    try:
        return str(HourWindow.parse(text).hour)
    except DataError as e:
        raise RequestError(400, str(e), param="x-babylon-window") from None


def _read_number(headers: Mapping[bytes, bytes], name: str) -> int | None:
    text = _read_id(headers, name)
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise _refuse(name, "a whole number from 0")
    return int(text)
