"""Has the deployed policies' weights in memory before an agent asks for them."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from babylon_rl.gateway.errors import UpstreamError

if TYPE_CHECKING:
    from babylon_rl.gateway.state import StateSource
    from babylon_rl.gateway.upstreams import Upstreams

logger = logging.getLogger(__name__)

LOOK_S: Final = 0.1


@asynccontextmanager
async def preparing(source: "StateSource", upstreams: "Upstreams") -> AsyncIterator[None]:
    """Until the end of the block, prepare the incumbent and the candidate of each state that `source` comes to know."""
    task = asyncio.create_task(_prepare_each(source, upstreams))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _prepare_each(source: "StateSource", upstreams: "Upstreams") -> None:
    prepared: object = None
    while True:
        state = source.current()
        d = state.deployment
        wanted = {step: state.policies.get(step) for step in (d.incumbent, d.candidate) if step is not None}
        if wanted != prepared:
            for step in wanted:
                try:
                    await upstreams.prepare(state, step)
                except UpstreamError as e:
                    logger.warning("not ready to answer step=%d code=%s detail=%s", step, e.failure.value, e)
                except Exception:
                    logger.exception("not ready to answer step=%d", step)
            prepared = wanted
        await asyncio.sleep(LOOK_S)
