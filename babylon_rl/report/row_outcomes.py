"""Where the rows of some windows ended, counted and drawn: for the metadata of `contextualized_groups`.

A picture is one small SVG, drawn by hand, so that a run pays neither for a plotting library nor for a picture per
window.
"""

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final

from babylon_rl.store.row_outcomes import RowCounts

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
_WIDTH, _HEIGHT, _LEFT, _BASE, _TOP = 640, 190, 48, 150, 12


def table(ends: Sequence[RowCounts]) -> list[dict[str, str | int | float]]:
    """One record per disposition and reason, most rows first; the shares add up to 100 %."""
    counts: Counter[tuple[str, str]] = Counter()
    for e in ends:
        counts.update(e.rows)
    total = counts.total()
    return [
        {"disposition": d, "reason": reason, "rows": n, "share_pct": round(100 * n / total, 2)}
        for (d, reason), n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def picture(ends: Sequence[RowCounts]) -> str:
    """Markdown with one stacked bar per window (per several, where there are more than `MOST_BARS`)."""
    encoded = base64.b64encode(_svg(ends).encode()).decode()
    return f"![rows by disposition, window by window](data:image/svg+xml;base64,{encoded})"


def _svg(ends: Sequence[RowCounts]) -> str:
    bars = list(_bars(ends))
    known = [*_COLOURS, *sorted({d for bar in bars for d in bar} - _COLOURS.keys())]
    shown = [d for d in known if any(bar[d] for bar in bars)]
    top = max((bar.total() for bar in bars), default=0) or 1
    width = (_WIDTH - _LEFT) / max(len(bars), 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="sans-serif" font-size="11" fill="#777">',
        f'<text x="{_LEFT - 6}" y="{_TOP + 8}" text-anchor="end">{top:,}</text>',
        f'<text x="{_LEFT - 6}" y="{_BASE}" text-anchor="end">0 rows</text>',
    ]
    for i, bar in enumerate(bars):
        y = float(_BASE)
        for d in shown:
            height = bar[d] / top * (_BASE - _TOP)
            y -= height
            if height:
                x, w = _LEFT + i * width, max(width * 0.9, 0.5)
                parts.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{height:.1f}" fill="{_colour(d)}"/>'
                )
    if ends:
        parts.append(f'<text x="{_LEFT}" y="{_BASE + 14}">{ends[0].window_id}</text>')
        if len(ends) > 1:
            parts.append(f'<text x="{_WIDTH}" y="{_BASE + 14}" text-anchor="end">{ends[-1].window_id}</text>')
    for i, d in enumerate(shown):
        x, n = _LEFT + i * 99, sum(bar[d] for bar in bars)
        parts.append(f'<rect x="{x}" y="{_HEIGHT - 16}" width="9" height="9" fill="{_colour(d)}"/>')
        parts.append(f'<text x="{x + 12}" y="{_HEIGHT - 8}">{escape(d)} {n:,}</text>')
    return "".join([*parts, "</svg>"])


def _bars(ends: Sequence[RowCounts]) -> Iterator[Counter[str]]:
    size = -(-len(ends) // MOST_BARS) or 1
    for i in range(0, len(ends), size):
        bar: Counter[str] = Counter()
        for e in ends[i : i + size]:
            for (d, _), n in e.rows.items():
                bar[d] += n
        yield bar


def _colour(disposition: str) -> str:
    return _COLOURS.get(disposition, "#bbbbbb")
