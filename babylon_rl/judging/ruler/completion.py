"""A chat completion → `Reply`: the one place that knows what shapes servers answer in.

What belongs here: the body of an answered request. What does not: HTTP (`endpoint.py`), and what the text says
(`reply.py`).
"""

import json
from dataclasses import dataclass
from typing import Any, Final

import msgspec

# A reply has some 500 characters a member; what is longer than this is no answer to our question.
MAX_REPLY_CHARS: Final = 1_000_000
KEPT_OF_TOO_LONG: Final = 2_000
_MAX_TOKENS: Final = 10_000_000  # more than any model reads or writes; a count above it is no count
_TEXT_PARTS: Final = ("text", "output_text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a model answered, not yet read.

    Attributes:
        text: Empty when it gave no answer or refused. UTF-8 can carry it.
        prompt_tokens: As the server counted them; 0, like `completion_tokens`, when either count is none.
        fault: What is wrong with the answer as a whole, in a sentence that the judge can act on; None: nothing.
    """

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    fault: str | None = None


class NoCompletionError(ValueError):
    """The body is no chat completion, such as the error page of a proxy."""


class _Part(msgspec.Struct):
    type: str = ""
    text: str | None = None


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    finish_reason: Any = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] | None = None


def decode_completion(body: bytes | bytearray) -> Reply:
    """Read the body of an answered request.

    Raises:
        NoCompletionError: It is no JSON, or JSON of something else.
    """
    try:
        decoded = json.loads(body)  # not msgspec: servers do send NaN, Infinity and half an emoji
    except (ValueError, RecursionError):
        raise NoCompletionError("no JSON") from None
    return read_completion(decoded)


def read_completion(decoded: object) -> Reply:
    """Read a decoded completion leniently: what is odd about it is a `fault` of the reply.

    Content may be text or a list of parts, whose texts are joined.

    Raises:
        NoCompletionError: It is JSON of something else.
    """
    if not isinstance(decoded, dict) or not ({"choices", "usage"} & decoded.keys()):
        raise NoCompletionError("neither choices nor usage in it")
    prompt_tokens, completion_tokens = _read_usage(decoded.get("usage"))
    text, finish_reason, fault = _read_answer(decoded)
    return Reply(
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        fault=fault,
    )


def clean_text(text: str) -> str:
    """Without NUL, which Postgres does not take, and half emojis, which UTF-8 cannot carry."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def _read_answer(decoded: dict[str, Any]) -> tuple[str, str | None, str | None]:
    try:
        choices = msgspec.convert(decoded, _Completion).choices
    except (msgspec.ValidationError, RecursionError) as e:
        return "", None, f"The answer does not have the shape of a chat completion ({str(e)[:200]})."
    if not choices:
        return "", None, "The answer held no choice."
    finish_reason = choices[0].finish_reason
    finish_reason = clean_text(finish_reason)[:64] if isinstance(finish_reason, str) else None
    message = choices[0].message or _Message()
    content = message.content or ""
    if not isinstance(content, str):
        content = "".join(part.text or "" for part in content if part.type in _TEXT_PARTS)
    if not content:
        return "", finish_reason, "The reply was a refusal." if message.refusal else None
    if len(content) > MAX_REPLY_CHARS:
        fault = f"The reply had {len(content)} characters. Send the JSON object of the scores and nothing else."
        return clean_text(content[:KEPT_OF_TOO_LONG]), finish_reason, fault
    return clean_text(content), finish_reason, None


def _read_usage(usage: object) -> tuple[int, int]:
    counts = usage if isinstance(usage, dict) else {}
    prompt_tokens, completion_tokens = (_read_count(counts.get(n)) for n in ("prompt_tokens", "completion_tokens"))
    return (0, 0) if prompt_tokens is None or completion_tokens is None else (prompt_tokens, completion_tokens)


def _read_count(value: object) -> int | None:
    """A count of tokens; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_TOKENS:
        return None
    return int(value)
