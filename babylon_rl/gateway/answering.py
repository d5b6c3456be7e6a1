"""Who answers a call when the first choice cannot, and how an answer becomes the gateway's own.

What belongs here: fallbacks, breakers, recording, shadows. HTTP is `chat.py`; which step comes first is `routing.py`.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from babylon_rl.deployment.stages import Arm, Stage
from babylon_rl.gateway.breaker import Breaker, Breakers
from babylon_rl.gateway.call import Call
from babylon_rl.gateway.calls import CALLER_LEFT, CallSink
from babylon_rl.gateway.errors import Failure, UpstreamError
from babylon_rl.gateway.heard import Heard
from babylon_rl.gateway.metrics import GatewayMetrics
from babylon_rl.gateway.routing import Route
from babylon_rl.gateway.upstreams import Target, Upstreams
from babylon_rl.policy.wire import RequestError
from babylon_rl.types import Json

if TYPE_CHECKING:
    from babylon_rl.settings import Settings

logger = logging.getLogger(__name__)

MOST_SHADOWS: Final = 64  # under way at once
T = TypeVar("T")


class Answerer:
    """Answers calls, and records each of them once."""

    def __init__(
        self, settings: "Settings", upstreams: Upstreams, sink: CallSink, metrics: GatewayMetrics, breakers: Breakers
    ) -> None:
        self._temperature = settings.serving.serve_temperature
        self._keep_text = settings.gateway.keep_text == "on"
        self._upstreams, self._sink, self._metrics, self._breakers = upstreams, sink, metrics, breakers
        self._shadows: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Shadows that are under way at the end of the block are given up."""
        try:
            yield
        finally:
            for task in self._shadows:
                task.cancel()
            await asyncio.gather(*self._shadows, return_exceptions=True)

    async def answer(self, call: Call) -> Json:
        """The whole answer, under the gateway's own name for it.

        Raises:
            RequestError: Nobody answered; it says why.
        """
        body = await self._ask_in_turn(call, lambda target: target.upstream.answer(call.asked, call.heard))
        self._breaker_of(call).succeed()
        return _rename(body, call)

    async def begin_stream(self, call: Call) -> AsyncIterator[Json]:
        """The answer's chunks, once the first of them is there; until then, another policy may take over.

        Raises:
            RequestError: Nobody answered. Also between chunks, where the stream breaks.
        """

        async def begin(target: Target) -> tuple[Json, AsyncIterator[Json]]:
            chunks = target.upstream.stream(call.asked, call.heard)
            try:
                return await anext(chunks), chunks
            except StopAsyncIteration:
                raise UpstreamError(Failure.FAILED, "its stream was empty") from None

        first, rest = await self._ask_in_turn(call, begin)
        call.note_first_token()
        return self._go_on(call, first, rest)

    async def _go_on(self, call: Call, first: Json, rest: AsyncIterator[Json]) -> AsyncIterator[Json]:
        """A stream that breaks is a failure, however well it began."""
        breaker = self._breaker_of(call)
        async with aclosing(rest):  # type: ignore[type-var]  # a generator, though the protocol need not say so
            try:
                yield _rename(first, call)
                async for chunk in rest:
                    yield _rename(chunk, call)
            except UpstreamError as e:
                breaker.fail()
                raise self._tell(call, e) from e
            except BaseException:
                breaker.let_go()
                raise
            breaker.succeed()

    async def _ask_in_turn(self, call: Call, ask: Callable[[Target], Awaitable[T]]) -> T:
        """Ask the call's own step and, where that fails, the one behind it, which is always tried."""
        behind = call.route.fallback
        if behind is not None and behind != call.step:
            try:
                return await self._ask(call, ask, only_if_healthy=True)
            except UpstreamError as e:
                self._tell(call, e)
                call.fell_back_from, call.step, call.heard = call.step, behind, Heard()
        try:
            return await self._ask(call, ask)
        except UpstreamError as e:
            raise self._tell(call, e) from e

    async def _ask(self, call: Call, ask: Callable[[Target], Awaitable[T]], *, only_if_healthy: bool = False) -> T:
        call.target = target = self._upstreams.find(call.state, call.step)
        breaker = self._breakers.of(target.key)
        if only_if_healthy and not breaker.lets_through():
            raise UpstreamError(Failure.RESTING)
        try:
            return await ask(target)
        except UpstreamError:
            breaker.fail()
            raise
        except BaseException:
            breaker.let_go()
            raise

    def _breaker_of(self, call: Call) -> Breaker:
        """Of who answers; who asks it also tells it how that ended."""
        if call.target is None:
            raise RuntimeError(f"nobody was asked for call {call.id}")
        return self._breakers.of(call.target.key)

    def _tell(self, call: Call, e: UpstreamError) -> RequestError:
        """Log and count a failure; what the caller is told of it."""
        self._metrics.count_failure(call.policy, e.failure.value)
        logger.warning("no answer policy=%s code=%s call=%s", call.policy, e.failure.value, call.id)
        logger.debug("no answer call=%s detail=%s", call.id, e)
        return e.for_caller(call.policy)

    def record(self, call: Call) -> None:
        """Record a call that has ended, or is about to; only the first time counts."""
        if call.is_recorded:
            return
        call.is_recorded = True
        record = call.to_record(temperature=self._temperature, keep_text=self._keep_text)
        self._sink.record(record)
        self._metrics.count(record)
        d = call.state.deployment
        if (
            d.stage is Stage.SHADOW
            and d.candidate is not None
            and call.route.arm is Arm.INCUMBENT
            and call.status == 200
        ):
            self._mirror(call, d.candidate)

    def _mirror(self, call: Call, candidate: int) -> None:
        """Ask the candidate the same; nobody sees what it says."""
        if len(self._shadows) >= MOST_SHADOWS:
            self._metrics.shadows_dropped.inc()
            return
        shadow = Call(
            asked=call.asked.mirrored(datetime.now(UTC)),
            state=call.state,
            route=Route(step=candidate, arm=Arm.SHADOW),
        )
        task = asyncio.create_task(self.finish(shadow, self._hear(shadow)))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _hear(self, call: Call) -> None:
        await self.answer(call)

    async def finish(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        """Do a call's work and record how it ended.

        Raises:
            RequestError: As the work did, for the caller.
        """
        try:
            await work
        except RequestError as e:
            call.status, call.error = e.status, e.code or "invalid_request_error"
            if call.route.arm is not Arm.SHADOW:
                raise
        except asyncio.CancelledError:
            call.status, call.error = CALLER_LEFT, "caller_left"
            raise
        except Exception as e:
            call.status, call.error = 500, "internal_error"
            logger.exception("call failed call=%s", call.id)
            if call.route.arm is not Arm.SHADOW:
                raise RequestError(500, "the gateway failed; its log has the reason", code="internal_error") from e
        finally:
            self.record(call)


def _rename(body: Json, call: Call) -> Json:
    """Under the gateway's id and the policy's name; all else stays as the upstream said it."""
    body["id"], body["model"] = call.id, call.policy
    return body
