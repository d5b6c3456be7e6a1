"""Pictures for Dagster's metadata: SVG inside Markdown, drawn by the primitives of `report/charts.py`.

Each has its own style sheet, with colours that work on light and dark backgrounds and for colour-blind readers.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

from babylon_rl.report import charts
from babylon_rl.report.charts import Scale, Size

if TYPE_CHECKING:  # it imports numpy, which loading Dagster's definitions must not
    from babylon_rl.common.statistics import Interval

_SIZE: Final = Size(name="lifts", width=640, height=300)
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 34, 44

_STYLE: Final = """
text{font:11px sans-serif;fill:#777}.middle{text-anchor:middle}.end-anchor{text-anchor:end}
.grid{stroke:#999;stroke-opacity:.25}.zero{stroke:#888;stroke-width:1.5}.axis{font-size:12px}
.band{fill:#0072b2;fill-opacity:.2}.line-trained{fill:none;stroke:#0072b2;stroke-width:2}.dot-trained{fill:#0072b2}
"""


def markdown_picture(title: str, size: Size, parts: Iterable[Markup], *, style: str = "") -> str:
    """A Markdown image with its SVG inline; `style` adds rules to those that every picture has."""
    svg = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" width="{}" height="{}"><style>{}</style>{}</svg>'
    ).format(size.width, size.height, size.width, size.height, _STYLE + style, Markup("").join(parts))
    return f"![{title}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def lift_curve(lifts: Mapping[int, "Interval"]) -> str:
    """Lift over the base by checkpoint, in US dollars a window, with its 95 % interval.

    Args:
        lifts: Step → lift; step 0 is the base itself, whose lift is zero.
    """
    steps = sorted(lifts)
    if not steps:
        return "no checkpoint has been evaluated"
    levels = charts.ticks(min(0, *(lifts[s].lo for s in steps)), max(0, *(lifts[s].hi for s in steps)))
    y = Scale(levels[0], levels[-1], _SIZE.height - _BOTTOM, _TOP)
    x = Scale(steps[0], max(steps[-1], steps[0] + 1), _LEFT + 10, _SIZE.width - _RIGHT - 10)
    upper = [(x(s), y(lifts[s].hi)) for s in steps]
    lower = [(x(s), y(lifts[s].lo)) for s in reversed(steps)]
    parts = [
        *_money_axis(levels, y),
        *(
            charts.text(x(s), _SIZE.height - _BOTTOM + 18, str(s), "tick middle")
            for s in charts.whole_steps(steps, most=_SIZE.width // 40)
        ),
        charts.text((_LEFT + _SIZE.width - _RIGHT) / 2, _SIZE.height - 8, "checkpoint", "axis middle"),
        charts.text(8, 16, "lift over base, $ a window (band: 95 % interval)", "axis"),
        charts.polygon(upper + lower),
        charts.polyline([(x(s), y(lifts[s].mean)) for s in steps], "line-trained"),
        *(charts.dot(x(s), y(lifts[s].mean), 3.5, "dot-trained", f"step {s}: {lifts[s].mean:+,.2f}") for s in steps),
    ]
    return markdown_picture("learning curve", _SIZE, parts)


def _money_axis(levels: Sequence[float], y: Scale) -> list[Markup]:
    digits = 0 if levels[1] - levels[0] >= 1 else 2
    return [
        charts.line(_LEFT, y(level), _SIZE.width - _RIGHT, y(level), "zero" if level == 0 else "grid")
        + charts.text(_LEFT - 8, y(level) + 4, f"{level:+,.{digits}f}" if level else "0", "tick end-anchor")
        for level in levels
    ]
