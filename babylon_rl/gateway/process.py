"""Runs a gateway for the duration of a `with` block."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from babylon_rl.common.child_server import running_child
from babylon_rl.database.connection import platform_url

if TYPE_CHECKING:
    from babylon_rl.settings import Settings


@contextmanager
def running_gateway(settings: "Settings", *, into_foreign_game: bool = False) -> Iterator[str]:
    """Yield the base URL, ending in `/v1`, of a gateway.

    That is `BABYLON_GATEWAY_URL` where it is set. Otherwise one is started on a free loopback port; it stops at the end of
    the block, and also when this process dies, however it dies.

    Args:
        settings: All of them; the child gets exactly these, whatever its environment says.
        into_foreign_game: Log calls that name a trajectory in the game's table, though our migrations did not create it.

    Raises:
        ConfigError: The gateway exited before it was ready; the message has the last lines of its log.
        TransientError: It did not answer in time.
    """
    if settings.gateway.url:
        yield settings.gateway.url.rstrip("/")
        return
    platform_url(settings.database)  # starts the embedded server here, so that it outlives the child
    options = ["--into-foreign-game"] if into_foreign_game else []
    told = json.dumps(settings.reveal(), default=str)
    with running_child("babylon_rl.gateway.server", {}, options=options, told=told, what="gateway") as port:
        yield f"http://127.0.0.1:{port}/v1"
