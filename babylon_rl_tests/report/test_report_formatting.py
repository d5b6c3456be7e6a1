from dataclasses import replace

import pytest

from babylon_rl.report import formatting
from babylon_rl.report.data import DemoReport, Lift


def with_lift(report: DemoReport, mean: float, lo: float, hi: float, share: float | None = 0.5) -> DemoReport:
    return replace(report, lift=Lift(mean=mean, ci95=(lo, hi), share_of_oracle_gap=share))


def headline(report: DemoReport) -> str:
    return "".join(formatting.headline_parts(report))


def test_a_gain_is_stated_with_interval_and_share_of_the_gap(report: DemoReport) -> None:
    sentence = headline(with_lift(report, 198.2, 120.4, 260.0, 0.523))
    assert sentence == (
        "After 8 iterations the trained policy makes $198 more per window than its base, 95 % interval [+$120, +$260] "
        "over 100 held-out windows it never trained on; that is 52 % of what a player who knows the hidden market could add."
    )


@pytest.mark.parametrize(("lo", "hi"), [(-40.0, 64.0), (0.0, 24.0), (-24.0, 0.0)])
def test_an_interval_that_includes_zero_claims_nothing(report: DemoReport, lo: float, hi: float) -> None:
    doubtful = with_lift(report, 12.0, lo, hi, 0.03)
    sentence = headline(doubtful)
    assert "no improvement can be claimed" in sentence
    assert "more per window" not in sentence
    assert "3 %" not in sentence
    assert "cannot be claimed" in formatting.gap_note(doubtful)


def test_a_loss_is_called_a_loss(report: DemoReport) -> None:
    worse = with_lift(report, -150.0, -210.0, -90.0, -0.2)
    sentence = headline(worse)
    assert "makes $150 less per window" in sentence
    assert f"[{formatting.MINUS}$210, {formatting.MINUS}$90]" in sentence
    assert "could add" not in sentence
    assert "led away" in formatting.gap_note(worse)


def test_no_training_and_no_gap_are_said_as_such(report: DemoReport) -> None:
    assert headline(replace(report, iterations=0)).startswith("Nothing was trained")
    assert "could add" not in headline(with_lift(report, 198.0, 120.0, 260.0, None))
    assert "no gap" in formatting.gap_note(with_lift(report, 198.0, 120.0, 260.0, None))


def test_one_is_not_plural(report: DemoReport) -> None:
    sentence = headline(replace(report, iterations=1, windows=1))
    assert "After 1 iteration the" in sentence
    assert "1 held-out window it" in sentence


def test_few_windows_are_warned_about(report: DemoReport) -> None:
    assert formatting.caution(report) is None
    assert "Only 4 held-out windows" in (formatting.caution(replace(report, windows=4)) or "")


def test_only_the_hindsight_judge_is_said_to_be_no_llm(report: DemoReport) -> None:
    assert "No LLM judged" in formatting.judged_by(report)
    assert "No LLM" not in formatting.judged_by(replace(report, judge="openai/gpt-4o-mini"))
    assert "openai/gpt-4o-mini" in formatting.judged_by(replace(report, judge="openai/gpt-4o-mini"))


@pytest.mark.parametrize(
    ("value", "digits", "signed", "sentence"),
    [
        (1234.5, 2, False, "$1,234.50"),
        (-12.0, 2, False, "−$12.00"),
        (12.4, 0, True, "+$12"),
        (-0.004, 2, True, "$0.00"),
        (0.0, 0, True, "$0"),
    ],
)
def test_money(value: float, digits: int, signed: bool, sentence: str) -> None:
    assert formatting.money(value, digits=digits, signed=signed) == sentence


def test_cents_are_shown_where_whole_dollars_would_hide_a_number() -> None:
    assert formatting.money_digits([486.2, 40.1, 731.5]) == 0
    assert formatting.money_digits([486.2, 0.2]) == 2
    assert formatting.money_digits([3.5, 12.0]) == 2
    assert formatting.money_digits([0.0, 500.0]) == 0


@pytest.mark.parametrize(
    ("seconds", "sentence"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (185.2, "3 min 05 s"), (7383, "2 h 03 min")],
)
def test_durations(seconds: float, sentence: str) -> None:
    assert formatting.duration(seconds) == sentence
