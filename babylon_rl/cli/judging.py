"""The commands about judges: `rejudge` and `audit-judge`. `cli/main.py` puts them beside the others."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from babylon_rl.settings import Settings
from babylon_rl.windows import HourWindow

app = typer.Typer()
console = Console()


@app.command()
def rejudge(
    windows: Annotated[str, typer.Option(help="First and last window: 2025-01-15T00:00..2025-01-16T00:00.")],
    judge: Annotated[str | None, typer.Option(help="LiteLLM model id, or hindsight; default JUDGE_MODEL.")] = None,
    rubric: Annotated[
        Path | None, typer.Option(help="Markdown file; default JUDGE_RUBRIC or the trading rubric.")
    ] = None,
    make_current: Annotated[
        bool, typer.Option(help="Make the new judgments the current ones of their windows.")
    ] = False,
    last: Annotated[int, typer.Option(min=0, help="Windows to show.")] = 20,
) -> None:
    """Judge windows again with another judge or rubric, beside the old judgments, and compare."""
    from babylon_rl.database.migrate import upgrade
    from babylon_rl.judging.factory import open_judge
    from babylon_rl.pipeline.rejudge import rejudge as run
    from babylon_rl.pipeline.workspace import open_workspace
    from babylon_rl.report.judges import rejudge_table
    from babylon_rl.store.judge_calls import PostgresCallLog

    settings = Settings.load() if rubric is None else Settings.load(JUDGE_RUBRIC=str(rubric))
    span = HourWindow.parse_range(windows)
    upgrade(settings.database)
    with open_workspace(settings) as workspace:
        call_log = PostgresCallLog(workspace.store.engine, budget_usd=settings.judge.budget_usd)
        opened = open_judge(settings.judge, call_log=call_log, model=judge)
        concurrency = 2 * settings.judge.concurrency
        report = run(workspace, opened, span, make_current=make_current, concurrency=concurrency)
    table, lines = rejudge_table(report, last=last, made_current=make_current)
    if report.windows:
        console.print(table, highlight=False)
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if any(w.failed for w in report.windows):
        raise typer.Exit(1)


@app.command("audit-judge")
def audit_judge(
    judge: Annotated[str | None, typer.Option(help="LiteLLM model id, or hindsight; default JUDGE_MODEL.")] = None,
    groups: Annotated[int, typer.Option(min=1, help="Audit groups; each is judged eight times.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the audit groups.")] = 0,
) -> None:
    """Audit a judge with negative controls and store the figures. Exit status 0: fit to train; 1: unfit."""
    import asyncio

    from babylon_rl.database.migrate import upgrade
    from babylon_rl.judging.audit.audit import audit
    from babylon_rl.judging.factory import open_judge
    from babylon_rl.pipeline.workspace import open_workspace
    from babylon_rl.report.judges import audit_table
    from babylon_rl.store.judge_audits import write_audit
    from babylon_rl.store.judge_calls import PostgresCallLog

    settings = Settings.load()
    upgrade(settings.database)
    with open_workspace(settings) as workspace:
        engine = workspace.store.engine
        call_log = PostgresCallLog(engine, budget_usd=settings.judge.budget_usd)
        opened = open_judge(settings.judge, call_log=call_log, model=judge)
        figures = asyncio.run(audit(opened, groups=groups, seed=seed))
        write_audit(engine, figures)
    console.print(audit_table(figures), highlight=False)
    fitness = "fit" if figures.fit else "UNFIT"
    console.print(f"judge {figures.judge_model} {figures.judge_version}: {fitness}", highlight=False)
    if not figures.fit:
        console.print("; ".join(figures.faults), highlight=False, soft_wrap=True)
        raise typer.Exit(1)
