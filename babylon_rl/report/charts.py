"""The pictures of the page, as SVG: learning curve, differences, bars; and the primitives that draw them.

Colours and type come from the page's style sheet through classes; nothing here is styled inline, so the
page decides about dark and light. Every number that is drawn is also in a table or a text of the page.
Pictures for Dagster are `report/pictures.py`, made of the same primitives.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from babylon_rl.report import formatting
from babylon_rl.report.data import DemoReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A drawing's name (a part of its ids) and its size in CSS pixels.

    Text in an SVG shrinks with it, so each chart is drawn twice and the style sheet shows the one that fits.
    """

    name: str
    width: int
    height: int


WIDE = Size(name="wide", width=760, height=300)
NARROW = Size(name="narrow", width=360, height=250)

PHASE_COLOURS = 8  # `phase-0` … of the style sheet
LEFT, RIGHT, TOP, BOTTOM = 58, 58, 14, 40


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps data to pixels, linearly."""

    lo: float
    hi: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.lo) / (self.hi - self.lo) * (self.end - self.start), 2)


def ticks(lo: float, hi: float, *, about: int = 5) -> list[float]:
    """Round numbers 1, 2, 2.5 or 5 × 10^k apart from at or below `lo` to at or above `hi`."""
    if hi - lo < 0.01:  # less than a cent is no spread, and would underflow
        lo, hi = lo - 1, hi + 1
    rough = (hi - lo) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= rough * 0.999)
    first, last = math.floor(lo / step + 1e-9), math.ceil(hi / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def learning_curve(report: DemoReport, size: Size) -> Markup:
    """Mean P&L of each checkpoint on the held-out windows with its interval, between base and oracle."""
    points = sorted(report.curve, key=lambda p: p.step)
    if not points:
        return Markup("")
    base, oracle = report.base.mean_pnl, report.oracle_mean_pnl
    explored = [(p.step, p.explored_mean_pnl) for p in points if p.explored_mean_pnl is not None]
    seen = [base, oracle, *(v for p in points for v in (p.lo, p.hi, p.mean_pnl)), *(v for _, v in explored)]
    levels = ticks(min(seen), max(seen))
    y = Scale(levels[0], levels[-1], size.height - BOTTOM, TOP)
    first, last = points[0].step, max(points[-1].step, points[0].step + 1)
    x = Scale(first, last, LEFT + 10, size.width - RIGHT - 10)
    digits = formatting.report_digits(report)

    parts = [_y_axis(levels, y, size)]
    parts += [
        text(x(step), size.height - BOTTOM + 18, str(step), "tick middle")
        for step in whole_steps([p.step for p in points], most=size.width // 40)
    ]
    parts.append(text((LEFT + size.width - RIGHT) / 2, size.height - 4, "training iteration", "axis middle"))
    for value, style in ((base, "line-base"), (oracle, "line-oracle")):
        parts.append(line(LEFT, y(value), size.width - RIGHT, y(value), style))
    parts.append(polygon([(x(p.step), y(p.hi)) for p in points] + [(x(p.step), y(p.lo)) for p in reversed(points)]))
    if len(points) == 1:
        only = points[0]
        parts.append(line(x(only.step), y(only.lo), x(only.step), y(only.hi), "line-trained"))
    parts.append(polyline([(x(s), y(v)) for s, v in explored], "line-explored"))
    parts += [
        dot(x(s), y(v), 2.5, "dot-explored", f"step {s}, exploring: {_format_usd(v, digits)}") for s, v in explored
    ]
    parts.append(polyline([(x(p.step), y(p.mean_pnl)) for p in points], "line-trained"))
    for p in points:
        tooltip = f"step {p.step}: {_format_usd(p.mean_pnl, digits)}, 95 % [{_format_usd(p.lo, digits)}, {_format_usd(p.hi, digits)}]"
        parts.append(dot(x(p.step), y(p.mean_pnl), 4, "dot-trained", tooltip))
    labels = [(base, "end-base"), (oracle, "end-oracle"), (points[-1].mean_pnl, "end-trained")]
    for place, (value, style) in zip(_spread([y(v) for v, _ in labels], gap=15), labels, strict=True):
        parts.append(text(size.width - RIGHT + 6, place + 4, formatting.money(value, digits=digits), f"end {style}"))
    description = (
        f"Mean P&L per held-out window by training iteration, from {_format_usd(points[0].mean_pnl, digits)} at step "
        f"{points[0].step} to {_format_usd(points[-1].mean_pnl, digits)} at step {points[-1].step}. "
        f"Base {_format_usd(base, digits)}, oracle {_format_usd(oracle, digits)}."
    )
    return draw_svg("curve", size, "Learning curve", description, parts)


def differences(report: DemoReport, size: Size) -> Markup:
    """Histogram of final less base over the held-out windows, with the mean and its interval."""
    values = report.paired
    if not values:
        return Markup("")
    mean, (lo, hi) = report.lift.mean, report.lift.ci95
    digits = formatting.report_digits(report)
    edges = ticks(min(*values, 0, lo), max(*values, 0, hi), about=16)
    step = edges[1] - edges[0]
    bins = Counter(min(max(math.floor((v - edges[0]) / step), 0), len(edges) - 2) for v in values)
    tallest = max(bins.values())
    x = Scale(edges[0], edges[-1], LEFT, size.width - 16)
    top = TOP + 34
    levels = [t for t in ticks(0, tallest, about=3) if t == int(t)]
    y = Scale(0, max(levels[-1], tallest), size.height - BOTTOM, top)

    parts = [
        line(LEFT, y(level), size.width - 16, y(level), "grid")
        + text(LEFT - 8, y(level) + 4, f"{level:,.0f}", "tick end-anchor")
        for level in levels
    ]
    for i, tall in sorted(bins.items()):
        left, right = x(edges[i]), x(edges[i + 1])
        style = "bar-gain" if edges[i] >= 0 else "bar-loss"
        tooltip = (
            f"{formatting.count(tall, 'window')} from {_format_usd(edges[i], 0)} to {_format_usd(edges[i + 1], 0)}"
        )
        parts.append(rect(left + 0.75, y(tall), max(right - left - 1.5, 0.5), y(0) - y(tall), style, tooltip))
    marks = ticks(edges[0], edges[-1], about=size.width // 110)
    tick_digits = 0 if marks[1] - marks[0] >= 1 else 2
    parts += [
        text(x(m), size.height - BOTTOM + 18, _format_usd(m, tick_digits), "tick middle")
        for m in marks
        if edges[0] <= m <= edges[-1]
    ]
    parts.append(text((LEFT + size.width - 16) / 2, size.height - 4, "final less base, per window", "axis middle"))
    parts.append(line(x(0), top - 10, x(0), y(0), "zero"))
    height = TOP + 14
    parts += [line(x(lo), height, x(hi), height, "whisker")]
    parts += [line(x(end), height - 4, x(end), height + 4, "whisker") for end in (lo, hi)]
    parts.append(dot(x(mean), height, 4.5, "dot-trained", f"mean {_format_usd(mean, digits)}"))
    label = f"mean {_format_usd(mean, digits)}"
    if x(hi) + 8 + 7 * len(label) < size.width:
        parts.append(text(x(hi) + 8, height + 4, label, "end end-trained"))
    else:
        parts.append(text(x(lo) - 8, height + 4, label, "end end-trained end-anchor"))
    better = sum(v > 0 for v in values)
    description = (
        f"Histogram of {len(values)} differences: final better in {better}, worse in {sum(v < 0 for v in values)}. "
        f"Mean {_format_usd(mean, digits)}, 95 % interval from {_format_usd(lo, digits)} to {_format_usd(hi, digits)}."
    )
    return draw_svg("differences", size, "Final less base, window by window", description, parts)


def pnl_bar(value: float, every: Sequence[float]) -> Markup:
    """A bar on the scale all rows share; money lost goes to the left of the zero line. Decoration: the number is beside it."""
    lo, hi = min(*every, 0.0), max(*every, 0.0)
    span = (hi - lo) or 1.0
    zero, end = (0 - lo) / span * 100, (value - lo) / span * 100
    return Markup(
        '<svg class="bar" aria-hidden="true" focusable="false"><rect class="{}" x="{:.2f}%" y="1" width="{:.2f}%" height="8" rx="1"/>'
        '<line class="zero" x1="{:.2f}%" x2="{:.2f}%" y1="0" y2="10"/></svg>'
    ).format("bar-loss" if value < 0 else "bar-gain", min(zero, end), abs(end - zero), zero, zero)


def stacked(seconds: dict[str, float]) -> Markup:
    """One bar for the whole time, a stretch of it for each phase."""
    total = sum(seconds.values())
    if total <= 0:
        return Markup("")
    at, parts = 0.0, []
    for i, (phase, spent) in enumerate(seconds.items()):
        share = spent / total * 100
        parts.append(
            Markup(
                '<rect class="phase phase-{}" x="{:.3f}%" y="0" width="{:.3f}%" height="22"><title>{}</title></rect>'
            ).format(
                i % PHASE_COLOURS,
                at,
                share,
                f"{phase}: {formatting.duration(spent)}, {formatting.percent(spent / total)}",
            )
        )
        at += share
    longest = max(seconds, key=seconds.__getitem__)
    return Markup(
        '<svg class="stacked" role="img" aria-labelledby="stacked-title stacked-desc">'
        '<title id="stacked-title">Seconds by phase</title><desc id="stacked-desc">{}</desc>{}</svg>'
    ).format(
        f"{formatting.duration(total)} in all; the longest phase is {longest} with {formatting.percent(seconds[longest] / total)}.",
        Markup("").join(parts),
    )


def _format_usd(value: float, digits: int) -> str:
    return formatting.money(value, digits=digits, signed=True)


def whole_steps(steps: Sequence[int], *, most: int) -> list[int]:
    """Every n-th step, at most `most` of them, for the ticks of an axis."""
    every = max(1, math.ceil(len(steps) / most))
    return [s for i, s in enumerate(steps) if i % every == 0]


def _spread(places: Sequence[float], *, gap: float) -> list[float]:
    """Move labels the least that keeps them `gap` apart in their order: crowded ones spread around their middle."""
    crowds: list[list[int]] = []
    centres: list[float] = []
    for i in sorted(range(len(places)), key=places.__getitem__):
        crowds.append([i])
        centres.append(places[i])
        while len(crowds) > 1 and centres[-1] - centres[-2] < gap * (len(crowds[-1]) + len(crowds[-2])) / 2:
            crowds[-2:] = [crowds[-2] + crowds[-1]]
            centres[-2:] = [sum(places[j] for j in crowds[-1]) / len(crowds[-1])]
    moved = list(places)
    for crowd, centre in zip(crowds, centres, strict=True):
        for k, i in enumerate(crowd):
            moved[i] = centre + gap * (k - (len(crowd) - 1) / 2)
    return moved


def _y_axis(levels: Sequence[float], y: Scale, size: Size) -> Markup:
    """Grid lines and the amounts beside them; the zero line is drawn stronger."""
    digits = 0 if levels[1] - levels[0] >= 1 else 2
    return Markup("").join(
        line(LEFT, y(level), size.width - RIGHT, y(level), "zero" if level == 0 else "grid")
        + text(LEFT - 8, y(level) + 4, formatting.money(level, digits=digits), "tick end-anchor")
        for level in levels
    )


def draw_svg(name: str, size: Size, title: str, description: str, parts: Iterable[Markup]) -> Markup:
    """An SVG of the page with its accessible title and description."""
    own = f"{name}-{size.name}"
    return Markup(
        '<svg class="chart {}" viewBox="0 0 {} {}" role="img" aria-labelledby="{}-title {}-desc">'
        '<title id="{}-title">{}</title><desc id="{}-desc">{}</desc>{}</svg>'
    ).format(size.name, size.width, size.height, own, own, own, title, own, description, Markup("").join(parts))


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """A straight line."""
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(style, x1, y1, x2, y2)


def text(x: float, y: float, content: str, style: str) -> Markup:
    """Text that begins, ends or is centred at a point, by `style`."""
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(style, round(x, 2), round(y, 2), content)


def rect(x: float, y: float, width: float, height: float, style: str, tooltip: str | None = None) -> Markup:
    """A filled rectangle."""
    drawn = Markup('<rect class="{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"').format(
        style, x, y, width, height
    )
    return drawn + (Markup("/>") if tooltip is None else Markup("><title>{}</title></rect>").format(tooltip))


def dot(x: float, y: float, radius: float, style: str, tooltip: str) -> Markup:
    """A point."""
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
        style, x, y, radius, tooltip
    )


def polyline(points: Sequence[tuple[float, float]], style: str) -> Markup:
    """A line through points."""
    return Markup('<polyline class="{}" points="{}"/>').format(style, " ".join(f"{x},{y}" for x, y in points))


def polygon(points: Sequence[tuple[float, float]]) -> Markup:
    """The area of an interval."""
    return Markup('<polygon class="band" points="{}"/>').format(" ".join(f"{x},{y}" for x, y in points))
