"""Judging again: new judgments beside the old ones, a comparison, and no current judgment replaced unless asked."""

import asyncio

import pytest
import sqlalchemy as sa
from judge_server import JudgeServer
from judging_factories import a_ruler
from test_never_twice import fill

from babylon_rl.database import tables as t
from babylon_rl.errors import DataError
from babylon_rl.judging.hindsight_judge import HindsightJudge
from babylon_rl.judging.judge import Judge
from babylon_rl.pipeline.rejudge import RejudgeReport, rejudge
from babylon_rl.pipeline.score import score_windows
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.report.judges import rejudge_table
from babylon_rl.settings import Settings
from babylon_rl.store.ledger import Ledger
from babylon_rl.store.windows import Store
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import a_workspace, read_check_results


def first_judged(engine: sa.Engine, count: int = 4) -> tuple[Store, list[HourWindow]]:
    store, windows = Store(engine), fill(engine, count)
    asyncio.run(score_windows(a_workspace(engine), HindsightJudge(), windows))
    with engine.begin() as conn:  # a checkpoint used the first two
        for w in windows[:2]:
            judgment = store.judgment(w)
            assert judgment is not None
            conn.execute(
                sa.insert(t.consumed_windows),
                [{"lineage": "babylon-mmo", "window_id": str(w), "step": 3, "judgment_key": judgment.key}],
            )
    return store, windows


def again(store: Store, judge: Judge, windows: list[HourWindow], **more: bool) -> RejudgeReport:
    ledger = Ledger(store.engine, "babylon-mmo")
    workspace = Workspace(settings=Settings.load(), game=store.engine, store=store, ledger=ledger)
    return rejudge(workspace, judge, windows, **more)


def test_a_new_judgment_does_not_replace_the_current_one(engine: sa.Engine, server: JudgeServer) -> None:
    store, windows = first_judged(engine)
    before = [store.judgment(w) for w in windows]
    report = again(store, a_ruler(server.url), windows)
    assert (report.calls, report.cached, len(report.windows)) == (4, 0, 4)
    assert [store.judgment(w) for w in windows] == before
    for w, replayed in zip(windows, report.windows, strict=True):
        assert replayed.window_id == str(w)
        assert replayed.new is not None
        assert store.find_judgment(replayed.new.key) == replayed.new
        assert replayed.tau == 1.0  # both rank by P&L
    assert [dict(r.trained) for r in report.windows] == [{"babylon-mmo@3": "old"}] * 2 + [{}] * 2
    assert report.cost_usd > 0

    second = again(store, a_ruler(server.url), windows)
    assert (second.calls, second.cached, second.cost_usd, server.calls) == (0, 4, 0, 4)


def test_a_judge_that_ranks_the_other_way_shows_as_disagreement(engine: sa.Engine, server: JudgeServer) -> None:
    store, windows = first_judged(engine)
    server.behave("inverted")
    assert again(store, a_ruler(server.url), windows).mean_tau == pytest.approx(-1.0)


def test_another_rubric_is_another_judgment(engine: sa.Engine, server: JudgeServer) -> None:
    store, windows = first_judged(engine)
    one = again(store, a_ruler(server.url), windows[:1]).windows[0].new
    other = again(store, a_ruler(server.url, rubric="Be kind."), windows[:1]).windows[0].new
    assert one is not None
    assert other is not None
    assert one.key != other.key
    assert server.calls == 2


def test_on_request_the_new_judgment_becomes_current(engine: sa.Engine, server: JudgeServer) -> None:
    store, windows = first_judged(engine)
    server.behave("missing", only=str(windows[3]))
    report = again(store, a_ruler(server.url), windows, make_current=True)
    current = [store.judgment(w) for w in windows]
    assert [j.judge_model if j else None for j in current] == ["openai/gpt-4o-mini"] * 3 + ["hindsight"]
    failed = report.windows[3]
    assert failed.new is None
    assert "no usable reply" in (failed.failed or "")
    names = {name for name, result in read_check_results(store.engine, windows[0]).items() if result.passed}
    assert {"every_member_has_one_score", "scores_are_not_all_equal", "judge_is_fit"} <= names
    assert read_check_results(store.engine, windows[3]) == {}


def test_the_table_says_what_was_trained_on_what(engine: sa.Engine, server: JudgeServer) -> None:
    store, windows = first_judged(engine)
    table, lines = rejudge_table(again(store, a_ruler(server.url), windows), last=3, made_current=False)
    assert table.row_count == 3
    assert any("Kendall tau, mean over groups): +1.000" in x for x in lines)
    assert any("2 of these windows are in checkpoints, 2 with the old judgment" in x for x in lines)


def test_a_range_of_windows_is_read_or_refused() -> None:
    assert [str(w) for w in HourWindow.parse_range("2025-01-15T23:00..2025-01-16T01:00")] == [
        "2025-01-15T23:00",
        "2025-01-16T00:00",
        "2025-01-16T01:00",
    ]
    assert len(HourWindow.parse_range("2025-01-15T23:00")) == 1
    for bad in ("2025-01-16T01:00..2025-01-15T23:00", "..", "yesterday..today"):
        with pytest.raises(DataError):
            HourWindow.parse_range(bad)
