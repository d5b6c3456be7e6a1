"""The ledger of training, on a real Postgres."""

import subprocess
import sys
import time
from dataclasses import replace

import pytest
import sqlalchemy as sa

from babylon_rl.database import tables as t
from babylon_rl.errors import DataError, TransientError
from babylon_rl.store.ledger import Ledger, PlannedBatch
from babylon_rl.store.windows import Store
from babylon_rl.types import Hindsight, Judgment, PredictionOutcome, Score, WindowOutcomes
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import a_group, store_check_result

FIRST = HourWindow.parse("2025-01-15T00:00")
CHECKS = ("a", "b")


@pytest.fixture
def ledger(engine: sa.Engine) -> Ledger:
    with engine.begin() as conn:
        conn.execute(sa.delete(t.required_checks))
        conn.execute(
            sa.insert(t.required_checks), [{"check_name": name, "asset": "contextualized_groups"} for name in CHECKS]
        )
    return Ledger(engine, "line")


def make_ready(engine: sa.Engine, *windows: HourWindow, passed: tuple[bool, ...] = (True, True)) -> None:
    store = Store(engine)
    for w in windows:
        group = a_group("a", window=w)
        hindsight = Hindsight(
            group_id=group.group_id, window_id=str(w), outcomes=WindowOutcomes(window_id=str(w)), members=()
        )
        score = Score(trajectory_id=f"{w}/a", value=0.5, explanation="")
        judgment = Judgment(
            key=f"key-{w}",
            group_id=group.group_id,
            window_id=str(w),
            judge_model="j",
            judge_version="1",
            scores=(score,),
        )
        store.write_ingest(w, [], [], rows=0)
        store.write_groups(w, [(group, hindsight)], [], made_from=store.group_sources(w).made_from)
        store.write_judgment(judgment)
        stored = store.stored_group(w)
        assert stored is not None
        store.set_current_judgment(w, judgment, group_version=stored.version, instead_of=stored.judgment_key)
        for name, ok in zip(CHECKS, passed, strict=False):
            store_check_result(store.engine, w, name, passed=ok)


def record(ledger: Ledger, plan: PlannedBatch) -> None:
    ledger.record(plan, trainer="t", base_model="b", path="p", manifest={"f": "1"}, metrics={"loss/train": 1.0})


def ids(ledger: Ledger) -> list[str]:
    return [r.window_id for r in ledger.ready()]


def test_a_window_is_ready_when_every_required_check_passed(engine: sa.Engine, ledger: Ledger) -> None:
    make_ready(engine, FIRST)
    make_ready(engine, FIRST.next(1), passed=(True, False))
    make_ready(engine, FIRST.next(2), passed=(True,))
    assert ids(ledger) == [str(FIRST)]


def test_a_batch_takes_the_oldest_windows_up_to_the_hour(engine: sa.Engine, ledger: Ledger) -> None:
    make_ready(engine, *(FIRST.next(i) for i in range(5)))
    assert ledger.plan(FIRST, 3, learning_rate=None) is None, "one window is no batch of three"
    plan = ledger.plan(FIRST.next(4), 3, learning_rate=1e-3)
    assert plan is not None
    assert plan.windows == tuple(str(FIRST.next(i)) for i in range(3))
    assert (plan.step, plan.window_id, plan.learning_rate) == (1, str(FIRST.next(4)), 1e-3)


def test_a_planned_batch_stands_until_it_is_recorded(engine: sa.Engine, ledger: Ledger) -> None:
    make_ready(engine, *(FIRST.next(i) for i in range(1, 4)))
    plan = ledger.plan(FIRST.next(3), 3, learning_rate=None)
    make_ready(engine, FIRST)  # a late window: an undecided batch would now look different
    assert ledger.plan(FIRST.next(3), 2, learning_rate=9.0) == plan
    assert ledger.next_partition(2) == FIRST.next(3)
    assert plan is not None
    record(ledger, plan)
    assert ledger.unfinished_batch() is None
    assert ids(ledger) == [str(FIRST)]


def test_no_window_is_consumed_twice(engine: sa.Engine, ledger: Ledger) -> None:
    make_ready(engine, FIRST, FIRST.next())
    plan = ledger.plan(FIRST.next(), 2, learning_rate=None)
    assert plan is not None
    record(ledger, plan)
    again = PlannedBatch(
        lineage="line",
        step=2,
        window_id=str(FIRST.next(5)),
        windows=plan.windows[1:],
        judgment_keys=plan.judgment_keys[1:],
        group_versions=plan.group_versions[1:],
        learning_rate=None,
    )
    with pytest.raises(DataError, match="no window trains twice"):
        record(ledger, again)
    assert [c.step for c in ledger.checkpoints()] == [1]
    assert ledger.checkpoints()[0].windows == plan.windows


def test_another_lineage_may_use_the_same_windows(engine: sa.Engine, ledger: Ledger) -> None:
    make_ready(engine, FIRST)
    plan = ledger.plan(FIRST, 1, learning_rate=None)
    assert plan is not None
    record(ledger, plan)
    assert [r.window_id for r in Ledger(engine, "other").ready()] == [str(FIRST)]


def test_late_windows_train_in_their_own_hour(engine: sa.Engine, ledger: Ledger) -> None:
    """The order of training is that in which windows become ready, not the clock's: a year that comes late need not wait."""
    make_ready(engine, FIRST.next(5))
    plan = ledger.plan(FIRST.next(5), 1, learning_rate=None)
    assert plan is not None
    record(ledger, plan)
    make_ready(engine, FIRST.next(1), FIRST.next(2), FIRST.next(3))
    assert ledger.next_partition(1) == FIRST.next(1)
    assert ledger.next_partition(1, batches=10) == FIRST.next(3)
    assert ledger.next_partition(1, batches=10, up_to=FIRST.next(2)) == FIRST.next(2)
    assert ledger.next_partition(1, up_to=FIRST) is None
    late = ledger.plan(FIRST.next(3), 1, learning_rate=None)
    assert late is not None
    assert (late.step, late.window_id, late.windows) == (2, str(FIRST.next(3)), (str(FIRST.next(1)),))
    record(ledger, late)
    more = ledger.plan(FIRST.next(3), 2, learning_rate=None)
    assert more is not None
    record(ledger, more)
    assert [c.step for c in ledger.trained_in(FIRST.next(3))] == [2, 3]


def test_a_plan_whose_window_changed_is_planned_anew(engine: sa.Engine, ledger: Ledger) -> None:
    make_ready(engine, FIRST, FIRST.next())
    old = ledger.plan(FIRST.next(), 2, learning_rate=None)
    assert old is not None
    make_ready(engine, FIRST.next(2))
    regroup(engine, FIRST)
    assert ledger.next_partition(2) == FIRST.next(2), "the sensor sees the hour of the batch that will be planned"
    new = ledger.plan(FIRST.next(2), 2, learning_rate=None)
    assert new is not None
    assert (new.step, new.windows) == (1, (str(FIRST.next()), str(FIRST.next(2))))


def test_a_plan_that_was_sent_stands_whatever_changes(engine: sa.Engine, ledger: Ledger) -> None:
    """A paid job may exist for it: planning anew would pay twice."""
    make_ready(engine, FIRST)
    old = ledger.plan(FIRST, 1, learning_rate=None)
    assert old is not None
    with engine.begin() as conn:
        conn.execute(sa.update(t.planned_batches).values(submitted_at=sa.func.now()))
    regroup(engine, FIRST)
    kept = ledger.plan(FIRST, 1, learning_rate=None)
    assert kept is not None
    assert (kept.judgment_keys, kept.group_versions, kept.is_sent) == (old.judgment_keys, old.group_versions, True)
    assert not ledger.discard_unsent(kept)


def test_what_changes_during_a_training_is_reported_stale(engine: sa.Engine, ledger: Ledger) -> None:
    make_ready(engine, FIRST)
    plan = ledger.plan(FIRST, 1, learning_rate=None)
    assert plan is not None
    regroup(engine, FIRST)  # while the trainer works
    record(ledger, plan)
    assert ledger.stale() == [str(FIRST)]


def regroup(engine: sa.Engine, window: HourWindow) -> None:
    """Make a window's group anew with other outcomes; its messages stay the same."""
    store = Store(engine)
    stored = store.stored_group(window)
    assert stored is not None
    outcomes = WindowOutcomes(
        window_id=str(window), predictions=(PredictionOutcome(market_id="m", question="?", outcome="YES"),)
    )
    hindsight = replace(stored.hindsight, outcomes=outcomes)
    store.write_groups(window, [(stored.group, hindsight)], [], made_from=store.group_sources(window).made_from)


def test_the_policy_as_of_an_hour(engine: sa.Engine, ledger: Ledger) -> None:
    for i in (2, 4):
        make_ready(engine, FIRST.next(i))
        plan = ledger.plan(FIRST.next(i), 1, learning_rate=None)
        assert plan is not None
        record(ledger, plan)
    steps = [c.step if (c := ledger.latest(as_of=FIRST.next(i))) else 0 for i in range(6)]
    assert steps == [0, 0, 1, 1, 2, 2]
    assert ledger.manifest(1) == {"f": "1"}
    assert ledger.manifest(0) is None


def test_one_training_at_a_time(engine: sa.Engine, ledger: Ledger) -> None:
    second = Ledger(engine, "line")
    with ledger.training():
        with pytest.raises(TransientError, match="trained by another process"), second.training():
            pass
        with Ledger(engine, "other").training():
            pass
    with second.training():
        pass


def test_a_killed_training_lets_go_of_its_lineage(database_url: str, ledger: Ledger) -> None:
    code = (
        "import sys, time\n"
        "from babylon_rl.database.connection import connect\n"
        "from babylon_rl.store.ledger import Ledger\n"
        "with Ledger(connect(sys.argv[1]), 'line').training():\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, database_url], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TransientError), ledger.training():
            pass
        holder.kill()
    for _ in range(100):  # the server notices within moments
        try:
            with ledger.training():
                return
        except TransientError:
            time.sleep(0.1)
    pytest.fail("the lock outlived its holder")


def test_discarding_a_plan_frees_its_windows(engine: sa.Engine, ledger: Ledger) -> None:
    make_ready(engine, FIRST)
    ledger.plan(FIRST, 1, learning_rate=None)
    discarded = ledger.discard_plan()
    assert discarded is not None
    assert ledger.unfinished_batch() is None
    assert ledger.plan(FIRST, 1, learning_rate=0.5) is not None
