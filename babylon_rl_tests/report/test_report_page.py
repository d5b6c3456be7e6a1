import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.report import charts
from babylon_rl.report.data import CurvePoint, DemoReport, LeaderRow, Lift
from babylon_rl.report.live_chart import interval_picture
from babylon_rl.report.page import render

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """A strict parser of a page: every element closed in order, every attribute and text kept."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> says an attribute twice"
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.seen if tag == name]


def test_the_page_says_the_numbers(report: DemoReport) -> None:
    text = Page(render(report)).text
    for sentence in (
        "After 8 iterations the trained policy makes $446 more per window than its base, 95 % interval [+$388, +$503] over",
        "that is 65 % of what a player who knows the hidden market could add.",
        "$40",
        "$486",
        "$732",
        "babylon-mmo@8",
        "94 %",  # windows won
        "0.2 %",  # invalid actions
        "+$812",
        "−$509",
        "2025-01-15T10:00",
        "6 min 38 s",
        "2 cores",
        "No LLM judged",
        "babylon-rl train --iterations 10",
        "go on training from the last checkpoint",
        "The trained policy did better in 94, worse in 6",
    ):
        assert sentence in text, sentence


def test_the_page_asks_the_network_for_nothing(report: DemoReport) -> None:
    html = render(report)
    page = Page(html)
    assert "://" not in html
    assert not page.tags("script")
    assert not re.search(r"@import|url\(", html)
    for tag, attrs in page.seen:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attrs.get(name) or "data:").startswith("data:"), (tag, attrs)
        assert not [a for a in attrs if a.startswith("on")]
    policies = [m["content"] for m in page.tags("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policies
    assert "default-src 'none'" in (policies[0] or "")


def test_ids_are_unique_and_every_picture_has_a_description(report: DemoReport) -> None:
    page = Page(render(report))
    ids = Counter(attrs["id"] for _, attrs in page.seen if attrs.get("id"))
    assert max(ids.values()) == 1
    pictures = [svg for svg in page.tags("svg") if svg.get("aria-hidden") != "true"]
    assert len(pictures) == 7  # curve, differences and rollout, each wide and narrow, and the seconds
    for svg in pictures:
        assert svg["role"] == "img"
        assert set((svg["aria-labelledby"] or "").split()) <= ids.keys()
    assert len(page.tags("desc")) == 7
    for th in page.tags("th"):
        assert th.get("scope") in ("col", "row")
    assert page.tags("html")[0]["lang"] == "en"


def test_both_colour_schemes_and_narrow_screens_are_provided_for(report: DemoReport) -> None:
    html = render(report)
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    assert "max-width: 700px" in html


def test_a_name_from_the_game_cannot_write_html(report: DemoReport) -> None:
    bad = "<script>alert(1)</script>\" onload='x"
    row = LeaderRow(rank=0, agent_id=bad, policy=bad, pnl_usd=1.0, score=0.5, explanation=bad)
    hostile = replace(
        report,
        judge=bad,
        machine=bad,
        base=replace(report.base, name=bad),
        leaderboard=replace(report.leaderboard, window_id=bad, rows=(row,)),
        seconds={bad: 1.0},
        next_commands=((bad, bad),),
    )
    html = render(hostile)
    assert "<script" not in html
    page = Page(html)
    assert page.text.count("<script>alert(1)</script>") >= 9
    assert not [attrs for _, attrs in page.seen if "onload" in attrs]


def test_an_interval_with_zero_changes_the_headline(report: DemoReport) -> None:
    flat = replace(report, lift=Lift(mean=12.0, ci95=(-40.0, 64.0), share_of_oracle_gap=0.03))
    text = Page(render(flat)).text
    assert "no improvement can be claimed" in text
    assert "could add" not in text
    assert "Training went" not in text


def test_what_is_not_known_is_left_out_not_drawn_as_zero(report: DemoReport) -> None:
    bare = replace(
        report,
        paired=(),
        curve=(),
        seconds={},
        next_commands=(),
        in_the_game=None,
        leaderboard=replace(report.leaderboard, rows=()),
        lift=replace(report.lift, share_of_oracle_gap=None),
    )
    page = Page(render(bare))
    assert not page.tags("svg")
    assert "did better in" not in page.text
    assert "no gap to close" in page.text
    unjudged = replace(report.leaderboard.rows[0], score=None)
    page = Page(render(replace(report, leaderboard=replace(report.leaderboard, rows=(unjudged,)))))
    assert "not judged" in page.text


def test_leaderboard_rows_stand_by_rank(report: DemoReport) -> None:
    rows = report.leaderboard.rows
    turned = replace(report, leaderboard=replace(report.leaderboard, rows=tuple(reversed(rows))))
    assert render(turned) == render(report)
    bars = re.findall(r'<svg class="bar".*?</svg>', render(report))
    assert len(bars) == len(rows)
    for row, bar in zip(rows, bars, strict=True):
        rect, line = (child.attrib for child in ElementTree.fromstring(bar))
        left, width, zero = (float(v.rstrip("%")) for v in (rect["x"], rect["width"], line["x1"]))
        assert rect["class"] == ("bar-loss" if row.pnl_usd < 0 else "bar-gain")
        assert (left + width if row.pnl_usd < 0 else left) == pytest.approx(zero, abs=0.02)


def test_the_histogram_counts_every_window_once(report: DemoReport) -> None:
    drawn = ElementTree.fromstring(charts.differences(report, charts.WIDE))
    bars = [(r.attrib["class"], r.findtext("title") or "") for r in drawn.iter("rect")]
    counts = [int(tooltip.split()[0]) for _, tooltip in bars]
    assert sum(counts) == len(report.paired)
    lost = sum(n for n, (style, _) in zip(counts, bars, strict=True) if style == "bar-loss")
    assert lost == sum(d < 0 for d in report.paired)


MONEY = st.floats(-1e6, 1e6, allow_nan=False)
POINT = st.builds(
    lambda m, below, above, e: CurvePoint(
        step=0,
        explored_mean_pnl=e,
        mean_pnl=m,
        lo=m - below,
        hi=m + above,
        win_rate=0.5,
        invalid_rate=0.0,
        loss=None,
    ),
    MONEY,
    st.floats(0, 1e4),
    st.floats(0, 1e4),
    st.none() | MONEY,
)


@settings(deadline=None, max_examples=60)
@given(points=st.lists(POINT, min_size=1, max_size=40), base=MONEY, oracle=MONEY, paired=st.lists(MONEY, min_size=2))
def test_whatever_the_numbers_the_drawing_stays_inside_its_frame(
    report: DemoReport, points: list[CurvePoint], base: float, oracle: float, paired: list[float]
) -> None:
    report = replace(
        report,
        curve=tuple(replace(p, step=i) for i, p in enumerate(points)),
        base=replace(report.base, mean_pnl=base),
        oracle_mean_pnl=oracle,
        paired=tuple(paired),
        lift=Lift(mean=sum(paired) / len(paired), ci95=(min(paired), max(paired)), share_of_oracle_gap=None),
    )
    for size in (charts.WIDE, charts.NARROW):
        for picture in (charts.learning_curve(report, size), charts.differences(report, size)):
            drawn = ElementTree.fromstring(picture)
            assert (drawn.findtext("title") or "").strip()
            assert (drawn.findtext("desc") or "").strip()
            for shape in drawn.iter():
                spots = [tuple(p.split(",")) for p in shape.get("points", "").split()]
                xs = [float(shape.attrib[k]) for k in ("x", "x1", "x2", "cx") if k in shape.attrib]
                ys = [float(shape.attrib[k]) for k in ("y", "y1", "y2", "cy") if k in shape.attrib]
                assert all(-1 <= x <= size.width + 1 for x in (*xs, *(float(s[0]) for s in spots)))
                assert all(-20 <= y <= size.height + 1 for y in (*ys, *(float(s[1]) for s in spots)))


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_are_round_few_and_enclose_the_data(lo: float, width: float) -> None:
    levels = charts.ticks(lo, lo + width)
    slack = 1e-6 * max(1.0, abs(lo), width)
    assert levels[0] <= lo + slack
    assert lo + width <= levels[-1] + slack
    assert 2 <= len(levels) <= 9
    assert levels == sorted(set(levels))


def test_the_rollout_is_told_and_drawn(report: DemoReport) -> None:
    assert report.in_the_game is not None
    page = render(report)
    for part in ("In the game", "babylon-mmo@8 answers all agents", "3 moves, 900 answered calls", 'id="rollout-wide'):
        assert part in page
    without = render(replace(report, in_the_game=None))
    assert "In the game" not in without
    unknown = '<td class="num">–</td>'
    assert page.count(unknown) == without.count(unknown) + 1  # the one figure that is not known


def test_a_rollout_without_an_interval_has_no_drawing(report: DemoReport) -> None:
    assert report.in_the_game is not None
    early = replace(report.in_the_game, points=report.in_the_game.points[:9])
    assert 'id="rollout-wide' not in render(replace(report, in_the_game=early))
    assert interval_picture(early.points) == "no interval yet: too few windows or agents have been compared"
    drawn = interval_picture(report.in_the_game.points)
    assert drawn.startswith("![interval over time](data:image/svg+xml;base64,")
