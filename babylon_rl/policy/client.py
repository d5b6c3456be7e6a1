"""Asks a policy over HTTP, through the official OpenAI client. Works against any OpenAI-compatible endpoint."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from babylon_rl.errors import ConfigError, DataError, TransientError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

TIMEOUT_S: Final = 120.0
CONNECT_TIMEOUT_S: Final = 10.0
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
MAX_RETRIES: Final = 3  # the OpenAI client's own, with backoff: the only layer that retries


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer.

    Attributes:
        model: The policy that answered, as the server names it, e.g. `babylon-mmo@3`.
        latency_ms: From the request to the complete answer, including the wait for a batch.
        prompt_tokens: As counted by the server; None where it reports no counts.
        completion_tokens: Likewise.
    """

    text: str
    model: str
    latency_ms: int
    prompt_tokens: int | None
    completion_tokens: int | None


class PolicyClient:
    """An async context manager around one connection pool.

    aiohttp carries the requests: with 512 in flight httpx's pool costs six times the processor time (docs/policy.md §7).
    """

    def __init__(
        self, base_url: str, *, api_key: str = "none", project: str | None = None, max_connections: int = 1000
    ) -> None:
        self._base_url = base_url
        self._api_key = api_key
        self._project = project
        self._max_connections = max_connections
        self._client: AsyncOpenAI | None = None

    async def __aenter__(self) -> Self:
        import openai
        from openai import AsyncOpenAI, DefaultAioHttpClient

        timeout = openai.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        # The OpenAI client's own class, not httpx's: newer versions use an HTTP library of another name.
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(
            max_connections=self._max_connections, max_keepalive_connections=self._max_connections
        )
        self._client = AsyncOpenAI(
            base_url=self._base_url,
            api_key=self._api_key,
            project=self._project,
            max_retries=MAX_RETRIES,
            timeout=timeout,
            http_client=DefaultAioHttpClient(
                limits=limits,
                timeout=timeout,
                trust_env=urlsplit(self._base_url).hostname not in LOOPBACK,  # loopback is never behind a proxy
            ),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def complete(
        self,
        *,
        model: str,
        system: str,
        user: str,
        temperature: float | None,
        seed: int | None,
        max_tokens: int = 64,
        headers: Mapping[str, str] | None = None,
    ) -> Completion:
        """Ask for one answer.

        Args:
            model: Name of the policy.
            system: System prompt.
            user: User prompt.
            temperature: None takes the server's default.
            seed: None lets the server draw one.
            max_tokens: Length limit of the answer.
            headers: Sent beside the client's own, such as the agent's id for the gateway.

        Raises:
            TransientError: No answer after all retries: connection, timeout, 408, 409, 429 or 5xx.
            ConfigError: The server refuses: unknown model, wrong key, a request it does not understand.
            DataError: The answer has no text.
        """
        import openai

        if self._client is None:
            raise ConfigError("the policy client is closed; use it inside `async with PolicyClient(...)`")
        began = time.monotonic()
        with _translate_errors(model):
            answer = await self._client.chat.completions.create(
                model=model,
                messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
                temperature=openai.omit if temperature is None else temperature,
                seed=openai.omit if seed is None else seed,
                max_tokens=max_tokens,
                extra_headers=headers,
            )
        text = answer.choices[0].message.content if answer.choices else None
        if text is None:
            raise DataError(f"policy {model!r} answered without text; expected one choice with a message")
        return Completion(
            text=text,
            model=answer.model,
            latency_ms=round((time.monotonic() - began) * 1000),
            prompt_tokens=answer.usage.prompt_tokens if answer.usage else None,
            completion_tokens=answer.usage.completion_tokens if answer.usage else None,
        )

    async def score_prompt(self, *, model: str, token_ids: Sequence[int]) -> list[float]:
        """How likely the model finds each token of a text but the first, given those before: log-probabilities in nats.

        Only vLLM tells: `prompt_logprobs` of `/v1/completions`.

        Raises:
            TransientError: As of `complete`.
            ConfigError: Likewise, and where the endpoint is not vLLM.
        """
        if self._client is None:
            raise ConfigError("the policy client is closed; use it inside `async with PolicyClient(...)`")
        with _translate_errors(model):
            answer = await self._client.completions.create(
                model=model, prompt=list(token_ids), max_tokens=1, temperature=0, extra_body={"prompt_logprobs": 0}
            )
        given = getattr(answer.choices[0], "prompt_logprobs", None) if answer.choices else None
        if given is None or len(given) != len(token_ids):
            raise ConfigError(
                f"policy {model!r}: {self._base_url} gives no prompt_logprobs; serve the checkpoint with vLLM to learn how "
                "likely it finds an answer"
            )
        return [float(of[str(token)]["logprob"]) for token, of in zip(token_ids[1:], given[1:], strict=True)]


@contextmanager
def _translate_errors(model: str) -> Iterator[None]:
    """Turn the client's errors into ours."""
    import openai

    try:
        yield
    except openai.APIConnectionError as e:  # timeouts too
        raise TransientError(
            f"policy {model!r} gave no answer after {MAX_RETRIES + 1} tries: {type(e).__name__}; is its server up?"
        ) from e
    except openai.APIStatusError as e:
        passing = e.status_code in (408, 409, 429) or e.status_code >= 500
        kind = TransientError if passing else ConfigError
        raise kind(
            f"policy {model!r} was refused with HTTP {e.status_code}: {_server_message(e)}",
            facts={"status": e.status_code, "model": model},
        ) from e


def _server_message(e: object) -> str:
    """The server's own error message, cut short because it may quote the request."""
    body = getattr(e, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or "no reason given")[:300]
