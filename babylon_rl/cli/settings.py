"""`babylon-rl settings`: every environment variable, its value, and where the value comes from.

The README's tables are written from the same descriptions.
"""

from itertools import groupby
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from babylon_rl.errors import ConfigError
from babylon_rl.settings import PARTS, Settings, Variable, variables

BEGIN: Final = "<!-- settings: written by `babylon-rl settings --write README.md` -->"
END: Final = "<!-- end of settings -->"

app = typer.Typer()
console = Console()


@app.command()
def settings(
    write: Annotated[
        Path | None,
        typer.Option(
            help="Write the tables into this Markdown file, between its two markers.", exists=True, dir_okay=False
        ),
    ] = None,
) -> None:
    """Show every environment variable, the value in force and where it comes from; secrets stay hidden."""
    if write is not None:
        write.write_text(with_tables(write.read_text(encoding="utf-8"), name=str(write)), encoding="utf-8")
        console.print(f"wrote the settings into {write}", highlight=False)
        return
    table = Table("variable", "value", "from", "what it decides")
    table.columns[0].no_wrap = True
    for v in variables(Settings.load()):
        value = v.value or f"({v.default})"
        table.add_row(v.name, value.strip("`"), "environment" if v.is_set else "default", v.description)
    console.print(table, highlight=False, markup=False)


def with_tables(text: str, *, name: str = "the file") -> str:
    """The text with fresh tables between its markers.

    Raises:
        ConfigError: The text does not have both markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{name} lacks the lines {BEGIN!r} and {END!r}; put both where the tables belong")
    return f"{before}{BEGIN}\n\n{markdown()}\n{END}{after}"


def markdown() -> str:
    """One Markdown table per part of the settings."""
    parts = groupby(variables(Settings.load()), key=lambda v: v.part)
    return "\n".join(_write_table(part, list(members)) for part, members in parts)


def _write_table(part: str, members: list[Variable]) -> str:
    about = (PARTS.get(part, Settings).__doc__ or "").partition("\n")[0]
    lines = [f"**{part.capitalize()}.** {about}", "", "| variable | what it decides | default |", "|---|---|---|"]
    lines += [f"| `{v.name}` | {v.description.rstrip('.')} | {v.default} |" for v in members]
    return "\n".join(lines) + "\n"
