"""The commands that carry results to the game and back: `publish`, `trace`. `cli/main.py` puts them beside the others."""

import sys
from datetime import datetime
from typing import Annotated, Final

import typer
from rich.console import Console

from babylon_rl.settings import Settings

_SHOWN: Final = 300

app = typer.Typer()
console = Console()


@app.command()
def publish(
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be written, with an example of each table; write nothing."),
    ] = False,
    into_foreign_game: Annotated[
        bool, typer.Option("--into-foreign-game", help="Write although the game's tables are not ours.")
    ] = False,
) -> None:
    """Write batches, models and rewards into the game's own tables; a second time changes only what has changed."""
    from babylon_rl.database.migrate import upgrade
    from babylon_rl.pipeline.publish import publish as run
    from babylon_rl.pipeline.workspace import open_workspace

    settings = Settings.load()
    upgrade(settings.database)
    with open_workspace(settings) as workspace:
        done = run(workspace, dry_run=dry_run, into_foreign_game=into_foreign_game)
    for counts in done.tables:
        _say(counts.sentence(dry_run=dry_run))
        if dry_run:
            for column, value in counts.example.items():
                _say(f"    {column} = {_shorten(value)}")
    for note in done.notes:
        _say(note)
    if done.changed_windows:
        _say(
            f"{done.changed_windows:,} windows were grouped anew since they trained: which of their rows trained is known only "
            "where it was published before"
        )
    if dry_run:
        _say("nothing was written; repeat without --dry-run to write it")
    elif done.is_unchanged:
        _say("nothing changed: the game's tables hold already what is known")


@app.command()
def trace(
    id: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="A call's id (call-…), a source row's id or trajectoryId, or a <window>/<agent>."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object, with all ids.")] = False,
) -> None:
    """Trace an answer back to the rows that its policy learned from, or a row forward to the agents that it answers now."""
    from babylon_rl.common.canonical import to_json
    from babylon_rl.database.migrate import upgrade
    from babylon_rl.export.trace import trace as run
    from babylon_rl.pipeline.workspace import open_workspace

    settings = Settings.load()
    upgrade(settings.database)
    with open_workspace(settings) as workspace:
        traced = run(workspace, id, with_ids=as_json)
    if as_json:
        sys.stdout.write(to_json(traced.facts).decode() + "\n")
        return
    for sentence in traced.sentences:
        _say(sentence)


def _say(sentence: str) -> None:
    console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _shorten(value: object) -> str:
    """One value of an example, cut where it is long."""
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text):,} characters)"
