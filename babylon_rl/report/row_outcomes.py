"""Row outcomes of some windows as a table and one small picture, for the metadata of `contextualized_groups`.

`python -m babylon_rl.report.row_outcomes` prints the table of `docs/ingest.md`: every status with its reasons.
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
# Colour-blind readers can tell these apart, on light and dark backgrounds.
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


def table(outcomes: Sequence[RowOutcomeCounts]) -> list[dict[str, str | int | float]]:
    """One record per status and reason, most rows first; the shares add up to 100 %."""
    counts: Counter[tuple[RowStatus, RowReason]] = Counter()
    for o in outcomes:
        counts.update(o.rows)
    total = counts.total()
    return [
        {"status": status.value, "reason": reason.value, "rows": n, "share_pct": round(100 * n / total, 2)}
        for (status, reason), n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def picture(outcomes: Sequence[RowOutcomeCounts]) -> str:
    """Markdown with one stacked bar per window (per several, where there are more than `MOST_BARS`)."""
    bars = list(_count_bars(outcomes))
    shown = [status for status in _COLOURS if any(bar[status] for bar in bars)]
    parts = [*_draw_stacks(bars, shown), *_draw_legend(bars, shown)]
    if outcomes:
        parts.append(charts.text(_LEFT, _BASE + 14, outcomes[0].window_id, "tick"))
    if len(outcomes) > 1:
        parts.append(charts.text(_SIZE.width, _BASE + 14, outcomes[-1].window_id, "tick end-anchor"))
    return markdown_picture("rows by status, window by window", _SIZE, parts, style=_STYLE)


def _draw_stacks(bars: Sequence[Counter[RowStatus]], shown: Sequence[RowStatus]) -> Iterator[Markup]:
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


def _draw_legend(bars: Sequence[Counter[RowStatus]], shown: Sequence[RowStatus]) -> Iterator[Markup]:
    for i, status in enumerate(shown):
        x, rows = _LEFT + i * 99, sum(bar[status] for bar in bars)
        yield charts.rect(x, _SIZE.height - 16, 9, 9, status.value)
        yield charts.text(x + 12, _SIZE.height - 8, f"{status} {rows:,}", "tick")


def _count_bars(outcomes: Sequence[RowOutcomeCounts]) -> Iterator[Counter[RowStatus]]:
    size = -(-len(outcomes) // MOST_BARS) or 1
    for i in range(0, len(outcomes), size):
        bar: Counter[RowStatus] = Counter()
        for o in outcomes[i : i + size]:
            for (status, _), n in o.rows.items():
                bar[status] += n
        yield bar


def meanings_table() -> str:
    """Markdown: what each status and each of its reasons means, as the enums' docstrings say."""
    lines = ["| status | what it means | reason | what it means |", "|---|---|---|---|"]
    for status, reasons in REASONS.items():
        for i, reason in enumerate(reasons):
            first = f"`{status}` | {status.meaning}" if i == 0 else " | "
            lines.append(f"| {first} | `{reason}` | {reason.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(meanings_table())
