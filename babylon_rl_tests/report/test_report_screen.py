import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
from rich.console import Console

from babylon_rl.report.data import DemoReport, Lift
from babylon_rl.report.screen import RunProgress, run_progress, show, sparkline


def printed(report: DemoReport, *, encoding: str = "utf-8", width: int = 100) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    show(report, Console(file=stream, width=width), html_path="out/report.html")
    return raw.getvalue().decode(encoding)


def test_the_report_fits_thirty_lines_of_a_hundred_columns(report: DemoReport) -> None:
    out = printed(report)
    lines = out.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    one_line = " ".join(out.split())
    for sentence in (
        "After 8 iterations the trained policy makes $446 more per window than its base",
        "babylon-mmo@8 $486 94 % 0.2 %",
        "knows the hidden market $732",
        "[+$388, +$503], 100 pairs",
        "▁▁▂▃▄▅▆▇█",
        "train 3 min 26 s",
        "No LLM judged",
        "out/report.html",
        "make ui",
    ):
        assert sentence in one_line, sentence


def test_the_longest_report_still_fits(report: DemoReport) -> None:
    long = replace(
        report,
        windows=7,
        lift=Lift(mean=12.0, ci95=(-40.0, 64.0), share_of_oracle_gap=0.03),
        next_commands=tuple((f"babylon-rl something-{i}", "what it does " * 6) for i in range(12)),
        seconds={f"phase number {i}": 12.5 for i in range(12)},
    )
    out = printed(long)
    assert len(out.splitlines()) <= 30
    assert "no improvement can be claimed" in " ".join(out.split())
    assert "Only 7 held-out windows" in out


def test_commands_are_whole_on_a_screen_of_eighty_columns(report: DemoReport) -> None:
    command = ".venv/bin/babylon-rl spawn-test-agents --agents 8 --policy current"
    out = printed(replace(report, next_commands=((command, "the trained policy plays on and on"),)), width=80)
    assert command in out
    assert max(map(len, out.splitlines())) <= 80


def test_names_are_printed_as_they_are_not_read_as_markup(report: DemoReport) -> None:
    out = printed(replace(report, final=replace(report.final, name="[red]x[/red]@8"), machine="[bold]2 cores"))
    assert "[red]x[/red]@8" in out
    assert "[bold]2 cores" in out


def test_a_screen_that_knows_only_ascii_gets_the_same_numbers(report: DemoReport) -> None:
    out = printed(replace(report, base=replace(report.base, mean_pnl=-40.0)), encoding="ascii")
    assert "-$40" in out
    assert "__.-:=+*#" in out
    assert "?" not in out


def test_a_sparkline_spans_its_own_range_and_stays_low_when_flat() -> None:
    assert sparkline([0.0, 50.0, 100.0]) == "▁▅█"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([-5.0]) == "▁"


def ticking(*seconds: float) -> Iterator[float]:
    yield from seconds


def test_off_a_terminal_each_finished_phase_is_one_plain_line() -> None:
    out = io.StringIO()
    with run_progress(Console(file=out, width=100)) as run:
        with run.phase("play", "iteration 1 of 2", total=3) as phase:
            for _ in range(3):
                phase()
            phase(0, note="64 windows [x]")
            assert out.getvalue() == ""  # quiet while it works
        with run.phase("train"):
            pass
    first, second = out.getvalue().splitlines()
    assert first.startswith("✓ play · iteration 1 of 2")
    assert first.endswith("64 windows [x]")
    assert second.startswith("✓ train ")
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()


def test_seconds_add_up_by_name_in_the_order_phases_began() -> None:
    clock = ticking(0.0, 2.0, 10.0, 15.0, 20.0, 23.0)
    with RunProgress(Console(file=io.StringIO()), clock=lambda: next(clock)) as run:
        for name in ("play", "train", "play"):
            with run.phase(name):
                pass
    assert list(run.seconds.items()) == [("play", 5.0), ("train", 5.0)]


def test_a_phase_that_fails_is_marked_counted_and_passed_on() -> None:
    out = io.StringIO()
    clock = ticking(0.0, 4.0)
    with (
        pytest.raises(OSError, match="disk full"),
        RunProgress(Console(file=out), clock=lambda: next(clock)) as run,
        run.phase("train"),
    ):
        raise OSError("disk full")
    assert out.getvalue().startswith("✗ train")
    assert run.seconds == {"train": 4.0}


def test_on_a_terminal_only_the_line_of_each_phase_stays() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None)
    with run_progress(console) as run, run.phase("train", "iteration 1 of 1", total=4) as phase:
        phase(3)
        phase(0, note="loss 0.1")
        run._bar.refresh()
        assert "3/4" in out.getvalue()
        assert "loss 0.1" in out.getvalue()
    assert "✓ train · iteration 1 of 1" in out.getvalue()
