"""`babylon-rl …`: the commands of the game's RL guide, and ours.

An error is one sentence on stderr and exit status 2. Status 1 means "not yet", or that a judge failed or is unfit.
"""

import logging
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from babylon_rl.cli.data import app as data_commands
from babylon_rl.cli.deployment import app as deployment_commands
from babylon_rl.cli.judging import app as judging_commands
from babylon_rl.cli.publish import app as publish_commands
from babylon_rl.cli.settings import app as settings_commands
from babylon_rl.cli.windows import IntoForeignGame
from babylon_rl.cli.windows import app as window_commands
from babylon_rl.errors import BabylonRLError
from babylon_rl.report import formatting
from babylon_rl.settings import Settings
from babylon_rl.windows import HourWindow

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(window_commands)
app.add_typer(data_commands)
app.add_typer(judging_commands)
app.add_typer(deployment_commands)
app.add_typer(publish_commands)
app.add_typer(settings_commands)
console = Console()
errors = Console(stderr=True)


class Direction(StrEnum):
    """What `migrate` does."""

    UP = "up"
    DOWN = "down"
    CURRENT = "current"


@app.command()
def demo(
    iterations: Annotated[int, typer.Option(min=1, help="Checkpoints to train.")] = 12,
    windows: Annotated[int, typer.Option(min=2, help="Windows each checkpoint trains on.")] = 64,
    agents: Annotated[int, typer.Option(min=2, help="Agents of the policy in every window.")] = 8,
    seed: Annotated[
        int | None, typer.Option(help="Seed of market, sampling and training; default BABYLON_SEED or 1.")
    ] = None,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for report.html and report.json; made if it is missing.")
    ] = Path(),
    into_foreign_game: IntoForeignGame = False,
) -> None:
    """Run the whole loop on this machine: play, judge, train, evaluate on held-out windows, and deploy in the game."""
    from babylon_rl.cli.demo import DemoPlan, run_demo

    plan = DemoPlan(iterations=iterations, windows=windows, learners=agents)
    run_demo(_settings(seed=seed), plan, console, out=out, into_foreign_game=into_foreign_game)


@app.command()
def migrate(direction: Annotated[Direction, typer.Argument()] = Direction.UP) -> None:
    """Create or update our tables (up), drop them (down), or print their revision (current)."""
    from babylon_rl.database import migrate as m

    settings = _settings()
    if direction is Direction.UP:
        m.upgrade(settings.database)
    elif direction is Direction.DOWN:
        m.downgrade(settings.database)
    console.print(f"database is at revision {m.current(settings.database)}", highlight=False)


@app.command()
def train(
    min_agents: Annotated[int | None, typer.Option(min=2, help="Default BABYLON_MIN_AGENTS.")] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Checkpoints to train at most.")] = 10,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="Default: the trainer's own.")] = None,
    windows_per_iteration: Annotated[int | None, typer.Option(min=1, help="Default BABYLON_MIN_WINDOWS.")] = None,
    evaluate: Annotated[bool, typer.Option(help="Play held-out windows with each checkpoint.")] = True,
) -> None:
    """Judge the recorded windows and train on them, oldest first. Exit status 1: nothing could be trained or evaluated yet."""
    from babylon_rl.cli.services import prepare_dagster
    from babylon_rl.cli.train import TrainOptions
    from babylon_rl.cli.train import train as run
    from babylon_rl.database.migrate import upgrade
    from babylon_rl.pipeline.workspace import open_workspace

    settings = _settings()
    upgrade(settings.database)
    prepare_dagster(settings)
    with open_workspace(settings) as workspace:
        achieved = run(
            workspace,
            TrainOptions(
                iterations=iterations,
                min_agents=min_agents or settings.training.min_agents,
                windows_per_iteration=windows_per_iteration,
                learning_rate=learning_rate,
                evaluate=evaluate,
            ),
            console,
        )
    if not achieved:
        raise typer.Exit(1)


@app.command("discard-plan")
def discard_plan(
    even_if_sent: Annotated[
        bool,
        typer.Option(
            "--even-if-sent",
            help="Also where a remote job was, or may have been, sent for it; the next one is paid too.",
        ),
    ] = False,
) -> None:
    """Delete the planned batch that has no checkpoint yet; the next training plans a new one."""
    from babylon_rl.pipeline.workspace import open_workspace

    with open_workspace(_settings()) as workspace:
        batch = workspace.ledger.discard_plan(even_if_sent=even_if_sent)
    message = (
        "no batch is planned"
        if batch is None
        else f"deleted the planned batch of checkpoint {batch.step} with {len(batch.windows)} windows"
    )
    console.print(message, highlight=False)


@app.command("adopt-checkpoint")
def adopt_checkpoint(
    yes: Annotated[
        bool, typer.Option("--yes", help="Record it; without this, only say what would be recorded.")
    ] = False,
) -> None:
    """Record the next step that W&B has of this lineage and the ledger has not: a paid training that was not recorded."""
    from babylon_rl.database.migrate import upgrade
    from babylon_rl.pipeline.adopt import adopt_next_checkpoint
    from babylon_rl.pipeline.workspace import open_workspace

    settings = _settings()
    upgrade(settings.database)
    with open_workspace(settings) as workspace:
        adoption = adopt_next_checkpoint(workspace, is_confirmed=yes)
    console.print(adoption.sentence, highlight=False, soft_wrap=True)
    if not yes:
        console.print("nothing was written; repeat with --yes to record it", highlight=False)
        raise typer.Exit(1)


@app.command()
def materialize(
    first: Annotated[str, typer.Option("--from", help="First window, e.g. 2025-01-15T00:00.")],
    last: Annotated[str, typer.Option("--to", help="Last window, included.")],
    assets: Annotated[
        str | None, typer.Option(help="Comma-separated asset names; default: up to ruler_scores.")
    ] = None,
) -> None:
    """Materialize assets over a range of windows in one Dagster run. Exit status 1: scores were asked for, none came."""
    from babylon_rl.cli.runner import open_runner
    from babylon_rl.cli.services import prepare_dagster
    from babylon_rl.database.migrate import upgrade
    from babylon_rl.defs.automation import ASSETS_OF_JOBS
    from babylon_rl.errors import ConfigError

    settings = _settings()
    upgrade(settings.database)
    prepare_dagster(settings)
    start, end = HourWindow.parse(first).hour, HourWindow.parse(last).hour
    members = {job: [a.key.to_user_string() for a in assets_of] for job, assets_of in ASSETS_OF_JOBS.items()}
    known = [a for of_job in members.values() for a in of_job]
    wanted = members["windows"] if assets is None else [a.strip() for a in assets.split(",")]
    if unknown := [a for a in wanted if a not in known]:
        raise ConfigError(f"asset {unknown[0]!r} is unknown; expected some of {', '.join(known)}")
    with open_runner() as runner:
        for job, of_job in members.items():
            if chosen := [a for a in wanted if a in of_job]:
                run = runner.materialize(job, start, end, assets=chosen)
                console.print(
                    f"{', '.join(chosen)}: {run.materializations} materializations, {run.failed_checks} failed checks, "
                    f"run {run.run_id[:8]}",
                    highlight=False,
                    soft_wrap=True,
                )
    judged = _print_row_outcomes(settings, start, end)
    if "ruler_scores" in wanted and not judged:
        raise typer.Exit(1)


def _print_row_outcomes(settings: Settings, start: HourWindow, end: HourWindow) -> int:
    """Print what became of the rows; returns how many windows are judged."""
    from babylon_rl.pipeline.unjudged import explain_unjudged
    from babylon_rl.pipeline.workspace import open_workspace
    from babylon_rl.report import row_outcomes
    from babylon_rl.store.hours import windows_of
    from babylon_rl.store.row_outcomes import count_row_outcomes

    windows = list(start.until(end))
    with open_workspace(settings) as workspace:
        outcomes = count_row_outcomes(workspace.store.engine, windows)
        each = [w for of_hour in windows_of(workspace.store.engine, windows).values() for w in of_hour]
        judged = sum(workspace.store.judgment(w) is not None for w in each)
        why = explain_unjudged(workspace, windows) if not judged else []
    rows = row_outcomes.table(outcomes)
    counts = ", ".join(f"{r['rows']:,} {r['status']} ({r['reason']})" for r in rows) or "none"
    console.print(
        f"{formatting.count(sum(o.total for o in outcomes), 'row')}: {counts}", highlight=False, soft_wrap=True
    )
    console.print(f"{judged} of {formatting.count(len(each), 'window')} judged", highlight=False)
    for sentence in why:
        console.print(sentence, style="yellow", highlight=False, markup=False, soft_wrap=True)
    if rows:
        console.print(
            "next: babylon-rl check-windows; babylon-rl explain ROW_ID shows what became of one row", highlight=False
        )
    return judged


@app.command("make-base-policy")
def make_base_policy(
    out: Annotated[Path, typer.Option(help="Directory to write; must not exist.")],
    size: Annotated[str, typer.Option(help="0.4M, 1M, 3M or 7M parameters.")] = "0.4M",
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 1,
    windows: Annotated[int, typer.Option(min=1, help="Windows whose play is cloned.")] = 3200,
) -> None:
    """Train a base policy that reads its prompt and plays legal, average moves; fails if it does not learn to read."""
    from babylon_rl.base_policy.base import make_base_policy as make
    from babylon_rl.report.screen import run_progress

    with run_progress(console) as run, run.phase("clone", f"{size}, seed {seed}") as phase:
        report = make(out, size=size, seed=seed, windows=windows, progress=phase)
    console.print(f"wrote {out}: {report}", highlight=False)


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 chooses a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback by default.")] = "127.0.0.1",
) -> None:
    """Serve every recorded checkpoint at an OpenAI-compatible /v1/chat/completions."""
    from babylon_rl.database.connection import platform_url
    from babylon_rl.database.migrate import upgrade
    from babylon_rl.policy.process import base_of
    from babylon_rl.policy.server import serve as run

    settings = _settings()
    upgrade(settings.database)
    if port:
        console.print(f"OpenAI-compatible endpoint: http://{host}:{port}/v1   (Ctrl-C stops it)", highlight=False)
    run(
        base=base_of(settings.training),
        root=settings.checkpoints_dir,
        database_url=platform_url(settings.database),
        default_temperature=settings.serving.serve_temperature,
        host=host,
        port=port,
        lineage=settings.lineage,
    )


@app.command()
def gateway(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 chooses a free one.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but loopback needs BABYLON_GATEWAY_KEY.")
    ] = "127.0.0.1",
    into_foreign_game: Annotated[
        bool,
        typer.Option(
            "--into-foreign-game", help="Log calls that name a trajectory although the game's tables are not ours."
        ),
    ] = False,
) -> None:
    """Answer live agents with the policy that is deployed for them, at an OpenAI-compatible /v1/chat/completions."""
    from babylon_rl.gateway.access import check_address
    from babylon_rl.gateway.server import migrate_if_reachable
    from babylon_rl.gateway.server import serve as run

    settings = _settings()
    check_address(host, settings.gateway.key)
    migrate_if_reachable(settings)
    if port:
        console.print(
            f"agents call http://{host}:{port}/v1 with model={settings.lineage}   (Ctrl-C stops it)", highlight=False
        )
    run(settings, host=host, port=port, into_foreign_game=into_foreign_game)


@app.command()
def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Dagster's UI.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback by default.")] = "127.0.0.1",
) -> None:
    """Start database, migrations, Dagster's UI and its daemon (schedules and sensors); stop with Ctrl-C."""
    from babylon_rl.cli.services import up as run
    from babylon_rl.database.migrate import upgrade

    settings = _settings()
    upgrade(settings.database)
    console.print(f"Dagster's UI: http://{host}:{port}   (Ctrl-C stops it)", highlight=False)
    raise typer.Exit(run(settings, port=port, host=host))


@app.command()
def env() -> None:
    """Print the variables that the dagster command needs here: eval "$(babylon-rl env)"."""
    import shlex

    from babylon_rl.cli.services import prepare_dagster
    from babylon_rl.database.migrate import upgrade

    settings = _settings()
    upgrade(settings.database)
    for name, value in prepare_dagster(settings).items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")


@app.command()
def stop() -> None:
    """Stop the embedded database of this BABYLON_HOME."""
    from babylon_rl.database.embedded import stop_server

    stop_server(_settings().home)
    console.print("embedded database stopped", highlight=False)


def _settings(*, seed: int | None = None) -> Settings:
    return Settings.load() if seed is None else Settings.load(BABYLON_SEED=seed)


def main() -> None:
    """Entry point of the console script."""
    if not sys.warnoptions:  # Dagster's beta and preview notices are for developers: python -W default shows them
        warnings.simplefilter("ignore")
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)  # a run of ours logs INFO to Dagster's event log, not to this screen
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    # Dagster's storage (as root) and psycopg warn of each attempt to reach a database; the error that ends the command says it.
    handler.addFilter(lambda r: r.name not in ("root", "psycopg") or r.levelno >= logging.ERROR)
    logging.getLogger().addHandler(handler)
    try:
        app()
    except BabylonRLError as e:
        _print_error(str(e))
        sys.exit(2)
    except Exception as e:
        from babylon_rl.database.connection import find_lost_connection

        reason = find_lost_connection(e)
        if reason is None:
            raise
        command = next((a for a in sys.argv[1:] if not a.startswith("-")), "babylon-rl")
        _print_error(
            f"the database went away during `{command}` ({reason}); what was committed is kept; run the same command again"
        )
        sys.exit(2)


def _print_error(sentence: str) -> None:
    errors.print(f"babylon-rl: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
