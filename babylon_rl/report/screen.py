"""The report and the progress of a run on the screen, with rich.

Ids come from the game, so all text is set as `Text`, never as markup. On a terminal the running phase shows a
spinner and a bar; anywhere else (a CI log, a pipe) each finished phase is one line and nothing is redrawn.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from babylon_rl.report import formatting
from babylon_rl.report.data import DemoReport

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = str.maketrans(
    {formatting.MINUS: "-", "·": "-", "✓": "+", "✗": "x", "…": "~", **dict(zip(_BLOCKS, "_.-:=+*#", strict=True))}
)
_COMMANDS_SHOWN = 6


def show(
    report: DemoReport,
    console: Console,
    *,
    html_path: Path | str = "report.html",
    json_path: Path | str = "report.json",
) -> None:
    """Print a report in at most 30 lines of 100 columns.

    Args:
        report: The results of the run.
        console: Where to print; its width is kept to.
        html_path: Where the page was written, as the reader can open it.
        json_path: Where the numbers were written.
    """
    put = _Printer(console)
    claim, evidence = formatting.headline_parts(report)
    put(Text())
    put(Text.assemble((claim, "bold"), evidence))
    if caution := formatting.caution(report):
        put(Text(caution, style="yellow"))
    put(Text())
    console.print(_tabulate_figures(report, put))
    put(Text())
    digits = formatting.report_digits(report)
    facts = _make_grid()
    if report.curve:
        points = sorted(report.curve, key=lambda p: p.step)
        first, last = points[0], points[-1]
        line = Text(sparkline([p.mean_pnl for p in points]), style="cyan")
        line.append(
            f"  {formatting.money(first.mean_pnl, digits=digits)} at step {first.step}, "
            f"{formatting.money(last.mean_pnl, digits=digits)} at step {last.step}",
            style="default",
        )
        facts.add_row("curve", put.text(line))
    lift = (
        f"{formatting.money(report.lift.mean, digits=digits, signed=True)} per window, 95 % interval {formatting.interval(report)}, "
        f"{report.windows:,} pairs; seed {report.seed}, temperature {report.temperature:g}"
    )
    facts.add_row("lift", put.text(Text(lift)))
    if sampled := formatting.exploring(report):
        facts.add_row("explored", put.text(Text(sampled)))
    if report.in_the_game is not None:
        facts.add_row("deployed", put.text(Text(report.in_the_game.decision)))
    by_phase = ", ".join(f"{name} {formatting.duration(s)}" for name, s in report.seconds.items())
    total = formatting.duration(sum(report.seconds.values()))
    facts.add_row("time", put.text(Text(f"{total} on {report.machine}: {by_phase}")))
    facts.add_row("judge", put.text(Text(formatting.judged_by(report))))
    facts.add_row("report", put.text(Text.assemble((str(html_path), "bold"), "  numbers: ", str(json_path))))
    console.print(facts, highlight=False)
    if report.next_commands:
        put(Text())
        shown = report.next_commands[:_COMMANDS_SHOWN]
        commands = Table.grid(padding=(0, 2, 0, 0))
        # A command is there to be copied: on a narrow screen its purpose is cut, never the command.
        commands.add_column(no_wrap=True, min_width=max(len(command) for command, _ in shown))
        commands.add_column(no_wrap=True, overflow="ellipsis")
        for command, purpose in shown:
            commands.add_row(put.text(Text(command, style="green")), put.text(Text(purpose)))
        console.print(commands, highlight=False)


def sparkline(values: list[float]) -> str:
    """One block per value, from the lowest to the highest; a flat line stays low."""
    lo, hi = min(values), max(values)
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((v - lo) / (hi - lo) * top) if hi > lo else 0] for v in values)


class Phase:
    """A running phase; calling it advances its bar and sets the note beside it."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task
        self._note = ""

    def __call__(self, steps: int = 1, *, total: int | None = None, note: str | None = None) -> None:
        """Satisfies `common.progress.Progress`; the last note stays on the finished line."""
        if total is not None:
            self._bar.update(self._task, total=total)
        if note is not None:
            self._note = note
            self._bar.update(self._task, note=_Printer(self._bar.console).plain(note))
        if steps:
            self._bar.advance(self._task, steps)

    @property
    def last_note(self) -> str:
        return self._note


class RunProgress:
    """Phases of a run, one after the other, and the wall time each name took in all.

    Attributes:
        seconds: By phase name, in order of first appearance: what `DemoReport.seconds` wants. A phase inside
            another is counted in both, so run one at a time where the sum should be the total.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._put = _Printer(console)
        self._bar = Progress(
            SpinnerColumn("line" if console.options.ascii_only else "dots"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False, style="dim"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @contextmanager
    def phase(self, name: str, detail: str = "", *, total: int | None = None) -> Iterator[Phase]:
        """Run one phase; the same `name` again adds to its seconds.

        Args:
            name: What is counted, e.g. `train`.
            detail: What is special about this time, e.g. `iteration 3 of 8`.
            total: Number of steps; None shows a pulsing bar.

        Yields:
            The phase, to be called after each step. An error marks it with a cross and propagates.
        """
        description = self._put.plain(f"{name} · {detail}" if detail else name)
        task = self._bar.add_task(description, total=total, note="")
        phase = Phase(self._bar, task)
        self.seconds.setdefault(name, 0.0)
        began, done = self._clock(), False
        try:
            yield phase
            done = True
        finally:
            spent = self._clock() - began
            self.seconds[name] += spent
            self._bar.remove_task(task)
            mark = ("✓ ", "green") if done else ("✗ ", "red")
            line = Text.assemble(mark, f"{description:<32} {formatting.duration(spent):>10}")
            if phase.last_note:
                line.append(f"   {phase.last_note}", style="dim")
            self._put(line)


def run_progress(console: Console) -> RunProgress:
    """Open the progress of a run on a console.

    ```python
    with run_progress(console) as run:
        with run.phase("train", "iteration 1 of 8", total=64) as phase:
            phase(note="loss 0.12")
    run.seconds  # {"train": 25.8}
    ```
    """
    return RunProgress(console)


class _Printer:
    """Prints text without markup and highlighting, and only in ASCII where the console knows nothing else."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def plain(self, text: str) -> str:
        return text.translate(_ASCII).encode("ascii", "replace").decode() if self._console.options.ascii_only else text

    def text(self, text: Text) -> Text:
        text.plain = self.plain(text.plain)  # one character for one, so the styles stay in place
        return text

    def __call__(self, text: Text) -> None:
        self._console.print(self.text(text), highlight=False)


def _make_grid() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _tabulate_figures(report: DemoReport, put: _Printer) -> Table:
    digits = formatting.report_digits(report)
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("")
    table.add_column("policy")
    for name in (f"mean P&L, {report.currency}", "windows won", "invalid actions"):
        table.add_column(name, justify="right")
    for title, policy, style in (("base", report.base, ""), ("trained", report.final, "bold")):
        table.add_row(
            title,
            Text(put.plain(policy.name)),
            put.plain(formatting.money(policy.mean_pnl, digits=digits)),
            formatting.percent(policy.win_rate),
            formatting.percent(policy.invalid_rate, digits=1),
            style=style,
        )
    table.add_row(
        "oracle", "knows the hidden market", put.plain(formatting.money(report.oracle_mean_pnl, digits=digits)), "", ""
    )
    return table
