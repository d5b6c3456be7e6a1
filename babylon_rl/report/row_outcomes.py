"""Where the rows of some windows ended, counted and drawn: for the metadata of `contextualized_groups`.

`python -m babylon_rl.report.row_outcomes` prints the table of `docs/ingest.md`: every status with its reasons.

A picture is one small SVG, drawn by hand, so that a run pays neither for a plotting library nor for a picture per
window.
"""

import base64
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from babylon_rl.types import REASONS, RowOutcomeCounts, RowReason, RowStatus

MOST_BARS: Final = 96
# Colours that colour-blind eyes tell apart, on light and on dark.
_COLOURS: Final[Mapping[RowStatus, str]] = {
    RowStatus.READ: "#56b4e9",
    RowStatus.GROUPED: "#0072b2",
    RowStatus.INELIGIBLE: "#e69f00",
    RowStatus.DROPPED_OUT: "#cc79a7",
    RowStatus.EXCLUDED: "#999999",
    RowStatus.QUARANTINED: "#d55e00",
}
_WIDTH, _HEIGHT, _LEFT, _BASE, _TOP = 640, 190, 48, 150, 12


def table(ends: Sequence[RowOutcomeCounts]) -> list[dict[str, str | int | float]]:
    """One record per status and reason, most rows first; the shares add up to 100 %."""
    counts: Counter[tuple[RowStatus, RowReason]] = Counter()
    for e in ends:
        counts.update(e.rows)
    total = counts.total()
    return [
        {"status": status.value, "reason": reason.value, "rows": n, "share_pct": round(100 * n / total, 2)}
        for (status, reason), n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def picture(ends: Sequence[RowOutcomeCounts]) -> str:
    """Markdown with one stacked bar per window (per several, where there are more than `MOST_BARS`)."""
    encoded = base64.b64encode(_svg(ends).encode()).decode()
    return f"![rows by status, window by window](data:image/svg+xml;base64,{encoded})"


def _svg(ends: Sequence[RowOutcomeCounts]) -> str:
    bars = list(_bars(ends))
    shown = [status for status in _COLOURS if any(bar[status] for bar in bars)]
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
        for status in shown:
            height = bar[status] / top * (_BASE - _TOP)
            y -= height
            if height:
                x, w = _LEFT + i * width, max(width * 0.9, 0.5)
                parts.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{height:.1f}" fill="{_COLOURS[status]}"/>'
                )
    if ends:
        parts.append(f'<text x="{_LEFT}" y="{_BASE + 14}">{ends[0].window_id}</text>')
        if len(ends) > 1:
            parts.append(f'<text x="{_WIDTH}" y="{_BASE + 14}" text-anchor="end">{ends[-1].window_id}</text>')
    for i, status in enumerate(shown):
        x, n = _LEFT + i * 99, sum(bar[status] for bar in bars)
        parts.append(f'<rect x="{x}" y="{_HEIGHT - 16}" width="9" height="9" fill="{_COLOURS[status]}"/>')
        parts.append(f'<text x="{x + 12}" y="{_HEIGHT - 8}">{status} {n:,}</text>')
    return "".join([*parts, "</svg>"])


def _bars(ends: Sequence[RowOutcomeCounts]) -> Iterator[Counter[RowStatus]]:
    size = -(-len(ends) // MOST_BARS) or 1
    for i in range(0, len(ends), size):
        bar: Counter[RowStatus] = Counter()
        for e in ends[i : i + size]:
            for (status, _), n in e.rows.items():
                bar[status] += n
        yield bar


def words_table() -> str:
    """Markdown: what each status and each of its reasons means, as the enums' docstrings say."""
    lines = ["| status | what it means | reason | what it means |", "|---|---|---|---|"]
    for status, reasons in REASONS.items():
        for i, reason in enumerate(reasons):
            first = f"`{status}` | {status.meaning}" if i == 0 else " | "
            lines.append(f"| {first} | `{reason}` | {reason.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(words_table())
