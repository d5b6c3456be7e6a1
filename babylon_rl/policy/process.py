"""Runs a policy server for the duration of a `with` block."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from babylon_rl.common.child_server import running_child
from babylon_rl.database.connection import platform_url
from babylon_rl.policy.shipped import shipped_base

if TYPE_CHECKING:
    from babylon_rl.settings import DatabaseSettings, TrainingSettings
    from babylon_rl.settings.live import ServingSettings


def base_of(settings: "TrainingSettings") -> Path:
    """Directory of the base policy that the settings name, or of the shipped one."""
    return Path(settings.base_model) if settings.base_model else shipped_base()


@contextmanager
def running_server(
    settings: "ServingSettings", database: "DatabaseSettings", *, base: Path, checkpoints: Path, lineage: str
) -> Iterator[str]:
    """Yield the base URL, ending in `/v1`, of an endpoint that serves the checkpoints.

    That is `settings.inference_url` where it is set. Otherwise a server is started on a free loopback port; it stops
    at the end of the block, and also when this process dies, however it dies.

    Args:
        settings: The URL of a running endpoint, or the temperature to serve with.
        database: Of the ledger, whose recorded checkpoints are served.
        base: Directory of the base policy.
        checkpoints: Directory under which every checkpoint lies.
        lineage: The lineage that can be asked for before its first checkpoint.

    Raises:
        ConfigError: The server exited before it was ready; the message has the last lines of its log.
        TransientError: It did not answer in time.
    """
    if settings.inference_url:
        yield settings.inference_url.rstrip("/")
        return
    arguments = {
        "--base": base,
        "--root": checkpoints,
        "--temperature": settings.serve_temperature,
        "--lineage": lineage,
    }
    told = platform_url(database)
    with running_child("babylon_rl.policy.server", arguments, told=told, what="policy server") as port:
        yield f"http://127.0.0.1:{port}/v1"
