"""`POST /v1/chat/completions` over ASGI: a caller that leaves is noticed while its answer is made."""

import asyncio
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from babylon_rl.gateway.access import Access
from babylon_rl.gateway.answering import Answerer
from babylon_rl.gateway.call import Call
from babylon_rl.gateway.metrics import GatewayMetrics
from babylon_rl.gateway.reading import Asked
from babylon_rl.gateway.routing import choose_route
from babylon_rl.gateway.sse import DONE_EVENT, write_event
from babylon_rl.gateway.state import StateSource
from babylon_rl.policy.http import read_body, respond_to_error
from babylon_rl.policy.wire import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Message, Receive, Scope, Send

BODY_TIMEOUT_S: Final = 30.0
SEND_TIMEOUT_S: Final = 60.0  # for a caller that no longer reads


class ChatEndpoint:
    """The route as an ASGI application: Starlette's own responses would not tell that a caller left."""

    def __init__(
        self,
        *,
        access: Access,
        state: StateSource,
        answerer: Answerer,
        metrics: GatewayMetrics,
        test_agents: "Sequence[str]",
    ) -> None:
        self._access, self._state, self._answerer, self._metrics = access, state, answerer, metrics
        self._test_agents = test_agents

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        try:
            self._access.check(scope["headers"])
            call = await self._read(scope, receive)
        except RequestError as e:
            self._metrics.count_refusal(e.status)
            await respond_to_error(e)(scope, receive, send)
            return
        response = _Response(send, call)
        with self._metrics.in_flight.track_inprogress():
            answering = asyncio.create_task(self._answerer.finish(call, self._answer(call, response)))
            leaving = asyncio.create_task(_wait_until_gone(receive))
            try:
                await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            finally:
                leaving.cancel()
                if not answering.done():
                    answering.cancel()
            with suppress(asyncio.CancelledError):
                try:
                    await answering
                except RequestError as e:
                    await response.fail(e)

    async def _read(self, scope: "Scope", receive: "Receive") -> Call:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await read_body(receive)
        except TimeoutError:
            raise RequestError(408, f"the body did not end within {BODY_TIMEOUT_S:.0f} s; send it again") from None
        asked = Asked.read(body, scope["headers"], datetime.now(UTC))
        state = self._state.current()
        route = choose_route(state, asked.model, asked.agent_id, self._test_agents)
        return Call(asked=asked, state=state, route=route)

    async def _answer(self, call: Call, response: "_Response") -> None:
        if not call.asked.stream:
            body = msgspec.json.encode(await self._answerer.answer(call))
            self._answerer.record(call)  # before the answer has ended: one that a caller has is recorded
            await response.send_json(200, body)
            return
        async with aclosing(await self._answerer.begin_stream(call)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                await response.send_event(write_event(chunk))
        self._answerer.record(call)
        await response.send_event(DONE_EVENT)
        await response.end()


class _Response:
    """What is sent of one call's response."""

    def __init__(self, send: "Send", call: Call) -> None:
        self._send_message, self._call = send, call
        self._has_begun = False

    async def send_json(self, status: int, body: bytes) -> None:
        await self._begin(status, "application/json", len(body))
        await self._send({"type": "http.response.body", "body": body})

    async def send_event(self, event: bytes) -> None:
        if not self._has_begun:
            await self._begin(200, "text/event-stream", None)
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, e: RequestError) -> None:
        """Say what went wrong: as the response or, in the middle of a stream, as its last event."""
        if self._has_begun:
            await self.send_event(write_event(e.body))
            await self.end()
        else:
            await self.send_json(e.status, msgspec.json.encode(e.body))

    async def _begin(self, status: int, kind: str, length: int | None) -> None:
        self._has_begun = True
        headers = {"content-type": kind, "cache-control": "no-store", **self._call.headers}
        if length is not None:
            headers["content-length"] = str(length)
        pairs = [(k.encode(), v.encode()) for k, v in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def _send(self, message: "Message") -> None:
        """Send; a caller that does not read for long is taken for gone."""
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._send_message(message)
        except (TimeoutError, OSError):
            raise asyncio.CancelledError from None
        except RuntimeError as e:
            if "the handler is closed" not in str(e):
                raise
            raise asyncio.CancelledError from None  # uvloop's word for a caller that left a moment ago


async def _wait_until_gone(receive: "Receive") -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
