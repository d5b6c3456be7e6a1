"""The report as one self-contained html file: no script, no request, readable in ten years.

Layout and style are in `page.html`, sentences in `formatting.py`, charts in `charts.py`. The template engine escapes all
text: agent ids and explanations come from a game whose players choose their own names.
"""

import re
from functools import cache
from importlib.resources import files

import jinja2
from markupsafe import Markup

from babylon_rl.report import charts, formatting, live_chart
from babylon_rl.report.data import DemoReport


def render(report: DemoReport) -> str:
    """Render a report as one self-contained html page.

    The file asks the network for nothing (a content security policy in it forbids it), follows the reader's light
    or dark preference, and shows a wide or a narrow drawing of each chart by the width of the screen.

    Args:
        report: The results of the run.

    Returns:
        A complete html document, to be written as UTF-8.
    """
    claim, evidence = formatting.headline_parts(report)
    rows = sorted(report.leaderboard.rows, key=lambda r: (r.rank, r.agent_id))
    pnl = [row.pnl_usd for row in rows]
    total = sum(report.seconds.values())
    return _template().render(
        r=report,
        claim=claim,
        evidence=evidence,
        caution=formatting.caution(report),
        gap_note=formatting.gap_note(report),
        judged_by=formatting.judged_by(report),
        sampled=formatting.exploring(report),
        interval=formatting.interval(report),
        digits=formatting.report_digits(report),
        row_digits=formatting.money_digits(pnl),
        rows=[(row, charts.pnl_bar(row.pnl_usd, pnl)) for row in rows],
        curve=[charts.learning_curve(report, size) for size in (charts.WIDE, charts.NARROW)],
        points=sorted(report.curve, key=lambda p: p.step),
        differences=[charts.differences(report, size) for size in (charts.WIDE, charts.NARROW)],
        rollout=[live_chart.draw_interval(report.in_the_game.points, size) for size in (charts.WIDE, charts.NARROW)]
        if report.in_the_game
        else [],
        better=sum(d > 0 for d in report.paired),
        worse=sum(d < 0 for d in report.paired),
        phases=[
            (i % charts.PHASE_COLOURS, name, s, s / total if total else 0.0)
            for i, (name, s) in enumerate(report.seconds.items())
        ],
        total=total,
        stacked=charts.stacked(report.seconds),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        money=formatting.money, percent=formatting.percent, duration=formatting.duration, keep=_keep
    )
    environment.globals["count"] = formatting.count
    return environment.from_string(files("babylon_rl.report").joinpath("page.html").read_text(encoding="utf-8"))


_UNBREAKABLE = re.compile(rf"(\[[^\]]*\]|[+{formatting.MINUS}]?\$[\d,.]*\d|\d+ %)")


def _keep(text: str) -> Markup:
    """Escape, and keep an interval, a sum or a percentage on one line."""
    parts = _UNBREAKABLE.split(text)  # every second part is a match
    return Markup("").join(
        Markup('<span class="n">{}</span>').format(part) if i % 2 else Markup("{}").format(part)
        for i, part in enumerate(parts)
    )
