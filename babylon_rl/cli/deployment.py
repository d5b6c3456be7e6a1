"""The commands about what is deployed: `deploy`, `rollback`, `pause`, `resume`, `deployment`. `cli/main.py` puts them beside the others."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from babylon_rl.errors import ConfigError
from babylon_rl.settings import Settings

if TYPE_CHECKING:  # opening a database loads its driver
    from babylon_rl.pipeline.workspace import Workspace

app = typer.Typer()
console = Console()
Reason = Annotated[str | None, typer.Option(help="Why, in your words; kept with the move.")]


@app.command()
def deploy(
    step: Annotated[str | None, typer.Argument(help="Checkpoint: 3 or babylon-mmo@3; default the newest.")] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="First ask it beside the incumbent; nobody sees it.")
    ] = False,
    at_once: Annotated[bool, typer.Option("--at-once", help="For all agents from now on, without a trial.")] = False,
    without_evaluation: Annotated[
        bool, typer.Option("--without-evaluation", help="Also where its evaluation is missing or shows no gain.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Also where it was rolled back before.")] = False,
) -> None:
    """Put a checkpoint on trial with live agents: a tenth of them, then half, then all, as far as it earns more."""
    from babylon_rl.cli.deployment_screen import describe_move
    from babylon_rl.pipeline import operate

    if shadow and at_once:
        raise ConfigError("--shadow asks a checkpoint for nobody and --at-once lets it answer everybody; choose one")
    with _open_workspace() as workspace:
        move = operate.deploy(
            workspace,
            None if step is None else _parse_step(step, workspace.settings.lineage),
            shadow=shadow,
            at_once=at_once,
            without_evaluation=without_evaluation,
            again=again,
        )
    _print(describe_move(move))


@app.command()
def rollback(
    to: Annotated[str | None, typer.Option(help="Step that answers everybody afterwards.")] = None,
    reason: Reason = None,
) -> None:
    """Take the checkpoint on trial out of service or, where none is, the incumbent itself."""
    from babylon_rl.cli.deployment_screen import describe_move
    from babylon_rl.pipeline import operate

    with _open_workspace() as workspace:
        target = None if to is None else _parse_step(to, workspace.settings.lineage)
        moves = operate.roll_back(workspace, target, reason=reason)
    for move in moves:
        _print(describe_move(move))
    _print(f"{moves[-1].after.incumbent_name} answers everybody")


@app.command()
def pause(reason: Reason = None) -> None:
    """Keep what is deployed as it is: nothing is promoted or rolled back by itself until `resume`."""
    _pause(paused=True, reason=reason)


@app.command()
def resume(reason: Reason = None) -> None:
    """Let the platform move the deployment by itself again."""
    _pause(paused=False, reason=reason)


@app.command()
def deployment(
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
    last: Annotated[int, typer.Option(min=0, help="Moves to show.")] = 8,
) -> None:
    """Show which checkpoint answers agents, which is on trial, what its trial says, and the last moves."""
    from babylon_rl.cli.deployment_screen import describe, wrap
    from babylon_rl.pipeline.deployment_status import read_status

    with _open_workspace() as workspace:
        status = read_status(workspace, last=last)
    if as_json:
        sys.stdout.write(json.dumps(status.facts(), indent=2, ensure_ascii=False) + "\n")
        return
    for line in describe(status):
        _print(wrap(line, console.width) if console.is_terminal else line)


def _pause(*, paused: bool, reason: str | None) -> None:
    from babylon_rl.cli.deployment_screen import describe_move
    from babylon_rl.pipeline import operate

    with _open_workspace() as workspace:
        move = operate.pause(workspace, paused=paused, reason=reason)
    _print(describe_move(move))


@contextmanager
def _open_workspace() -> Iterator["Workspace"]:
    from babylon_rl.database.migrate import upgrade
    from babylon_rl.pipeline.workspace import open_workspace

    settings = Settings.load()
    upgrade(settings.database)
    with open_workspace(settings) as workspace:
        yield workspace


def _parse_step(text: str, lineage: str) -> int:
    """A step, as a number or as a policy's name; as numbers, @10 is newer than @9."""
    name, mark, number = text.rpartition("@")
    if mark and name not in ("", lineage):
        raise ConfigError(f"{text!r} is of lineage {name!r}; this one is {lineage!r} (BABYLON_LINEAGE)")
    if not number.isascii() or not number.isdigit():
        raise ConfigError(f"{text!r} is no step; expected a number such as 3, or a name such as {lineage}@3")
    return int(number)


def _print(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
