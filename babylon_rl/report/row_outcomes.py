"""Where the rows of some windows ended, counted and drawn: for the metadata of `contextualized_groups`.

A run draws one small picture of all its windows.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from markupsafe import Markup

from babylon_rl.report import charts
from babylon_rl.report.charts import Scale, Size
from babylon_rl.report.pictures import markdown_picture
from babylon_rl.windows import HourWindow

MOST_BARS: Final = 96
# Colours that colour-blind eyes tell apart, on light and on dark; what is not named here is grey.
_COLOURS: Final[Mapping[str, str]] = {
    "grouped": "#0072b2",
    "stitched": "#56b4e9",
    "ineligible": "#e69f00",
    "dropped_out": "#cc79a7",
    "excluded": "#999999",
    "quarantined": "#d55e00",
}
_STYLE: Final = ".other{fill:#bbb}" + "".join(f".{name}{{fill:{colour}}}" for name, colour in _COLOURS.items())
_SIZE: Final = Size(name="rows", width=640, height=190)
_LEFT, _BASE, _TOP = 48, 150, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowEnds:
    """How the rows of one window ended: (disposition, reason) → rows."""

    window_id: str
    rows: Mapping[tuple[str, str], int]

    @property
    def total(self) -> int:
        return sum(self.rows.values())


def read_ends(engine: sa.Engine, windows: Sequence[HourWindow]) -> list[WindowEnds]:
    """Count the dispositions of each window, in time order; a window without rows has none."""
    query = sa.text("""SELECT window_id, disposition, reason, count(*) AS rows FROM babylon_rl.row_dispositions
                       WHERE window_id = ANY(:w) GROUP BY window_id, disposition, reason""")
    found: dict[str, dict[tuple[str, str], int]] = {str(w): {} for w in sorted(windows)}
    with engine.connect() as conn:
        for r in conn.execute(query, {"w": list(found)}):
            found[r.window_id][r.disposition, r.reason] = r.rows
    return [WindowEnds(window_id=w, rows=dict(sorted(rows.items()))) for w, rows in found.items()]


def table(ends: Sequence[WindowEnds]) -> list[dict[str, str | int | float]]:
    """One record per disposition and reason, most rows first; the shares add up to 100 %."""
    counts: Counter[tuple[str, str]] = Counter()
    for e in ends:
        counts.update(e.rows)
    total = counts.total()
    return [
        {"disposition": d, "reason": reason, "rows": n, "share_pct": round(100 * n / total, 2)}
        for (d, reason), n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def picture(ends: Sequence[WindowEnds]) -> str:
    """Markdown with one stacked bar per window (per several, where there are more than `MOST_BARS`)."""
    bars = list(_bars(ends))
    known = [*_COLOURS, *sorted({d for bar in bars for d in bar} - _COLOURS.keys())]
    shown = [d for d in known if any(bar[d] for bar in bars)]
    parts = [*_stacks(bars, shown), *_legend(bars, shown)]
    if ends:
        parts.append(charts.text(_LEFT, _BASE + 14, ends[0].window_id, "tick"))
    if len(ends) > 1:
        parts.append(charts.text(_SIZE.width, _BASE + 14, ends[-1].window_id, "tick end-anchor"))
    return markdown_picture("rows by disposition, window by window", _SIZE, parts, style=_STYLE)


def _stacks(bars: Sequence[Counter[str]], shown: Sequence[str]) -> Iterator[Markup]:
    """The axis and the bars; the tallest bar reaches the top."""
    tallest = max((bar.total() for bar in bars), default=0) or 1
    y = Scale(0, tallest, _BASE, _TOP)
    yield charts.text(_LEFT - 6, _TOP + 8, f"{tallest:,}", "tick end-anchor")
    yield charts.text(_LEFT - 6, _BASE, "0 rows", "tick end-anchor")
    width = (_SIZE.width - _LEFT) / max(len(bars), 1)
    for i, bar in enumerate(bars):
        below = 0
        for d in shown:
            if bar[d]:
                top, bottom = y(below + bar[d]), y(below)
                yield charts.rect(_LEFT + i * width, top, max(width * 0.9, 0.5), bottom - top, _class_of(d))
                below += bar[d]


def _legend(bars: Sequence[Counter[str]], shown: Sequence[str]) -> Iterator[Markup]:
    for i, d in enumerate(shown):
        x, rows = _LEFT + i * 99, sum(bar[d] for bar in bars)
        yield charts.rect(x, _SIZE.height - 16, 9, 9, _class_of(d))
        yield charts.text(x + 12, _SIZE.height - 8, f"{d} {rows:,}", "tick")


def _bars(ends: Sequence[WindowEnds]) -> Iterator[Counter[str]]:
    size = -(-len(ends) // MOST_BARS) or 1
    for i in range(0, len(ends), size):
        bar: Counter[str] = Counter()
        for e in ends[i : i + size]:
            for (d, _), n in e.rows.items():
                bar[d] += n
        yield bar


def _class_of(disposition: str) -> str:
    return disposition if disposition in _COLOURS else "other"
