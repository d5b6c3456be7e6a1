"""An upstream that speaks OpenAI's protocol: vLLM, W&B, or any base model. What we do not know is passed through.

aiohttp carries the requests, as in `policy/client.py` and for its reason. This is the only layer that retries: two more
tries where nothing of an answer has come.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

from babylon_rl.gateway.errors import Failure, UpstreamError
from babylon_rl.gateway.heard import Heard
from babylon_rl.gateway.reading import Asked, decode_json
from babylon_rl.gateway.sse import DONE, EventReader
from babylon_rl.policy.client import LOOPBACK
from babylon_rl.policy.wire import RequestError, build_chunk
from babylon_rl.types import Json

if TYPE_CHECKING:
    import aiohttp
    from pydantic import SecretStr

RETRY_WAITS_S: Final = (0.1, 0.3)
CONNECT_TIMEOUT_S: Final = 5.0
MOST_BYTES: Final = 16 << 20  # of an answer
LAST_BYTES_S: Final = 0.1
_PASSING: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_CALLERS_FAULT: Final = frozenset({400, 413, 415, 422})


@asynccontextmanager
async def open_session(timeout_s: float) -> "AsyncIterator[aiohttp.ClientSession]":
    """One pool of connections for all upstreams.

    Args:
        timeout_s: Seconds without a byte after which a request has failed.
    """
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=timeout_s)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=15)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        yield session


def find_proxy(base_url: str) -> str | None:
    """The environment's proxy for an address; loopback is never behind one.

    Not aiohttp's `trust_env`: that also reads ~/.netrc on each request, and refuses one that has a key of its own.
    """
    parts = urlsplit(base_url)
    if parts.hostname is None or parts.hostname in LOOPBACK or proxy_bypass(parts.netloc):
        return None
    return getproxies().get(parts.scheme)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIUpstream:
    """One model of an endpoint; an `Upstream`.

    Attributes:
        base_url: Ends in `/v1`.
        model: Its name there.
        name: The policy's.
        key: Sent as a bearer token; None: none is.
        project: Who is billed, where the endpoint asks.
        proxy: Between us and it.
        temperature: For requests that name none.
        most_tokens: Longest answer.
    """

    session: "aiohttp.ClientSession"
    base_url: str
    model: str
    name: str
    key: "SecretStr | None"
    project: str | None
    proxy: str | None
    temperature: float
    most_tokens: int

    async def answer(self, asked: Asked, heard: Heard) -> Json:
        async with self._ask(self._fields(asked)) as response:
            body = _read_answer(await self._read(response, MOST_BYTES))
        heard.take_completion(body)
        return body

    async def stream(self, asked: Asked, heard: Heard) -> AsyncIterator[Json]:
        fields = self._fields(asked)
        options = fields.get("stream_options")
        # What an answer cost is recorded, so it is always asked for, and told to callers who asked too.
        fields["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        longest = asked.limit_of(self.most_tokens)
        async with self._ask(fields) as response:
            if "event-stream" not in response.headers.get("content-type", ""):
                chunk = build_chunk(_read_answer(await self._read(response, MOST_BYTES)))
                heard.take_chunk(chunk)
                yield chunk
                return
            async for chunk in self._chunks(response, heard):
                heard.take_chunk(chunk)
                if chunk.get("choices") == [] and chunk.get("usage") is not None and not asked.include_usage:
                    continue
                if heard.pieces > longest:
                    heard.finish_reason = "length"
                    yield _end_early(chunk)
                    return
                yield chunk

    async def prepare(self) -> None:
        """Its server loads what it serves."""

    async def _chunks(self, response: "aiohttp.ClientResponse", heard: Heard) -> AsyncIterator[Json]:
        reader = EventReader()
        while piece := await self._next_piece(response):
            try:
                for data in reader.feed(piece):
                    if data == DONE:
                        await self._finish(response)
                        return
                    chunk = _read_object(data)
                    if "error" in chunk:
                        raise UpstreamError(Failure.BROKEN, "an event of its stream is an error")
                    yield chunk
            except ValueError as e:
                raise UpstreamError(Failure.BROKEN, str(e)) from e
        if heard.finish_reason is None:
            raise UpstreamError(Failure.BROKEN, "its stream ended before the answer did")

    async def _finish(self, response: "aiohttp.ClientResponse") -> None:
        """Read the end of a stream, which comes together with `[DONE]`: only then can its connection be used again."""
        with suppress(TimeoutError, UpstreamError):
            async with asyncio.timeout(LAST_BYTES_S):
                while await self._next_piece(response):
                    pass

    def _fields(self, asked: Asked) -> Json:
        return asked.fields_for(self.model, temperature=self.temperature, most_tokens=self.most_tokens)

    @asynccontextmanager
    async def _ask(self, fields: Json) -> "AsyncIterator[aiohttp.ClientResponse]":
        """The response with status 200, after at most two more tries; closed at the end, also in its middle."""
        body = msgspec.json.encode(fields)
        async with AsyncExitStack() as stack:
            yield await self._ask_again(body, stack)

    async def _ask_again(self, body: bytes, stack: AsyncExitStack) -> "aiohttp.ClientResponse":
        for wait_s in RETRY_WAITS_S:
            try:
                return await self._ask_once(body, stack)
            except UpstreamError as e:
                if not e.passing:
                    raise
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311  # no secret
        return await self._ask_once(body, stack)

    async def _ask_once(self, body: bytes, stack: AsyncExitStack) -> "aiohttp.ClientResponse":
        response = await self._post(body)
        stack.callback(response.close)
        await self._check(response)
        return response

    async def _post(self, body: bytes) -> "aiohttp.ClientResponse":
        import aiohttp

        headers = {"content-type": "application/json"}
        if self.key is not None:
            headers["authorization"] = f"Bearer {self.key.get_secret_value()}"
        if self.project is not None:
            headers["openai-project"] = self.project
        try:
            return await self.session.post(
                f"{self.base_url}/chat/completions", data=body, headers=headers, allow_redirects=False, proxy=self.proxy
            )
        except aiohttp.ConnectionTimeoutError as e:
            raise UpstreamError(Failure.UNREACHABLE, type(e).__name__, passing=True) from e
        except TimeoutError as e:
            raise UpstreamError(Failure.TIMED_OUT, type(e).__name__) from e
        except (aiohttp.ClientError, OSError, ValueError) as e:
            raise UpstreamError(Failure.UNREACHABLE, type(e).__name__, passing=True) from e

    async def _check(self, response: "aiohttp.ClientResponse") -> None:
        status = response.status
        if status == 200:
            return
        if status in _CALLERS_FAULT:
            raise self._tell_caller(status, await self._read(response, 1 << 16, cut=True))
        failure = {429: Failure.OVERLOADED, 503: Failure.OVERLOADED, 401: Failure.REFUSED, 403: Failure.REFUSED}.get(
            status, Failure.REFUSED if status == 404 else Failure.FAILED
        )
        raise UpstreamError(failure, f"HTTP {status}", passing=status in _PASSING)

    def _tell_caller(self, status: int, body: bytes) -> RequestError:
        """What the upstream says is wrong with the request, without its address, its key and its model's name."""
        try:
            error = _read_object(body).get("error")
        except UpstreamError:
            error = None
        error = error if isinstance(error, dict) else {}
        message = str(error.get("message") or f"{self.name} refused the request with HTTP {status}")
        param, code = (self._hide(v)[:100] if isinstance(v := error.get(n), str) else None for n in ("param", "code"))
        return RequestError(status, self._hide(message)[:500], param=param, code=code)

    def _hide(self, text: str) -> str:
        secret = "" if self.key is None else self.key.get_secret_value()
        for hidden in (secret, self.base_url, urlsplit(self.base_url).netloc):
            text = text.replace(hidden, "…") if hidden else text
        return text.replace(self.model, self.name)

    async def _read(self, response: "aiohttp.ClientResponse", most: int, *, cut: bool = False) -> bytes:
        parts, size = [], 0
        while piece := await self._next_piece(response):
            size += len(piece)
            parts.append(piece)
            if size > most:
                if cut:
                    break
                raise UpstreamError(Failure.FAILED, f"the answer has more than {most} bytes")
        return b"".join(parts)

    async def _next_piece(self, response: "aiohttp.ClientResponse") -> bytes:
        """The next bytes; none at the end."""
        import aiohttp

        try:
            return await response.content.readany()
        except TimeoutError as e:
            raise UpstreamError(Failure.TIMED_OUT, type(e).__name__) from e
        except (aiohttp.ClientError, OSError, ValueError) as e:
            raise UpstreamError(Failure.BROKEN, type(e).__name__) from e


def _read_object(data: bytes) -> Json:
    try:
        found = decode_json(data)
    except (ValueError, RecursionError) as e:
        raise UpstreamError(Failure.FAILED, "the answer is not JSON") from e
    if not isinstance(found, dict):
        raise UpstreamError(Failure.FAILED, "the answer is JSON, but no object")
    return found


def _read_answer(data: bytes) -> Json:
    """A `chat.completion`; some servers say with status 200 that they failed."""
    body = _read_object(data)
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(c, dict) and "message" in c for c in choices):
        raise UpstreamError(Failure.FAILED, "the answer has no message")
    return body


def _end_early(chunk: Json) -> Json:
    """The last chunk of an answer that is longer than allowed."""
    choices = [{**c, "delta": {}, "finish_reason": "length"} for c in chunk["choices"]]
    return {**chunk, "choices": choices}
