"""The interval of a rollout, window by window: one drawing for the page and one for Dagster's metadata."""

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from markupsafe import Markup

from babylon_rl.report import charts, formatting
from babylon_rl.report.charts import Scale, Size
from babylon_rl.report.data import LivePoint
from babylon_rl.report.pictures import markdown_picture

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 30, 40
_DAGSTER: Final = Size(name="rollout", width=640, height=300)
_STAGES: Final = ".stage{stroke:#999;stroke-dasharray:3 3}.stage-name{font-size:11px}"


class Look(Protocol):
    """What a point needs of one look at a rollout (`store/looks.py`)."""

    @property
    def window_id(self) -> str: ...
    @property
    def stage(self) -> str: ...
    @property
    def mean_usd(self) -> float | None: ...
    @property
    def lo_usd(self) -> float | None: ...
    @property
    def hi_usd(self) -> float | None: ...


def make_points(looks: Sequence[Look]) -> list[LivePoint]:
    """The interval after each look; a mean that has no interval yet is not drawn."""
    points = []
    for look in looks:
        known = None not in (look.mean_usd, look.lo_usd, look.hi_usd)
        mean, lo, hi = (look.mean_usd, look.lo_usd, look.hi_usd) if known else (None, None, None)
        points.append(LivePoint(window_id=look.window_id, stage=str(look.stage), mean=mean, lo=lo, hi=hi))
    return points


def draw_interval(points: Sequence[LivePoint], size: Size) -> Markup:
    """The page's drawing; empty while no window has an interval."""
    known = [p for p in points if p.mean is not None]
    if not known:
        return Markup("")
    last = known[-1]
    description = (
        f"Candidate less incumbent after each of {formatting.count(len(points), 'window')}; at the end {_say(last)}."
    )
    return charts.draw_svg("rollout", size, "Interval of the rollout", description, _draw(points, size))


def interval_picture(points: Sequence[LivePoint]) -> str:
    """Dagster's drawing, as Markdown."""
    if not any(p.mean is not None for p in points):
        return "no interval yet: too few windows or agents have been compared"
    return markdown_picture("interval over time", _DAGSTER, list(_draw(points, _DAGSTER)), style=_STAGES)


def _draw(points: Sequence[LivePoint], size: Size) -> Iterator[Markup]:
    placed = [(i, p.mean, p.lo, p.hi) for i, p in enumerate(points) if None not in (p.mean, p.lo, p.hi)]
    known = [(i, float(m or 0), float(lo or 0), float(hi or 0)) for i, m, lo, hi in placed]
    # An early interval is so wide that it would flatten all the others.
    reach = 3 * max(abs(known[-1][2]), abs(known[-1][3]), *(abs(m) for _, m, _, _ in known))
    clipped = [(i, m, max(lo, -reach), min(hi, reach)) for i, m, lo, hi in known]
    levels = charts.ticks(min(0.0, *(lo for _, _, lo, _ in clipped)), max(0.0, *(hi for _, _, _, hi in clipped)))
    y = Scale(levels[0], levels[-1], size.height - _BOTTOM, _TOP)
    x = Scale(0, max(len(points) - 1, 1), _LEFT + 8, size.width - _RIGHT - 8)
    digits = 0 if levels[1] - levels[0] >= 1 else 2
    for level in levels:
        yield charts.line(_LEFT, y(level), size.width - _RIGHT, y(level), "zero" if level == 0 else "grid")
        label = formatting.money(level, digits=digits, signed=True)
        yield charts.text(_LEFT - 8, y(level) + 4, label, "tick end-anchor")
    for i, p in enumerate(points):
        if i == 0 or p.stage != points[i - 1].stage:
            if i:
                yield charts.line(x(i), _TOP, x(i), size.height - _BOTTOM, "grid stage")
            yield charts.text(x(i) + 3, _TOP - 8, p.stage, "stage-name")
    for i in charts.whole_steps([i + 1 for i in range(len(points))], most=size.width // 60):
        yield charts.text(x(i - 1), size.height - _BOTTOM + 18, str(i), "tick middle")
    yield charts.text((_LEFT + size.width - _RIGHT) / 2, size.height - 4, "windows of the rollout", "axis middle")
    yield charts.polygon(
        [(x(i), y(hi)) for i, _, _, hi in clipped] + [(x(i), y(lo)) for i, _, lo, _ in reversed(clipped)]
    )
    yield charts.polyline([(x(i), y(m)) for i, m, _, _ in clipped], "line-trained")
    for i, m, _, _ in clipped:
        yield charts.dot(x(i), y(m), 2.5, "dot-trained", f"{points[i].window_id}: {_say(points[i])}")


def _say(p: LivePoint) -> str:
    if p.mean is None or p.lo is None or p.hi is None:
        return "not compared yet"
    digits = formatting.money_digits([p.mean, p.lo, p.hi])
    mean, lo, hi = (formatting.money(v, digits=digits, signed=True) for v in (p.mean, p.lo, p.hi))
    return f"{mean} [{lo}, {hi}]"
