"""One request to a chat model, and what its failure means: who must act, and whether waiting helps.

No retry here (`retry.py` is the only layer), no prompt, no reading of replies. `openai` and `litellm` are
imported when first used. The key and the address stay in here: no error or log line carries either.
"""

import asyncio
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol

from babylon_rl.errors import BabylonRLError, ConfigError, DataError, TransientError

logger = logging.getLogger(__name__)

OPENAI_URL: Final = "https://api.openai.com/v1"
# An error code is a server's free text: only these are repeated in a message.
KNOWN_CODES: Final = frozenset(
    [
        "context_length_exceeded",
        "insufficient_quota",
        "invalid_api_key",
        "invalid_request_error",
        "model_not_found",
        "rate_limit_exceeded",
        "server_error",
        "unsupported_parameter",
        "unsupported_value",
    ]
)
Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a model answered, not yet parsed. `text` is empty when it gave no answer or refused."""

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int


class BusyError(TransientError):
    """Asking again may help; not before `retry_after_s` when the server named a time.

    Attributes:
        maybe_paid: The request was sent and no status came back: the server may have done the work, and charge for it.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, maybe_paid: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.maybe_paid = maybe_paid


class TooLongError(DataError):
    """The prompt does not fit the judge's context; a shorter one may."""


class Endpoint(Protocol):
    """A chat model that can be asked."""

    async def ask(
        self, messages: list[Message], response_format: Mapping[str, Any], *, max_completion_tokens: int
    ) -> Reply:
        """Send one request, once.

        Raises:
            BusyError: Timeout, lost connection, 408, 409, 429 or 5xx.
            TooLongError: The server says that this prompt is longer than its context.
            DataError: The server refuses this prompt (400, 422) for another reason.
            ConfigError: The server refuses us: key, model, address or quota.
        """

    async def close(self) -> None:
        """Close connections, in the loop that asked; asking again opens new ones."""


class OpenAIEndpoint:
    """Any OpenAI-compatible server through `openai.AsyncOpenAI`."""

    def __init__(self, model: str, *, api_key: str | None, base_url: str | None, timeout_s: float) -> None:
        self._model = model
        self._api_key = api_key or "none"  # local servers ask for none
        self._base_url = base_url or OPENAI_URL  # always given: without it the client would read OPENAI_BASE_URL
        # OpenAI's newer models refuse the old name, other servers may not know the new one.
        self._cap = "max_tokens" if base_url else "max_completion_tokens"
        self._timeout_s = timeout_s
        self._client: Any = None

    async def ask(
        self, messages: list[Message], response_format: Mapping[str, Any], *, max_completion_tokens: int
    ) -> Reply:
        import openai

        failure: BabylonRLError
        try:
            # The client's own timeout restarts with every byte; a server that sends slowly would never reach it.
            async with asyncio.timeout(self._timeout_s):
                completion = await self._connect().chat.completions.create(
                    model=self._model,
                    messages=messages,
                    response_format=response_format,
                    **{self._cap: max_completion_tokens},
                )
            return _parse_completion(completion)
        except (TimeoutError, openai.APITimeoutError):
            failure = BusyError(f"judge {self._model!r} did not answer within {self._timeout_s:g} s", maybe_paid=True)
        except openai.APIStatusError as e:
            failure = _classify_status(self._model, e.status_code, e.code or e.type, e.response.headers)
        except openai.APIConnectionError as e:
            cause = type(e.__cause__).__name__ if e.__cause__ else "no detail"
            # A connection refused never carried the request; one that broke may have.
            failure = BusyError(
                f"judge {self._model!r} could not be reached ({cause}); check JUDGE_BASE_URL",
                maybe_paid=cause != "ConnectError",
            )
        except (openai.OpenAIError, ValueError) as e:
            failure = BusyError(
                f"judge {self._model!r} answered something that is no completion ({type(e).__name__})", maybe_paid=True
            )
        raise failure  # outside `except`: a chained error would carry the request, and with it the key

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _connect(self) -> Any:
        import openai

        if self._client is None:
            self._client = openai.AsyncOpenAI(
                api_key=self._api_key, base_url=self._base_url, timeout=self._timeout_s, max_retries=0
            )
        return self._client


class LiteLlmEndpoint:
    """Every other provider, through litellm, which reads key and address from the provider's own variables."""

    def __init__(self, model: str, *, timeout_s: float) -> None:
        self._model = model
        self._timeout_s = timeout_s

    async def ask(
        self, messages: list[Message], response_format: Mapping[str, Any], *, max_completion_tokens: int
    ) -> Reply:
        litellm = load_litellm()
        failure: BabylonRLError
        try:
            async with asyncio.timeout(self._timeout_s):
                completion = await litellm.acompletion(
                    model=self._model,
                    messages=messages,
                    response_format=dict(response_format),
                    max_tokens=max_completion_tokens,
                    timeout=self._timeout_s,
                    num_retries=0,
                    max_retries=0,
                    caching=False,
                )
            return _parse_completion(completion)
        except TimeoutError:
            failure = BusyError(f"judge {self._model!r} did not answer within {self._timeout_s:g} s", maybe_paid=True)
        except Exception as e:  # noqa: BLE001  # each provider brings its own errors; what they share is a status code
            failure = _classify_litellm_error(self._model, e)
        raise failure

    async def close(self) -> None:
        """Nothing to close: litellm manages its own clients."""


def load_litellm() -> Any:
    """Import litellm (seconds) without letting it fetch its price list from the network."""
    # Set, not read: litellm's only switch for this, which it reads when it is imported.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    litellm.suppress_debug_info = True  # it prints to stdout otherwise
    return litellm


def _classify_status(model: str, status: int, code: object, headers: Mapping[str, str]) -> BabylonRLError:
    """Turn an HTTP status into one of our errors. The body stays out of it: some servers echo the key."""
    cause = f"HTTP {status}" + (f" {code}" if code in KNOWN_CODES else "")
    if status == 429 and code == "insufficient_quota":
        return ConfigError(f"judge {model!r} is out of quota ({cause}); top the account up or set another JUDGE_MODEL")
    if status in (408, 409, 425, 429) or status >= 500:
        return BusyError(f"judge {model!r} is busy ({cause})", retry_after_s=retry_after_s(headers))
    if code == "context_length_exceeded" or status == 413:
        return TooLongError(
            f"the prompt is longer than judge {model!r} takes ({cause}); set a JUDGE_MODEL that takes more"
        )
    if status in (400, 422):
        return DataError(f"judge {model!r} refuses the prompt ({cause}); see the judge's own log for the reason")
    hint = {
        401: "set OPENAI_API_KEY to a key that it knows",
        402: "top the account up",
        403: "ask for access, or set another JUDGE_MODEL",
        404: "correct JUDGE_MODEL or JUDGE_BASE_URL",
    }.get(status, "check JUDGE_MODEL and JUDGE_BASE_URL")
    return ConfigError(f"judge {model!r} refuses us ({cause}); {hint}")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks us to wait: `retry-after-ms`, or `Retry-After` as seconds or as a date."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            wait = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if math.isfinite(wait):
            return max(0.0, wait)
    try:
        at = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    now = datetime.now(UTC)
    return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds())


def _classify_litellm_error(model: str, e: Exception) -> BabylonRLError:
    status = getattr(e, "status_code", None)
    code = getattr(e, "code", None)
    if type(e).__name__ == "ContextWindowExceededError":
        code = "context_length_exceeded"
    response = getattr(e, "response", None)
    headers = getattr(response, "headers", None) or getattr(e, "litellm_response_headers", None) or {}
    if isinstance(status, int):
        return _classify_status(model, status, code, headers)
    return BusyError(f"judge {model!r} could not be asked ({type(e).__name__})", maybe_paid=True)


def _parse_completion(completion: Any) -> Reply:
    """Read a completion leniently: one without choices is an empty reply; only a proxy's error page is refused."""
    choices = getattr(completion, "choices", None)
    if choices is None and not hasattr(completion, "usage"):
        raise ValueError("not a chat completion")
    choice = choices[0] if choices else None
    usage = getattr(completion, "usage", None)
    return Reply(
        text=(getattr(getattr(choice, "message", None), "content", None) or "") if choice else "",
        finish_reason=getattr(choice, "finish_reason", None),
        prompt_tokens=int(getattr(usage, "prompt_tokens", 0) or 0),
        completion_tokens=int(getattr(usage, "completion_tokens", 0) or 0),
    )
