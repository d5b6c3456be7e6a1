"""Runs the gateway: in the foreground for `babylon-rl gateway`, or as a child process (`process.py`)."""

import argparse
import json
import logging
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from babylon_rl.common.child_server import exit_with_parent, read_line
from babylon_rl.database.connection import game_url, platform_url
from babylon_rl.database.migrate import upgrade
from babylon_rl.errors import ConfigError
from babylon_rl.gateway.access import check_address
from babylon_rl.gateway.app import create_gateway
from babylon_rl.gateway.follower import DeploymentFollower
from babylon_rl.gateway.recording import CallRecorder
from babylon_rl.policy.http import run_app
from babylon_rl.policy.process import base_of
from babylon_rl.policy.shipped import require_base
from babylon_rl.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)


def serve(
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    listener: socket.socket | None = None,
    into_foreign_game: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: All of them.
        host: Address to listen on.
        port: 0 takes a free one; the log names it.
        listener: A bound loopback socket to use instead of `host` and `port`.
        into_foreign_game: Log calls that name a trajectory in the game's table, though our migrations did not create it.

    Raises:
        ConfigError: `host` can be reached by others and no key is set, or its base policy is no model.
    """
    check_address(host, settings.gateway.key)
    if settings.training.trainer == "cpu" and settings.serving.inference_url is None:
        require_base(base_of(settings.training))
    run_app(
        open_gateway(settings, into_foreign_game=into_foreign_game),
        host=host,
        port=port,
        listener=listener,
        what=f"lineage={settings.lineage}",
    )


def migrate_if_reachable(settings: Settings) -> None:
    """Bring our tables up to date, unless the database is away and an earlier gateway left what was deployed.

    Raises:
        ConfigError: The database cannot be used, and nothing is known of what is deployed.
    """
    try:
        upgrade(settings.database)
    except ConfigError as e:
        if not _open_follower(settings).has_kept_state():
            raise
        logger.warning("started by what was deployed when the database last answered: %s", e)


def _folder_of(settings: Settings) -> Path:
    return settings.home / "gateway"


def _open_follower(settings: Settings) -> DeploymentFollower:
    return DeploymentFollower(platform_url(settings.database), settings.lineage, _folder_of(settings))


def open_gateway(settings: Settings, *, into_foreign_game: bool = False) -> "FastAPI":
    """The application with its own follower and recorder, which keep their files under `gateway/` of BABYLON_HOME."""
    folder, url = _folder_of(settings), platform_url(settings.database)
    return create_gateway(
        settings,
        _open_follower(settings),
        CallRecorder(url, folder / "spill", game_url=game_url(settings.database), into_foreign_game=into_foreign_game),
    )


def main(argv: list[str] | None = None) -> None:
    """Serve as a child process: `running_gateway` starts this.

    The first line of stdin is a JSON object of settings, variable → value: they hold secrets, and arguments and the
    environment can be read by others.
    """
    p = argparse.ArgumentParser(prog="babylon_rl.gateway.server", description=main.__doc__)
    p.add_argument("--fd", type=int, required=True, help="descriptor of a bound loopback socket")
    p.add_argument("--parent", type=int, required=True, help="stop when this process dies or closes our stdin")
    p.add_argument("--into-foreign-game", action="store_true")
    a = p.parse_args(argv)
    settings = Settings.load(**json.loads(read_line(sys.stdin.fileno())))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
    exit_with_parent(a.parent)
    serve(settings, listener=socket.socket(fileno=a.fd), into_foreign_game=a.into_foreign_game)


if __name__ == "__main__":
    main()
