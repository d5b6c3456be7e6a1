"""What our two endpoints share: bodies read within a limit, errors in OpenAI's shape, and running an application."""

import asyncio
import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from babylon_rl.policy.wire import RequestError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

logger = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 1 << 20
REQUEST_TIMEOUT_S: Final = 30.0  # for the first request of a connection, headers included
_DRAIN_S: Final = 2.0
_DRAIN_BYTES: Final = 16 << 20


async def read_body(receive: "Receive") -> bytes:
    """The body, counted while it arrives: its length may be unknown, and what is too long is never held.

    Raises:
        RequestError: It is longer than `MAX_BODY_BYTES`, or its sender left before its end.
    """
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError(400, "the request ended before its body did; send it again")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise RequestError(413, f"the request is longer than allowed; send at most {MAX_BODY_BYTES} bytes")
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def respond_to_error(e: RequestError, headers: dict[str, str] | None = None) -> Response:
    """The response that says what is wrong."""
    kind = _UnreadResponse if e.status == 413 else JSONResponse
    return kind(e.body, status_code=e.status, headers=headers)


async def answer_error(_: Request, e: Exception) -> Response:
    """Handler of `RequestError` for an application."""
    if not isinstance(e, RequestError):
        raise e
    return respond_to_error(e)


class _UnreadResponse(JSONResponse):
    """Answers before the body has ended, then reads on for a moment and forgets what it reads.

    Closed at once, the connection would be reset under a caller that is still sending, who might never see the answer.
    """

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        self.headers["connection"] = "close"
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                left, more = _DRAIN_BYTES, True
                while more and left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    more = message.get("more_body", False)  # there is none once the caller has gone
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def make_protocol() -> type[asyncio.Protocol]:
    """Uvicorn's protocol, which waits `REQUEST_TIMEOUT_S` for a connection's first request; its own waits for ever.

    A silent connection holds a file descriptor, and a process has few of them.
    """
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # which of two it is, uvicorn finds out
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._waiting = self.loop.call_later(REQUEST_TIMEOUT_S, self._close_if_silent)

        def connection_lost(self, exc: Exception | None) -> None:
            self._waiting.cancel()
            super().connection_lost(exc)

        def _close_if_silent(self) -> None:
            if self.cycle is None and not self.transport.is_closing():  # no request has come
                self.transport.close()

    return Protocol


def run_app(app: FastAPI, *, host: str, port: int, listener: socket.socket | None, what: str) -> None:
    """Serve an application until SIGINT or SIGTERM.

    Args:
        app: The application.
        host: Address to listen on.
        port: 0 takes a free one; the log names it.
        listener: A bound socket to use instead of `host` and `port`.
        what: Said in the log beside the address.
    """
    import uvicorn

    if listener is None:
        listener = socket.create_server((host, port), backlog=2048)
    else:
        listener.listen(2048)
    address, bound_port = listener.getsockname()[:2]

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                logger.info("serving url=http://%s:%d/v1 %s", address, bound_port, what)

    config = uvicorn.Config(
        app, http=make_protocol(), lifespan="on", log_config=None, access_log=False, timeout_graceful_shutdown=5
    )
    server = Server(config)
    server.run(sockets=[listener])
    if not server.started:
        raise SystemExit(3)
