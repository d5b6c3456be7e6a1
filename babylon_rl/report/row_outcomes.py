"""Where the rows of some windows ended, counted and drawn: for the metadata of `contextualized_groups`.

`python -m babylon_rl.report.row_outcomes` prints the table of `docs/ingest.md`: every status with its reasons.

A run draws one small picture of all its windows.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from markupsafe import Markup

from babylon_rl.report import charts
from babylon_rl.report.charts import Scale, Size
from babylon_rl.report.pictures import markdown_picture
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
_STYLE: Final = "".join(f".{status.value}{{fill:{colour}}}" for status, colour in _COLOURS.items())
_SIZE: Final = Size(name="rows", width=640, height=190)
_LEFT, _BASE, _TOP = 48, 150, 12


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
    bars = list(_bars(ends))
    shown = [status for status in _COLOURS if any(bar[status] for bar in bars)]
    parts = [*_stacks(bars, shown), *_legend(bars, shown)]
    if ends:
        parts.append(charts.text(_LEFT, _BASE + 14, ends[0].window_id, "tick"))
    if len(ends) > 1:
        parts.append(charts.text(_SIZE.width, _BASE + 14, ends[-1].window_id, "tick end-anchor"))
    return markdown_picture("rows by status, window by window", _SIZE, parts, style=_STYLE)


def _stacks(bars: Sequence[Counter[RowStatus]], shown: Sequence[RowStatus]) -> Iterator[Markup]:
    """The axis and the bars; the tallest bar reaches the top."""
    tallest = max((bar.total() for bar in bars), default=0) or 1
    y = Scale(0, tallest, _BASE, _TOP)
    yield charts.text(_LEFT - 6, _TOP + 8, f"{tallest:,}", "tick end-anchor")
    yield charts.text(_LEFT - 6, _BASE, "0 rows", "tick end-anchor")
    width = (_SIZE.width - _LEFT) / max(len(bars), 1)
    for i, bar in enumerate(bars):
        below = 0
        for status in shown:
            if bar[status]:
                top, bottom = y(below + bar[status]), y(below)
                yield charts.rect(_LEFT + i * width, top, max(width * 0.9, 0.5), bottom - top, status.value)
                below += bar[status]


def _legend(bars: Sequence[Counter[RowStatus]], shown: Sequence[RowStatus]) -> Iterator[Markup]:
    for i, status in enumerate(shown):
        x, rows = _LEFT + i * 99, sum(bar[status] for bar in bars)
        yield charts.rect(x, _SIZE.height - 16, 9, 9, status.value)
        yield charts.text(x + 12, _SIZE.height - 8, f"{status} {rows:,}", "tick")


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
