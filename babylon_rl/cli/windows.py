"""The guide's commands about windows: play them, compute their outcomes, show which can train."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from babylon_rl.report import formatting
from babylon_rl.settings import Settings
from babylon_rl.windows import HourWindow

if TYPE_CHECKING:  # a command's own imports come when it runs, so that `--help` is quick
    from babylon_rl.pipeline.readiness import WindowLine

IntoForeignGame = Annotated[
    bool,
    typer.Option("--into-foreign-game", help="Write rows of simulated play although the game's tables are not ours."),
]

app = typer.Typer()
console = Console()


@app.command("spawn-test-agents")
def spawn_test_agents(
    agents: Annotated[int, typer.Option(min=1, help="Agents in every window.")] = 5,
    duration: Annotated[
        float, typer.Option(min=0, help="Minutes of wall time after which no further window starts.")
    ] = 5,
    windows: Annotated[int, typer.Option(min=1, help="Hours to play.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Seed of the market; default BABYLON_SEED or 1.")] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="guide (five kinds in turn), a strategy, current, a checkpoint such as babylon-mmo@3, or deployed: "
            "through the gateway, each agent answered by the policy that is deployed for it."
        ),
    ] = "guide",
    start: Annotated[
        str | None, typer.Option(help="First hour, e.g. 2025-01-15T10:00; default: free hours near now.")
    ] = None,
    decision_minutes: Annotated[int, typer.Option(min=1, max=60, help="Simulated minutes between decisions.")] = 20,
    temperature: Annotated[
        float | None,
        typer.Option(help="Of a served policy; default BABYLON_EXPLORE_TEMPERATURE, of a deployed one the gateway's."),
    ] = None,
    into_foreign_game: IntoForeignGame = False,
) -> None:
    """Let test agents play whole hours of the simulated market and record them as the game does."""
    from contextlib import ExitStack

    from babylon_rl.database.migrate import upgrade
    from babylon_rl.gateway.process import running_gateway
    from babylon_rl.pipeline.workspace import open_workspace, running_policy_server
    from babylon_rl.report.screen import run_progress
    from babylon_rl.simulator.spawn import AgentLineup, free_windows, spawn
    from babylon_rl.types import policy_name

    settings = Settings.load() if seed is None else Settings.load(BABYLON_SEED=seed)
    upgrade(settings.database)
    with open_workspace(settings) as workspace, ExitStack() as stack:
        workspace.refuse_foreign_game("spawn-test-agents", into_foreign_game=into_foreign_game)
        deployed = policy == "deployed"
        if deployed:
            policy = settings.lineage
        elif policy == "current":
            latest = workspace.ledger.latest()
            policy = policy_name(settings.lineage, 0 if latest is None else latest.step)
        if temperature is None and not deployed:
            temperature = settings.serving.explore_temperature
        lineup = AgentLineup(
            learners=agents, policy=policy, temperature=temperature, through_gateway=deployed, stand_in=True
        )
        first = None if start is None else HourWindow.parse(start)
        chosen = free_windows(workspace.game, windows, now=datetime.now(UTC), start=first)
        decisions = max(1, 60 // decision_minutes)
        run = stack.enter_context(run_progress(console))
        url = None
        if lineup.needs_server:
            with run.phase("start", "gateway" if deployed else "policy server"):
                url = stack.enter_context(running_gateway(settings) if deployed else running_policy_server(settings))
        with run.phase("play", f"{windows} windows", total=len(chosen) * agents * decisions) as phase:
            done = spawn(
                workspace.game,
                chosen,
                lineup,
                seed=settings.seed,
                decisions=decisions,
                inference_url=url,
                api_key=None if settings.gateway.key is None else settings.gateway.key.get_secret_value(),
                duration_s=duration * 60,
                into_foreign_game=into_foreign_game,
                progress=phase,
            )
    console.print(
        f"{len(done.windows)} window{'s' * (len(done.windows) != 1)} played by {agents} agents ({policy}): "
        f"{done.windows[0]} to {done.windows[-1]}, {done.rows} rows, mean P&L {formatting.money(done.mean_pnl_usd)}",
        highlight=False,
    )
    console.print("next: babylon-rl sync-outcomes --hours 24", highlight=False)


@app.command("sync-outcomes")
def sync_outcomes(
    hours: Annotated[int, typer.Option(min=1, help="How far to look back; closed hours only.")] = 24,
) -> None:
    """Compute what each market did in the closed hours. Exit status 1: nothing is known of any of them.

    From the game's own prices and resolutions, which are only read; its market_outcomes are written where they are ours.
    """
    from babylon_rl.database.migrate import upgrade
    from babylon_rl.pipeline.outcomes import sync_hours
    from babylon_rl.pipeline.workspace import open_workspace

    settings = Settings.load()
    upgrade(settings.database)
    with open_workspace(settings) as workspace:
        done = sync_hours(workspace, hours=hours)
    counts = " ".join(f"{status}={windows}" for status, windows in asdict(done.report).items())
    console.print(f"Synced {formatting.count(hours, 'hour')}: {counts}", highlight=False, soft_wrap=True)
    if done.advice is not None:
        console.print(f"Nothing synced: {done.advice}", style="yellow", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1)
    console.print("next: babylon-rl check-windows", highlight=False)


@app.command("check-windows")
def check_windows(
    min_agents: Annotated[int | None, typer.Option(min=2, help="Default BABYLON_MIN_AGENTS.")] = None,
    last: Annotated[int, typer.Option(min=1, help="Windows to show.")] = 20,
    recount: Annotated[
        bool, typer.Option(help="Count old windows again too (for a game database that is only read).")
    ] = False,
) -> None:
    """Show which windows can train. Exit status 0: ready for training; 1: not yet."""
    from babylon_rl.database.migrate import upgrade
    from babylon_rl.pipeline.readiness import readiness
    from babylon_rl.pipeline.workspace import open_workspace

    settings = Settings.load()
    upgrade(settings.database)
    need = min_agents or settings.training.min_agents
    with open_workspace(settings) as workspace:
        report = readiness(
            workspace,
            min_agents=need,
            min_windows=settings.training.min_windows,
            now=datetime.now(UTC),
            last=last,
            recount=recount,
        )
    if report.lines:
        console.print(window_table(report.lines), highlight=False)
        if report.windows > len(report.lines):
            console.print(f"… and {report.windows - len(report.lines)} older windows", highlight=False)
    else:
        console.print("No windows found.", highlight=False)
    for explanation, windows in group_explanations(report.lines).items():
        more = f" and {len(windows) - 1} more" if len(windows) > 1 else ""
        console.print(f"{windows[0]}{more}: {explanation}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Windows with {need}+ agents: {report.with_enough_agents}", highlight=False)
    if report.stale:
        console.print(
            f"{len(report.stale)} trained on rows or outcomes that changed since, oldest {report.stale[0]}; "
            "they are not trained on again",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    if report.waiting:
        console.print(
            f"{formatting.count(report.waiting, 'window')} wait{'s' * (report.waiting == 1)} for outcomes, a judge, or another try; the others are "
            f"{report.unused} that can train or be prepared now",
            highlight=False,
            soft_wrap=True,
        )
    if report.ready:
        console.print("✅ READY FOR TRAINING!", style="bold green", highlight=False)
        console.print(f"next: babylon-rl train --min-agents {need} --iterations 1", highlight=False)
        return
    console.print(f"Not ready: {report.next_step}", style="yellow", highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def window_table(lines: "Sequence[WindowLine]") -> Table:
    """A row per window, the newest first."""
    table = Table("window", "agents", "rows", "avg P&L", "outcomes", "state")
    for column in table.columns[1:4]:
        column.justify = "right"
    for column in table.columns[:5]:
        column.no_wrap = True
    table.columns[5].overflow = "fold"  # a reason is never cut, however narrow the screen
    for line in reversed(lines):
        pnl = "unknown" if line.avg_pnl_usd is None else formatting.money(line.avg_pnl_usd)
        table.add_row(
            line.window_id, str(line.agents), str(line.rows), pnl, "yes" if line.outcomes else "no", line.state
        )
    return table


def group_explanations(lines: "Sequence[WindowLine]") -> dict[str, list[str]]:
    """Explanation → the windows it is about, newest first: an outage says the same of all."""
    groups: dict[str, list[str]] = {}
    for line in reversed(lines):
        if line.explanation is not None:
            groups.setdefault(line.explanation, []).append(line.window_id)
    return groups
