"""Row outcomes on the asset: a table and a picture once a run, with the counts of the database."""

import base64
import re
from xml.etree import ElementTree as ET

import dagster as dg
import sqlalchemy as sa
from dagster_factories import FIRST, spawn_windows

from babylon_rl.cli.runner import Runner
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.report.row_outcomes import MOST_BARS, picture, table
from babylon_rl.types import RowOutcomeCounts, RowReason, RowStatus
from babylon_rl.windows import HourWindow

SVG = "{http://www.w3.org/2000/svg}"


def drawn(markdown: str) -> ET.Element:
    found = re.fullmatch(r"!\[[^\]]+\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert found is not None
    return ET.fromstring(base64.b64decode(found[1]))


def metadata_of(runner: Runner, window: HourWindow) -> dict[str, dg.MetadataValue]:
    filter_ = dg.AssetRecordsFilter(dg.AssetKey("contextualized_groups"), asset_partitions=[str(window)])
    (event,) = runner.instance.fetch_materializations(filter_, limit=1).records
    assert event.asset_materialization is not None
    return dict(event.asset_materialization.metadata)


def test_a_run_shows_all_row_outcomes_on_its_last_window(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    spawn_windows(workspace, 2)
    spawn_windows(workspace, 1, agents=3, first=FIRST.next(2))
    with workspace.game.begin() as conn:
        conn.execute(sa.text("UPDATE trajectories SET steps_json = '[]' WHERE id = (SELECT min(id) FROM trajectories)"))

    runner.materialize(
        "windows",
        FIRST,
        FIRST.next(3),
        resources=resources,
        assets=["raw_trajectories", "market_outcomes", "contextualized_groups"],
    )

    shown = metadata_of(runner, FIRST.next(3))
    assert shown["rows_accounted_for"].value == 2 * 6 * 3 + 3 * 3
    shown_table = shown["row_outcomes"]
    assert isinstance(shown_table, dg.TableMetadataValue)
    records = [r.data for r in shown_table.records]
    assert [(r["status"], r["reason"], r["rows"]) for r in records] == [
        ("grouped", "has_turn", 35),
        ("ineligible", "too_few_agents", 9),
        ("quarantined", "no_steps", 1),
    ]
    texts = [x.text for x in drawn(str(shown["row_outcomes_by_window"].value)).iter(f"{SVG}text")]
    assert {"grouped 35", "ineligible 9", "quarantined 1", str(FIRST), str(FIRST.next(3))} <= set(texts)
    assert shown["members"].value == 0, "its own numbers stand beside it"
    for w in (FIRST, FIRST.next(), FIRST.next(2)):
        assert "row_outcomes" not in metadata_of(runner, w)


def test_shares_add_up_and_a_month_is_one_small_picture() -> None:
    ends = [
        RowOutcomeCounts(
            window_id=str(FIRST.next(i)),
            rows={(RowStatus.GROUPED, RowReason.HAS_TURN): 30, (RowStatus.QUARANTINED, RowReason.BAD_JSON): i % 3},
        )
        for i in range(720)
    ]
    assert abs(sum(float(r["share_pct"]) for r in table(ends)) - 100) < 0.02
    text = picture(ends)
    assert len(text) < 60_000
    bars = [x for x in drawn(text).iter(f"{SVG}rect") if float(x.attrib["y"]) < 160]
    assert len(bars) <= 2 * MOST_BARS
    tall = [float(x.attrib["y"]) + float(x.attrib["height"]) for x in bars]
    assert max(tall) <= 150.1


def test_no_rows_draw_an_empty_picture() -> None:
    assert table([RowOutcomeCounts(window_id=str(FIRST), rows={})]) == []
    assert list(drawn(picture([])).iter(f"{SVG}rect")) == []
