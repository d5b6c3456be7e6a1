"""The part of OpenAI's chat-completions format that the server supports: requests in, answers and errors out."""

import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from babylon_rl.types import Json

DEFAULT_ANSWER_TOKENS: Final = 256


class RequestError(Exception):
    """A request that cannot be answered: an HTTP status and one sentence for the caller, in OpenAI's shape of an error."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body: Json = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _TextPart(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message; content is text, or a list of text parts."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_TextPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)

    def plain(self) -> dict[str, str]:
        """The message as chat templates take it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.text}


class ChatRequest(BaseModel):
    """What `POST /v1/chat/completions` takes. Other fields are ignored; those that would change the answer are refused."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[Message] = Field(min_length=1)
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    seed: int | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    stream: bool | None = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @classmethod
    def read(cls, body: bytes) -> "ChatRequest":
        """Read a request body.

        Raises:
            RequestError: It is not a request that this policy can answer.
        """
        return cls._check(lambda: cls.model_validate_json(body))

    @classmethod
    def of(cls, fields: Json) -> "ChatRequest":
        """Check a request that was read already; raises as `read`."""
        return cls._check(lambda: cls.model_validate(fields))

    @classmethod
    def _check(cls, validate: Callable[[], "ChatRequest"]) -> "ChatRequest":
        try:
            request = validate()
        except ValidationError as e:
            first = e.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "body"
            raise RequestError(
                400, f"{where}: {first['msg']}; correct it and send the request again", param=where
            ) from None
        for name, neutral in _NEUTRAL_VALUES.items():
            value = (request.model_extra or {}).get(name)
            if value is not None and value not in neutral:
                raise RequestError(
                    400, f"{name} is not supported here; leave it out or send {neutral[0]!r}", param=name
                )
        return request


# Unsupported fields that would change the answer, with the values that change nothing.
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "top_logprobs": (0,),
    "stop": ([],),
    "tools": ([],),
    "functions": ([],),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
}


def build_completion(
    *,
    model: str,
    created: int,
    text: str,
    token_ids: Sequence[int],
    logprobs: Sequence[float] | None,
    finish_reason: str,
    prompt_tokens: int,
) -> Json:
    """Build a `chat.completion` object.

    `logprobs` has one entry per token, end token included, whose `token` is `token_id:<id>`: text can be tokenized in
    more than one way, and a trainer needs the ids that were drawn.
    """
    content = None if logprobs is None else _tokens(zip(token_ids, logprobs, strict=True))
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": finish_reason,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None if content is None else {"content": content, "refusal": None},
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(token_ids),
            "total_tokens": prompt_tokens + len(token_ids),
        },
    }


def build_piece(
    *,
    model: str,
    created: int,
    delta: Json | None = None,
    logprobs: Sequence[tuple[int, float]] | None = None,
    finish_reason: str | None = None,
    usage: tuple[int, int] | None = None,
) -> Json:
    """Build one `chat.completion.chunk` of a stream: a piece of the answer or, at its end, what it cost.

    Args:
        model: Who answers.
        created: Seconds since 1970.
        delta: What is new; None: nothing, for the chunk of `usage`.
        logprobs: (Token id, log-prob) of the tokens told with it; None: they are not asked for.
        finish_reason: With the last piece.
        usage: Tokens of prompt and answer.
    """
    choice = {
        "index": 0,
        "delta": delta,
        "logprobs": None if logprobs is None else {"content": _tokens(logprobs), "refusal": None},
        "finish_reason": finish_reason,
    }
    chunk: Json = {
        "id": "",
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": [] if delta is None else [choice],
    }
    if usage is not None:
        chunk["usage"] = {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "total_tokens": sum(usage),
        }
    return chunk


def _tokens(drawn: Iterable[tuple[int, float]]) -> list[Json]:
    return [{"token": f"token_id:{t}", "logprob": p, "bytes": None, "top_logprobs": []} for t, p in drawn]


def build_chunk(answer: Json) -> Json:
    """Build one `chat.completion.chunk` of the whole answer, for callers that asked for a stream."""
    choice = answer["choices"][0]
    chunk = {k: v for k, v in choice.items() if k != "message"} | {"delta": choice["message"]}
    return answer | {"object": "chat.completion.chunk", "choices": [chunk]}
