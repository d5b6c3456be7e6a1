"""Rows that come late or change afterwards cost exactly their own window, and never a silent training."""

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from babylon_rl.database import game_tables
from babylon_rl.ingest.facts import write_facts
from babylon_rl.ingest.window_summary import refresh
from babylon_rl.judging.hindsight_judge import HindsightJudge
from babylon_rl.pipeline import checks
from babylon_rl.pipeline.checks import REQUIRED_CHECKS
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.pipeline.outcomes import snapshot_outcomes
from babylon_rl.pipeline.readiness import readiness, recorded_but_not_judged
from babylon_rl.pipeline.score import score_windows
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl.store.dropout import drop_out
from babylon_rl.store.row_outcomes import row_outcomes_of
from babylon_rl.types import Hindsight, Judgment, TrajectoryGroup
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import a_json_call, a_json_step, a_row, insert_row, insert_rows, store_check_result

FIRST = HourWindow.parse("2025-01-15T00:00")
WINDOWS = [FIRST.next(i) for i in range(4)]
NOW = datetime(2025, 1, 16, tzinfo=UTC)


class CountingJudge(HindsightJudge):
    """The real judge, counting what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def judge(self, group: TrajectoryGroup, hindsight: Hindsight) -> Judgment:
        self.asked.append(group.window_id)
        return await super().judge(group, hindsight)


@pytest.fixture
def judge() -> CountingJudge:
    return CountingJudge()


@pytest.fixture
def w(settings: Settings) -> Iterator[Workspace]:
    """Four hours of five agents each, with prices."""
    with open_workspace(settings) as workspace:
        insert_rows(workspace.game, [a_row(f"a{i}", window=h, final_pnl=10.0 * i) for h in WINDOWS for i in range(5)])
        with workspace.game.begin() as conn:
            write_facts(
                conn, prices=[("BTC", h.start_at + timedelta(minutes=m), 100.0 + m) for h in WINDOWS for m in (0, 50)]
            )
        yield workspace


def prepare(w: Workspace, judge: CountingJudge, windows: list[HourWindow] = WINDOWS) -> None:
    """What the four window assets and their checks do."""
    for h in windows:
        ingest_window(h, w.game, w.store)
        snapshot_outcomes(h, w.game, w.store, now=NOW, sync=True)
        group_window(h, w.store, min_agents=5)
    asyncio.run(score_windows(w, judge, windows))
    for h in windows:
        for check in REQUIRED_CHECKS:
            store_check_result(w.store.engine, h, check, passed=True)


def ready(w: Workspace) -> list[str]:
    return [r.window_id for r in w.ledger.ready()]


def states(w: Workspace) -> dict[str, str]:
    return {x.window_id: x.state for x in readiness(w, min_agents=5, min_windows=1, now=NOW).lines}


def train(w: Workspace, windows: int) -> None:
    plan = w.ledger.plan(WINDOWS[-1], windows, learning_rate=None)
    assert plan is not None
    w.ledger.record(plan, trainer="t", base_model="b", path="p", manifest={}, metrics={})


def test_one_late_row_costs_one_judgment_and_its_siblings_none(w: Workspace, judge: CountingJudge) -> None:
    prepare(w, judge)
    assert judge.asked == [str(h) for h in WINDOWS]
    before = [w.store.group(h) for h in WINDOWS]

    insert_row(w.game, "late", window=WINDOWS[2])
    assert recorded_but_not_judged(w, min_agents=5) == [WINDOWS[2]]
    assert states(w)[str(WINDOWS[2])].startswith("changed")
    prepare(w, judge)

    assert judge.asked[4:] == [str(WINDOWS[2])]
    changed = [w.store.group(h) != old for h, old in zip(WINDOWS, before, strict=True)]
    assert changed == [False, False, True, False]
    assert recorded_but_not_judged(w, min_agents=5) == []
    assert ready(w) == [str(h) for h in WINDOWS]


def test_a_rewritten_row_changes_exactly_its_window(w: Workspace, judge: CountingJudge) -> None:
    prepare(w, judge)
    steps = a_row(steps_json=[a_json_step(llmCalls=[a_json_call("something else")])])["steps_json"]
    with w.game.begin() as conn:
        conn.execute(
            sa.text("UPDATE trajectories SET steps_json = :s WHERE agent_id = 'a3' AND window_id = :w"),
            {"s": steps, "w": str(WINDOWS[1])},
        )
    assert recorded_but_not_judged(w, min_agents=5) == [WINDOWS[1]]
    prepare(w, judge)
    assert judge.asked[4:] == [str(WINDOWS[1])]


def test_a_reward_written_back_is_no_change(w: Workspace, judge: CountingJudge) -> None:
    prepare(w, judge)
    with w.game.begin() as conn:
        conn.execute(sa.text("UPDATE trajectories SET ai_judge_reward = 0.5, total_reward = 7, updated_at = now()"))
    assert recorded_but_not_judged(w, min_agents=5) == []
    assert set(states(w).values()) == {"judged"}


def test_a_stale_group_neither_trains_nor_is_judged(w: Workspace, judge: CountingJudge) -> None:
    prepare(w, judge)
    insert_row(w.game, "late", window=WINDOWS[0])
    ingest_window(WINDOWS[0], w.game, w.store)
    assert ready(w) == [str(h) for h in WINDOWS[1:]]
    scored = asyncio.run(score_windows(w, judge, WINDOWS))
    assert "materialize `contextualized_groups`" in scored[WINDOWS[0]].facts["failed"]
    for check in REQUIRED_CHECKS:
        store_check_result(w.store.engine, WINDOWS[0], check, passed=True)
    assert ready(w) == [str(h) for h in WINDOWS[1:]]
    assert len(judge.asked) == 4


def test_a_late_row_without_turns_causes_no_new_judgment(w: Workspace, judge: CountingJudge) -> None:
    prepare(w, judge)
    insert_row(w.game, "crashed", window=WINDOWS[0], steps_json=[])
    prepare(w, judge, WINDOWS[:1])
    assert len(judge.asked) == 4
    assert ready(w) == [str(h) for h in WINDOWS]
    assert len(row_outcomes_of(w.store.engine, WINDOWS[0])) == 6


def test_a_corrected_outcome_has_the_group_judged_again(w: Workspace, judge: CountingJudge) -> None:
    prepare(w, judge)
    group = w.store.group(WINDOWS[3])
    with w.game.begin() as conn:
        write_facts(conn, prices=[("BTC", WINDOWS[3].start_at + timedelta(minutes=50), 55.0)])
    snapshot_outcomes(WINDOWS[3], w.game, w.store, now=NOW, sync=True)
    assert ready(w) == [str(h) for h in WINDOWS if h != WINDOWS[3]]
    assert group_window(WINDOWS[3], w.store, min_agents=5).changed
    assert w.store.group(WINDOWS[3]) == group  # the same messages train; only their worth changed
    prepare(w, judge)
    assert judge.asked[4:] == [str(WINDOWS[3])]


def test_a_trained_window_that_went_stale_never_trains_again(w: Workspace, judge: CountingJudge) -> None:
    prepare(w, judge)
    train(w, 2)
    assert w.ledger.stale() == []
    insert_row(w.game, "late", window=WINDOWS[0])
    assert states(w)[str(WINDOWS[0])] == "stale: trained @1 on older rows"  # noticed before anything is read again
    assert recorded_but_not_judged(w, min_agents=5) == []
    prepare(w, judge)
    assert w.ledger.stale() == [str(WINDOWS[0])]
    assert states(w)[str(WINDOWS[1])] == "trained @1"
    assert ready(w) == [str(h) for h in WINDOWS[2:]]
    with w.game.begin() as conn:
        conn.execute(sa.text("DELETE FROM trajectories WHERE agent_id = 'late'"))
    prepare(w, judge)
    assert w.ledger.stale() == []  # the rows it trained on are what is stored again


def test_a_row_that_moves_and_returns_counts_in_both_windows(w: Workspace, judge: CountingJudge) -> None:
    prepare(w, judge)
    move = sa.text("UPDATE trajectories SET window_id = :to WHERE agent_id = 'a4' AND window_id = :frm")

    def balanced(h: HourWindow) -> bool:
        with w.game.connect() as conn:
            return checks.every_row_accounted(conn, h, w.store.rows_read(h), row_outcomes_of(w.store.engine, h)).passed

    with w.game.begin() as conn:
        conn.execute(move, {"to": str(WINDOWS[1]), "frm": str(WINDOWS[0])})
    assert not balanced(WINDOWS[0])
    prepare(w, judge, WINDOWS[:2])
    assert (balanced(WINDOWS[0]), balanced(WINDOWS[1])) == (True, True)
    assert len(row_outcomes_of(w.store.engine, WINDOWS[1])) == 6
    with w.game.begin() as conn:
        conn.execute(
            sa.text(
                "UPDATE trajectories SET window_id = :to WHERE id IN (SELECT max(id) FROM trajectories "
                "WHERE agent_id = 'a4' AND window_id = :frm AND start_time < :end)"
            ),
            {"to": str(WINDOWS[0]), "frm": str(WINDOWS[1]), "end": WINDOWS[0].end_at.replace(tzinfo=None)},
        )
    for h in WINDOWS[:2]:
        ingest_window(h, w.game, w.store)
    assert (balanced(WINDOWS[0]), balanced(WINDOWS[1])) == (True, True)


# ── the summary ────────────────────────────────────────────────────────────────────────────────────


def agents(w: Workspace, h: HourWindow) -> int:
    query = sa.text("SELECT agents FROM babylon_rl.window_summary WHERE window_id = :w")
    with w.store.engine.connect() as conn:
        return conn.scalar(query, {"w": str(h)}) or 0


def test_a_commit_that_comes_later_than_younger_ones_is_counted(w: Workspace) -> None:
    """Guards against a cursor over a sequence: the row that commits last holds the smaller number."""
    refresh(w.game, w.store.engine, now=NOW)
    old, young = a_row("old", window=FIRST), a_row("young", window=FIRST)
    with w.game.connect() as slow:
        slow.execute(sa.text("SELECT pg_current_xact_id()"))
        slow.execute(sa.insert(game_tables.trajectories), [old])
        insert_rows(w.game, [young])
        refresh(w.game, w.store.engine, now=NOW)
        assert agents(w, FIRST) == 6
        slow.commit()
    refresh(w.game, w.store.engine, now=NOW)
    assert agents(w, FIRST) == 7


def test_readiness_of_an_unchanged_history_reads_no_row_of_it(w: Workspace) -> None:
    """It costs the same at a million rows as at a thousand, because it does not look at them."""
    asked: list[str] = []
    readiness(w, min_agents=5, min_windows=3, now=NOW)
    sa.event.listen(w.game, "before_cursor_execute", lambda _c, _cur, statement, *_: asked.append(statement))
    readiness(w, min_agents=5, min_windows=3, now=NOW)
    assert asked
    assert [s for s in asked if re.search(r"(FROM|JOIN) trajectories", s)] == []
    insert_rows(w.game, [a_row("late", window=FIRST)])
    readiness(w, min_agents=5, min_windows=3, now=NOW)
    assert any(re.search(r"(FROM|JOIN) trajectories", s) for s in asked)


def test_the_summary_says_what_a_count_over_all_rows_says(w: Workspace) -> None:
    refresh(w.game, w.store.engine, now=NOW)
    insert_rows(w.game, [a_row(f"b{i}", window=WINDOWS[i % 4], is_training_data=i % 2 == 0) for i in range(20)])
    with w.game.begin() as conn:
        conn.execute(sa.text("DELETE FROM trajectories WHERE agent_id IN ('a1', 'b4')"))
        conn.execute(sa.text("UPDATE trajectories SET is_evaluation = true WHERE agent_id = 'a2'"))
    assert refresh(w.game, w.store.engine, now=NOW) == 4
    assert refresh(w.game, w.store.engine, now=NOW) == 0
    with w.store.engine.connect() as conn:
        kept = conn.execute(sa.text("SELECT window_id, rows, agents FROM babylon_rl.window_summary ORDER BY 1")).all()
        true = conn.execute(
            sa.text("""SELECT window_id, count(*), count(DISTINCT agent_id) FROM trajectories
                       WHERE is_training_data AND NOT is_evaluation GROUP BY 1 ORDER BY 1""")
        ).all()
        counts = conn.execute(
            sa.text("SELECT agents, outcomes, windows FROM babylon_rl.window_counts WHERE windows <> 0 ORDER BY 1")
        ).all()
        again = conn.execute(
            sa.text("SELECT agents, outcomes, count(*) FROM babylon_rl.window_summary GROUP BY 1, 2 ORDER BY 1")
        ).all()
    assert kept == true
    assert counts == again
    with w.game.begin() as conn:
        conn.execute(sa.text("TRUNCATE trajectories"))
    refresh(w.game, w.store.engine, now=NOW)
    assert [agents(w, h) for h in WINDOWS] == [0, 0, 0, 0]


# ── dropout ────────────────────────────────────────────────────────────────────────────────────────


def test_dropout_drops_whole_windows_before_judging(w: Workspace, judge: CountingJudge) -> None:
    for h in WINDOWS:
        ingest_window(h, w.game, w.store)
        snapshot_outcomes(h, w.game, w.store, now=NOW, sync=True)
        group_window(h, w.store, min_agents=5)
    out = drop_out(w.store.engine, w.ledger.lineage, WINDOWS, target=1, cap=0.5, seed=1)
    assert len(out) == 2
    kept = [h for h in WINDOWS if h not in out]
    prepare(w, judge, kept)
    assert judge.asked == [str(h) for h in kept]
    assert drop_out(w.store.engine, w.ledger.lineage, WINDOWS, target=1, cap=0.5, seed=2) == out
    assert ready(w) == [str(h) for h in kept]
    assert recorded_but_not_judged(w, min_agents=5) == []
    for h in WINDOWS:
        ends = {(d.status, d.reason) for d in row_outcomes_of(w.store.engine, h)}
        assert ends == {("dropped_out", "dropout") if h in out else ("grouped", "has_turn")}
        assert states(w)[str(h)] == ("dropped out" if h in out else "judged")
    prepare(w, judge, sorted(out))  # grouped again, by hand: it stays out, and its rows say so
    assert {d.status for h in out for d in row_outcomes_of(w.store.engine, h)} == {"dropped_out"}
    assert ready(w) == [str(h) for h in kept]
    assert drop_out(w.store.engine, "other", WINDOWS, target=None, cap=0.5, seed=1) == set()


def test_the_game_may_still_write_a_row_of_no_hour(engine: sa.Engine) -> None:
    """Our trigger must not refuse what the game's own table takes: `infinity` with no window id names no hour."""
    row = a_row("agent-1") | {"window_id": None}
    with engine.begin() as conn:
        conn.execute(sa.insert(game_tables.trajectories), [row])
        conn.execute(sa.text("UPDATE trajectories SET start_time = 'infinity'"))
        conn.execute(
            sa.text(
                'INSERT INTO trajectories SELECT (jsonb_populate_record(t, \'{"id": "x", "trajectory_id": "x"}\')).* FROM trajectories t'
            )
        )
        assert conn.execute(sa.text("DELETE FROM trajectories")).rowcount == 2
