"""The commands that take data in and give it out: `import`, `export`, `explain`, `db-url`, `psql`. `cli/main.py` puts them beside the others."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from babylon_rl.settings import Settings
from babylon_rl.windows import HourWindow

app = typer.Typer()
console = Console()
errors = Console(stderr=True)


class ExportFormat(StrEnum):
    """What a file is written as."""

    PARQUET = "parquet"
    JSONL = "jsonl"


class ExportWhat(StrEnum):
    """What a row of the file is."""

    TURNS = "turns"
    GROUPS = "groups"


@app.command("import")
def import_(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", exists=True, file_okay=False, help="Where the game's file mode wrote, or its trajectories/."
        ),
    ],
) -> None:
    """Take trajectories that the game wrote as JSON files into our own tables; the same file twice changes nothing.

    Exit status 1: some files were not taken, each named with its reason.
    """
    from babylon_rl.database.migrate import upgrade
    from babylon_rl.ingest.import_files import import_folder
    from babylon_rl.pipeline.workspace import open_workspace
    from babylon_rl.report.screen import run_progress

    settings = Settings.load()
    upgrade(settings.database)
    with open_workspace(settings) as workspace, run_progress(console) as shown, shown.phase("import", str(folder)) as p:
        done = import_folder(
            workspace.game,
            folder,
            complain=lambda sentence: errors.print(
                f"babylon-rl: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True
            ),
            progress=p,
        )
    console.print(
        f"{done.written:,} trajectories written, {done.unchanged:,} were there already, {done.failed:,} not taken; "
        "next: babylon-rl check-windows",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if done.failed:
        raise typer.Exit(1)


@app.command()
def export(
    out: Annotated[str, typer.Option(help="File to write, or an fsspec URL such as s3://bucket/turns.parquet.")],
    format: Annotated[ExportFormat, typer.Option(help="File format.")] = ExportFormat.PARQUET,
    first: Annotated[str | None, typer.Option("--from", help="First window; default: the first there is.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last window, included; default: the last.")] = None,
    what: Annotated[ExportWhat, typer.Option(help="A row per turn (TRL, verl), or per group.")] = ExportWhat.TURNS,
    with_hindsight: Annotated[
        bool,
        typer.Option(
            "--with-hindsight", help="Add P&L, outcomes and the judge's explanations; keep them out of prompts."
        ),
    ] = False,
) -> None:
    """Write the judged windows that may train, for datasets, TRL or verl; the same data gives the same bytes."""
    from babylon_rl.database.migrate import upgrade
    from babylon_rl.export.dataset import export as run
    from babylon_rl.pipeline.workspace import open_workspace
    from babylon_rl.report.screen import run_progress

    begin = None if first is None else HourWindow.parse(first).hour
    end = None if last is None else HourWindow.parse(last).hour
    settings = Settings.load()
    upgrade(settings.database)
    with open_workspace(settings) as workspace, run_progress(console) as shown, shown.phase("export", out) as phase:
        done = run(
            workspace,
            out,
            format=format.value,
            what=what.value,
            first=begin,
            last=end,
            with_hindsight=with_hindsight,
            progress=phase,
        )
    kept_out = f"; {done.left_out} grouped but not judged, or kept out by a check" if done.left_out else ""
    console.print(
        f"{done.rows:,} {what.value} of {done.windows:,} window{'s' * (done.windows != 1)} in {out}{kept_out}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    console.print(
        f"next: {_write_loading_code(out, format, what, with_hindsight)}", highlight=False, markup=False, soft_wrap=True
    )


def _write_loading_code(out: str, format: ExportFormat, what: ExportWhat, with_hindsight: bool) -> str:
    """Write the line of Python that reads the file."""
    if format is ExportFormat.PARQUET:
        return f'datasets.load_dataset("parquet", data_files="{out}")'
    option = ", with_hindsight=True" if with_hindsight else ""
    features = f'datasets.Features.from_arrow_schema(babylon_rl.export.dataset.schema("{what.value}"{option}))'
    return f'datasets.load_dataset("json", data_files="{out}", features={features})'


@app.command()
def explain(
    row_or_trajectory_id: Annotated[
        str, typer.Argument(help="A source row's id or trajectoryId, or a stitched <window>/<agent>.")
    ],
) -> None:
    """Explain what became of one row or trajectory: window, outcome, group, judgment, checkpoint."""
    from babylon_rl.database.migrate import upgrade
    from babylon_rl.export.explain import explain as run
    from babylon_rl.pipeline.workspace import open_workspace

    settings = Settings.load()
    upgrade(settings.database)
    with open_workspace(settings) as workspace:
        for sentence in run(workspace, row_or_trajectory_id):
            console.print(sentence, highlight=False, markup=False, soft_wrap=True)


@app.command("db-url")
def db_url(
    platform: Annotated[bool, typer.Option("--platform", help="The database with schema babylon_rl instead.")] = False,
) -> None:
    """Print the game database's URL, for psql "$(babylon-rl db-url)"."""
    from babylon_rl.database.connection import game_url, platform_url

    sys.stdout.write((platform_url if platform else game_url)(Settings.load().database) + "\n")


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def psql(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Open the game database in psql; arguments are passed on: babylon-rl psql -c "SELECT 1".

    `--platform` as the first argument opens the database with schema babylon_rl, where that is another one.
    """
    from babylon_rl.database.connection import game_url, platform_url
    from babylon_rl.database.embedded import binary

    program, passed_on = str(binary("psql")), list(arguments or [])
    url = game_url
    if passed_on[:1] == ["--platform"]:
        url, passed_on = platform_url, passed_on[1:]
    os.execv(program, [program, url(Settings.load().database), *passed_on])  # noqa: S606  no shell on purpose
