"""One request to a chat model, and what its failure means: who must act, and whether waiting helps.

No retry here (`circuit_breaker.py` is the only layer), no prompt, no reading of replies. `httpx` and `litellm` are
imported when first used. The key and the address stay in here: no error or log line carries either.
"""

import asyncio
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol

from babylon_rl.errors import BabylonRLError, ConfigError, DataError
from babylon_rl.judging.judge import UnavailableError
from babylon_rl.judging.ruler.completion import NoCompletionError, Reply, decode_completion, read_completion

logger = logging.getLogger(__name__)

OPENAI_URL: Final = "https://api.openai.com/v1"
MAX_BODY_BYTES: Final = 4_000_000  # a hundred times the longest honest answer; reading stops here
LONGEST_RETRY_AFTER_S: Final = 86_400.0  # a server that names a longer wait is asked again after a day
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
# Under whatever status: no other prompt would fare better.
_REFUSALS: Final = {
    "insufficient_quota": "is out of quota ({cause}); top the account up or set another JUDGE_MODEL",
    "invalid_api_key": "refuses us ({cause}); set OPENAI_API_KEY to a key that it knows",
    "model_not_found": "refuses us ({cause}); correct JUDGE_MODEL or JUDGE_BASE_URL",
    "unsupported_parameter": "does not take our requests ({cause}); set another JUDGE_MODEL",
    "unsupported_value": "does not take our requests ({cause}); set another JUDGE_MODEL",
}
Message = dict[str, str]


class BusyError(UnavailableError):
    """One request failed in a way that may pass.

    Attributes:
        maybe_paid: The server may have done the work, and charge for it.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, maybe_paid: bool = False) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
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
            BusyError: Timeout, lost connection, 408, 409, 425, 429 or 5xx, or an answer that is no completion.
            TooLongError: The server says that this prompt is longer than its context.
            DataError: The server refuses this prompt (400, 422) for another reason.
            ConfigError: The server refuses us: key, model, address, quota, or what we send with every prompt.
        """

    async def close(self) -> None:
        """Close connections, in the loop that asked; asking again opens new ones."""


class OpenAIEndpoint:
    """Any OpenAI-compatible server.

    By plain HTTP and not through `openai`, which reads the body of an answer or of an error whole, however long it is.
    """

    def __init__(self, model: str, *, api_key: str | None, base_url: str | None, timeout_s: float) -> None:
        self._model = model
        self._api_key = api_key or "none"  # local servers ask for none
        self._url = (base_url or OPENAI_URL).rstrip("/") + "/chat/completions"
        # OpenAI's newer models refuse the old name, other servers may not know the new one.
        self._cap = "max_tokens" if base_url else "max_completion_tokens"
        self._timeout_s = timeout_s
        self._client: Any = None

    async def ask(
        self, messages: list[Message], response_format: Mapping[str, Any], *, max_completion_tokens: int
    ) -> Reply:
        import httpx

        question = {
            "model": self._model,
            "messages": messages,
            "response_format": response_format,
            self._cap: max_completion_tokens,
        }
        failure: BabylonRLError
        try:
            # The client's own timeout restarts with every byte; a server that sends slowly would never reach it.
            async with asyncio.timeout(self._timeout_s):
                async with self._connect().stream("POST", self._url, json=question) as response:
                    body = await _read_body(response)
            if response.is_success:
                return _TOO_LONG_ANSWER if body is None else decode_completion(body)
            failure = _classify_status(self._model, response.status_code, _read_code(body or b""), response.headers)
        except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout):
            failure = BusyError(f"judge {self._model!r} did not answer within {self._timeout_s:g} s", maybe_paid=True)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as e:
            failure = ConfigError(
                f"judge {self._model!r} cannot be asked ({type(e).__name__}); correct JUDGE_BASE_URL or OPENAI_API_KEY"
            )
        except httpx.HTTPError as e:
            # A connection refused never carried the request; one that broke may have.
            refused = isinstance(e, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.ProxyError)
            what = "could not be reached" if refused else "broke the connection off"
            failure = BusyError(
                f"judge {self._model!r} {what} ({type(e).__name__}); check JUDGE_BASE_URL", maybe_paid=not refused
            )
        except NoCompletionError as e:
            failure = BusyError(
                f"judge {self._model!r} answered something that is no completion ({e})", maybe_paid=True
            )
        raise failure  # outside `except`: a chained error would carry the request, and with it the key

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _connect(self) -> Any:
        import httpx

        if self._client is None:
            self._client = httpx.AsyncClient(
                # Uncompressed: a few bytes that unpack to gigabytes would pass the limit.
                headers={"Authorization": f"Bearer {self._api_key}", "Accept-Encoding": "identity"},
                timeout=self._timeout_s,
                limits=httpx.Limits(max_connections=None),
                follow_redirects=True,
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
            litellm.get_llm_provider(self._model)
        except Exception as e:  # noqa: BLE001  # an error of litellm's own; nothing was sent
            failure = ConfigError(
                f"JUDGE_MODEL is {self._model!r}, whose provider litellm does not know ({type(e).__name__}); expected "
                "`<provider>/<model>`; correct it, or set JUDGE_BASE_URL to a server that answers under that name"
            )
            raise failure from None
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
            return read_completion(completion.model_dump(warnings=False))
        except TimeoutError:
            failure = BusyError(f"judge {self._model!r} did not answer within {self._timeout_s:g} s", maybe_paid=True)
        except Exception as e:  # noqa: BLE001  # each provider brings its own errors; what they share is a status code
            if "Invalid response object" in str(e):  # litellm's words for an answer that it got and cannot read
                return _UNREADABLE_ANSWER
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


def _without_text(fault: str) -> Reply:
    return Reply(text="", finish_reason=None, prompt_tokens=0, completion_tokens=0, fault=fault)


_TOO_LONG_ANSWER: Final = _without_text(
    f"The answer was longer than {MAX_BODY_BYTES:,} bytes. Send the JSON object of the scores and nothing else."
)
_UNREADABLE_ANSWER: Final = _without_text("The answer does not have the shape of a chat completion.")


async def _read_body(response: Any) -> bytearray | None:
    """The body of a response; None when it is too long, or packed although we asked for it plain."""
    if response.headers.get("content-encoding", "identity") != "identity":
        return None
    body = bytearray()
    async for chunk in response.aiter_raw(65_536):
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return body


def _read_code(body: bytes | bytearray) -> str | None:
    """The known code of an error's body, if it names one."""
    try:
        decoded = json.loads(body)
    except (ValueError, RecursionError):
        return None
    error = decoded.get("error", decoded) if isinstance(decoded, dict) else None
    named = (error.get("code"), error.get("type")) if isinstance(error, dict) else ()
    return next((code for code in named if isinstance(code, str) and code in KNOWN_CODES), None)


def _classify_status(model: str, status: int, code: object, headers: Mapping[str, str]) -> BabylonRLError:
    """Turn an HTTP status into one of our errors. The body stays out of it: some servers echo the key."""
    code = code if isinstance(code, str) and code in KNOWN_CODES else None
    cause = f"HTTP {status}" + (f" {code}" if code else "")
    if code in _REFUSALS and status < 500:
        return ConfigError(f"judge {model!r} " + _REFUSALS[code].format(cause=cause))
    if status in (408, 409, 425, 429) or status >= 500:
        return BusyError(
            f"judge {model!r} is busy ({cause})",
            retry_after_s=retry_after_s(headers),
            # 408 and those above 500 may come from a proxy, behind which the judge did the work. With 500 the judge
            # itself says that it gave no answer, and with 529 (overloaded) that it did not begin.
            maybe_paid=status == 408 or (status > 500 and status != 529),
        )
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
            return min(max(0.0, wait), LONGEST_RETRY_AFTER_S)
    try:
        at = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    now = datetime.now(UTC)
    wait = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(0.0, wait), LONGEST_RETRY_AFTER_S)


def _classify_litellm_error(model: str, e: Exception) -> BabylonRLError:
    # litellm gives 500 to whatever went wrong on its own side; what really happened is what its error was raised from.
    names = {type(c).__name__ for c in _causes(e)}
    if names & {"ConnectError", "ConnectTimeout", "ClientConnectorError"}:
        return BusyError(f"judge {model!r} could not be reached; check the address that its provider's variable names")
    status, code = getattr(e, "status_code", None), getattr(e, "code", None)
    if type(e).__name__ == "ContextWindowExceededError":
        code = "context_length_exceeded"
    answered = next((c for c in _causes(e) if type(c).__name__ == "HTTPStatusError"), None)
    response = getattr(answered or e, "response", None)
    if answered is not None and code is None:
        code = _read_code(getattr(response, "_content", b""))  # empty when litellm did not read the body
    headers = getattr(response, "headers", None) or getattr(e, "litellm_response_headers", None) or {}
    if isinstance(status, int) and status >= 400 and (answered is not None or status != 500):
        return _classify_status(model, status, code, headers)
    return BusyError(f"judge {model!r} gave litellm no usable answer ({type(e).__name__})", maybe_paid=True)


def _causes(e: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, newest first."""
    while e is not None:
        yield e
        e = e.__cause__ or e.__context__
