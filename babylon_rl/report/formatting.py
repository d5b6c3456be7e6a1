"""Numbers and findings as text, the same on the page and on the screen.

The headline claims no more than the interval supports. No layout, no colour, no markup here.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands that only format an amount do not load the report's classes
    from babylon_rl.report.data import DemoReport

MINUS = "−"
FEW_WINDOWS = 20


def money(value: float, *, digits: int = 2, signed: bool = False) -> str:
    """`$1,234.50`, `−$12.00`; `signed` adds the plus. A value that rounds to zero has no sign."""
    text = f"{abs(value):,.{digits}f}"
    if not any(c in "123456789" for c in text):
        return f"${text}"
    return f"{MINUS if value < 0 else '+' if signed else ''}${text}"


def money_digits(values: Sequence[float]) -> int:
    """Decimals for amounts shown together: none from $100 on, unless an amount would be rounded to $0."""
    known = [abs(v) for v in values if v]
    return 0 if known and max(known) >= 100 and min(known) >= 0.5 else 2


def percent(share: float, *, digits: int = 0) -> str:
    """`52 %`."""
    text = f"{abs(share) * 100:,.{digits}f}"
    return f"{MINUS if share < 0 and any(c in '123456789' for c in text) else ''}{text} %"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 03 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(n: int, noun: str) -> str:
    """`1 window`, `1,200 windows`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def report_digits(report: "DemoReport") -> int:
    """One precision for base, final, oracle and lift, so that they compare easily."""
    return money_digits(
        (
            report.base.mean_pnl,
            report.final.mean_pnl,
            report.oracle_mean_pnl,
            report.lift.mean,
            *report.lift.ci95,
        )
    )


def interval(report: "DemoReport") -> str:
    """`[+$120, +$260]`."""
    digits = report_digits(report)
    lo, hi = report.lift.ci95
    return f"[{money(lo, digits=digits, signed=True)}, {money(hi, digits=digits, signed=True)}]"


def exploring(report: "DemoReport") -> str | None:
    """The comparison at the exploring temperature in one sentence, or None when it was not made."""
    if report.exploring is None:
        return None
    e, digits = report.exploring, report_digits(report)
    lo, hi = (money(v, digits=digits, signed=True) for v in e.lift.ci95)
    return (
        f"As explored, at temperature {e.temperature:g}, on the same windows: {money(e.base_mean_pnl, digits=digits)} → "
        f"{money(e.final_mean_pnl, digits=digits)}, {money(e.lift.mean, digits=digits, signed=True)} [{lo}, {hi}]."
    )


def headline_parts(report: "DemoReport") -> tuple[str, str]:
    """The result in one or two plain sentences, as the claim (more, less, or no claim) and its evidence.

    Joined without a space they are the headline.
    """
    lift, digits = report.lift, report_digits(report)
    held_out = f"{count(report.windows, 'held-out window')} it never trained on"
    if report.iterations == 0:
        played = count(report.windows, "held-out window")
        return "Nothing was trained: base and final are the same policy", f", played on {played}."
    after = f"After {count(report.iterations, 'iteration')}"
    if lift.includes_zero:
        return (
            f"{after}, no improvement can be claimed.",
            f" The trained policy and its base differ by {money(lift.mean, digits=digits, signed=True)} per window, "
            f"and the 95 % interval {interval(report)} over {held_out} includes zero.",
        )
    claim = (
        f"{after} the trained policy makes {money(abs(lift.mean), digits=digits)} "
        f"{'more' if lift.mean > 0 else 'less'} per window than its base"
    )
    evidence = f", 95 % interval {interval(report)} over {held_out}"
    if lift.mean > 0 and lift.share_of_oracle_gap is not None:
        share = percent(lift.share_of_oracle_gap)
        evidence += f"; that is {share} of what a player who knows the hidden market could add"
    return claim, f"{evidence}."


def caution(report: "DemoReport") -> str | None:
    """What a careful reader must know beside the headline, or None."""
    if report.windows < FEW_WINDOWS:
        return (
            f"Only {count(report.windows, 'held-out window')}: an interval from so few is itself unsure. "
            f"Evaluate on {FEW_WINDOWS} or more before you rely on it."
        )
    return None


def gap_note(report: "DemoReport") -> str:
    """How far training went from base to oracle, as far as the interval supports it."""
    share = report.lift.share_of_oracle_gap
    if share is None:
        return "It is not above the base here, so there is no gap to close."
    if report.lift.includes_zero:
        return "That training went any part of the way from base to here cannot be claimed."
    if share < 0:
        return "Training led away from here, below the base."
    return f"Training went {percent(share)} of the way from base to here."


def judged_by(report: "DemoReport") -> str:
    """Who scored, in one sentence."""
    if report.judge == "hindsight":
        return (
            "No LLM judged: the hindsight judge computed each score from what was attainable in the window, "
            "known only afterwards."
        )
    if report.judge == "dice":
        return "Nobody judged: this is the control whose scores are drawn at random, and no lift should be found."
    return f"The scores came from {report.judge}, a model that read each group and compared its members."
