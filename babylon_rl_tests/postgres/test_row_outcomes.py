"""Row outcomes between reading and grouping; each status and reason is documented once, in its enum."""

from pathlib import Path

import sqlalchemy as sa

import babylon_rl
from babylon_rl.pipeline import checks
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.report.row_outcomes import meanings_table, picture
from babylon_rl.store.row_outcomes import count_row_outcomes, row_outcomes_of
from babylon_rl.store.windows import Store
from babylon_rl.types import REASONS, RowOutcomeCounts, RowReason, RowStatus
from babylon_rl_tests.factories import WINDOW, insert_row

DOCS = Path(babylon_rl.__file__).parent.parent / "docs" / "ingest.md"
# A data version that an earlier edition stored for the rows of `test_a_data_version_outlives_the_words`.
VERSION_BEFORE = "d55d5c41583b13c7d93b697702d52460b9362620442b1d66a8267f2db711b99e"


def test_no_row_is_called_ineligible_before_it_is_grouped(engine: sa.Engine) -> None:
    store = Store(engine)
    for i in range(5):
        insert_row(engine, f"agent-{i}")
    insert_row(engine, "agent-5", steps_json="[]")
    ingest_window(WINDOW, engine, store)
    read = [(RowStatus.READ, RowReason.HAS_TURN)] * 5 + [(RowStatus.QUARANTINED, RowReason.NO_STEPS)]
    assert sorted((o.status, o.reason) for o in row_outcomes_of(engine, WINDOW)) == sorted(read)
    with engine.connect() as conn:
        assert checks.every_row_accounted(conn, WINDOW, 6, row_outcomes_of(engine, WINDOW)).passed
    group_window(WINDOW, store, min_agents=5)
    (counts,) = count_row_outcomes(engine, [WINDOW])
    assert counts.rows == {(RowStatus.GROUPED, RowReason.HAS_TURN): 5, (RowStatus.QUARANTINED, RowReason.NO_STEPS): 1}


def test_a_data_version_outlives_the_words(engine: sa.Engine) -> None:
    """Guards the frozen words of `version_entry`: with others every ingested window would be new and its group stale."""
    for i, steps in enumerate(("[]", '[{"llmCalls":[{"userPrompt":"?","response":"!"}]}]')):
        insert_row(engine, f"agent-{i}", id=str(i), trajectory_id=f"t-{i}", steps_json=steps)
    thought = '[{"llmCalls":[{"userPrompt":"?","response":"!","purpose":"reasoning"}]}]'
    insert_row(engine, "agent-2", id="2", trajectory_id="t-2", steps_json=thought)
    assert ingest_window(WINDOW, engine, Store(engine)).data_version == VERSION_BEFORE


def test_every_word_is_documented_and_belongs_somewhere() -> None:
    for word in (*RowStatus, *RowReason):
        assert word.__doc__ == word.meaning
        assert len(word.meaning) > 10
    assert set(REASONS) == set(RowStatus)
    assert {r for reasons in REASONS.values() for r in reasons} == set(RowReason)


def test_the_table_in_the_docs_is_the_enums() -> None:
    assert meanings_table() in DOCS.read_text(encoding="utf-8")


def test_every_status_can_be_drawn() -> None:
    rows = {(status, reasons[0]): 1 for status, reasons in REASONS.items()}
    assert picture([RowOutcomeCounts(window_id=str(WINDOW), rows=rows)])
