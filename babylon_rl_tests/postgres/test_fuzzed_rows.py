"""Whatever a row holds: no exception, one outcome for each, and not a byte of its siblings changes."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from fuzz import COLUMN_DAMAGE, ODD, TEXT_DAMAGE, a_document, a_fuzzed_row, documents, text_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from babylon_rl.database import game_tables
from babylon_rl.database import tables as t
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.store.windows import Store
from babylon_rl.types import REASONS, Json, RowStatus
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import WINDOW, a_json_call, a_json_step, a_row, insert_call_log, insert_rows

ROWS = 10_400
WINDOWS = [WINDOW.next(i) for i in range(8)]
GOOD_AGENTS = [f"good-{i}" for i in range(5)]


@pytest.fixture
def store(engine: sa.Engine) -> Store:
    return Store(engine)


def write(engine: sa.Engine, rows: Sequence[Json]) -> None:
    """Write the values as text: PostgreSQL alone decides what a column can hold."""
    columns = list(rows[0])
    raw: Any = engine.raw_connection()
    with raw.cursor() as cursor, cursor.copy(f"COPY trajectories ({', '.join(columns)}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row([row[c] for c in columns])
    raw.commit()
    raw.close()


def go_through(engine: sa.Engine, store: Store, windows: Sequence[HourWindow]) -> int:
    """Read, stitch, group and account; the rows read."""
    read = 0
    for w in windows:
        read += int(ingest_window(w, engine, store).facts["rows"])
        group_window(w, store, min_agents=5)
    return read


def bodies(engine: sa.Engine) -> dict[str, bytes]:
    """The stored bytes of every good agent's trajectory."""
    with engine.connect() as conn:
        c = t.window_trajectories.c
        return {
            i: bytes(b) for i, b in conn.execute(sa.select(c.trajectory_id, c.body).where(c.agent_id.in_(GOOD_AGENTS)))
        }


def good_rows(window: HourWindow) -> list[Json]:
    return [
        a_row(
            a,
            tick=k,
            window=window,
            steps_json=[a_json_step(llmCalls=[a_json_call(f"{a} says {k}")])],
            final_pnl=k * 1.5,
        )
        for a in GOOD_AGENTS
        for k in range(2)
    ]


def assert_all_accounted(engine: sa.Engine) -> Counter[tuple[str, str]]:
    """Each row of the game's table has exactly one outcome, and nothing else has any."""
    with engine.connect() as conn:
        ids = conn.scalars(sa.select(game_tables.trajectories.c.id)).all()
        ends = conn.execute(sa.select(t.row_outcomes)).mappings().all()
    assert sorted(e["source_id"] for e in ends) == sorted(ids)
    assert all(e["reason"] in REASONS[RowStatus(e["status"])] for e in ends)
    assert "read" not in {e["status"] for e in ends}
    assert all((e["group_id"] is not None) == (e["status"] == "grouped") for e in ends)
    return Counter((e["status"], e["reason"]) for e in ends)


def test_ten_thousand_fuzzed_rows_cost_nobody_anything(engine: sa.Engine, store: Store) -> None:
    r = random.Random(20250115)
    write(engine, [row for w in WINDOWS for row in good_rows(w)])
    go_through(engine, store, WINDOWS)
    before = bodies(engine)
    assert len(before) == len(WINDOWS) * len(GOOD_AGENTS)

    per_window = ROWS // len(WINDOWS)
    for w in WINDOWS:
        fuzzed = [a_fuzzed_row(r, w, f"fuzzed-{r.randrange(600)}") for _ in range(per_window)]
        write(engine, fuzzed)
        broken = [a_row(a, window=w, steps_json=x) for a in GOOD_AGENTS for x in ("[{", "[]", "[1]", '"\\ud83d"')]
        write(engine, broken)  # also in the good agents' own names

    read = go_through(engine, store, WINDOWS)

    ended = assert_all_accounted(engine)
    assert read == sum(ended.values()) >= 10_000 + len(WINDOWS) * (len(GOOD_AGENTS) * 6)
    assert bodies(engine) == before
    # The fuzz reached every outcome; otherwise this test would show nothing.
    assert {end for end, _ in ended} >= {"grouped", "excluded", "quarantined"}
    assert {reason for _, reason in ended} >= {
        "has_turn",
        "no_turn",
        "no_turns",
        "benchmark",
        "evaluation",
        "not_training_data",
        "no_steps",
        "no_llm_calls",
        "bad_json",
        "bad_shape",
        "lone_surrogate",
    }
    assert min(n for (_, reason), n in ended.items() if reason in ("has_turn", "bad_json", "bad_shape")) > 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(documents(WINDOW), documents(WINDOW)), min_size=1, max_size=8))
def test_any_document_is_accounted_for_and_harms_nobody(
    engine: sa.Engine, store: Store, rows: list[tuple[str, str]]
) -> None:
    """The same with shapes that shrink; the second document stands in `metadata_json`."""
    with engine.begin() as conn:
        conn.execute(
            sa.text(
                "TRUNCATE trajectories, babylon_rl.row_outcomes, babylon_rl.windows, "
                "babylon_rl.window_trajectories, babylon_rl.contextualized_groups"
            )
        )
    write(engine, good_rows(WINDOW))
    go_through(engine, store, [WINDOW])
    before = bodies(engine)
    write(engine, [a_row(f"fuzzed-{i % 3}", steps_json=s, metadata_json=m) for i, (s, m) in enumerate(rows)])
    assert go_through(engine, store, [WINDOW]) == len(rows) + 10
    assert_all_accounted(engine)
    assert bodies(engine) == before


def _single_faults() -> Iterator[tuple[str, Json]]:
    r = random.Random(7)
    whole = text_of([a_json_step(0), a_json_step(1)])
    for i, odd in enumerate(ODD):
        for key in ("stepNumber", "timestamp", "environmentState", "llmCalls", "action", "reward", "stepId"):
            yield f"odd-{i}-{key}", {"steps_json": text_of([a_json_step(0) | {key: odd}])}
        for key in ("systemPrompt", "userPrompt", "response", "purpose", "modelVersion", "temperature", "maxTokens"):
            yield f"odd-{i}-{key}", {"steps_json": text_of([a_json_step(0, llmCalls=[a_json_call() | {key: odd}])])}
        for key in ("actionType", "parameters", "success", "result", "correctness"):
            yield f"odd-{i}-{key}", {"steps_json": text_of([a_json_step(0, action={"actionType": "BUY", key: odd})])}
        yield f"odd-{i}-knowledge", {"metadata_json": text_of({"gameKnowledge": odd})}
    for i, damage in enumerate(TEXT_DAMAGE):
        yield f"text-{i}", {"steps_json": damage(r, whole)}
    for column, values in COLUMN_DAMAGE.items():
        if column != "agent_id":
            for i, value in enumerate(values):
                yield f"column-{column}-{i}", {column: value}


def test_every_single_fault_at_every_key_ends_somewhere(engine: sa.Engine, store: Store) -> None:
    """All pairs of odd value and key, one fault a row: nothing here is left to chance."""
    faults = list(_single_faults())
    write(engine, good_rows(WINDOW))
    go_through(engine, store, [WINDOW])
    before = bodies(engine)
    write(engine, [a_row(name, **changes) for name, changes in faults])
    assert go_through(engine, store, [WINDOW]) == len(faults) + 10
    ended = assert_all_accounted(engine)
    assert sum(ended.values()) == len(faults) + 10 > 1000
    assert bodies(engine) == before


def test_odd_calls_in_the_log_cost_nobody_anything(engine: sa.Engine, store: Store) -> None:
    """`llm_call_logs` is read for rows whose steps hold no call; its columns are as odd."""
    r = random.Random(11)
    write(engine, good_rows(WINDOW))
    go_through(engine, store, [WINDOW])
    before = bodies(engine)
    metadata = [None, "", "{", "null", "[]", '{"modelVersion":7}', '{"modelVersion":"\\ud83d"}', "[" * 9000]
    numbers = [None, float("nan"), float("inf"), 1e308]
    silent = []
    for i in range(60):
        steps = a_document(r, WINDOW) or [a_json_step()]
        row = a_row(f"silent-{i}", steps_json=text_of([s | {"llmCalls": [], "stepId": r.choice(ODD)} for s in steps]))
        silent.append(row)
        for _ in range(2):
            insert_call_log(
                engine,
                row["trajectory_id"],
                metadata=r.choice(metadata),
                temperature=r.choice(numbers),
                step_id=r.choice(["", "null", "s-0", "?"]),
                purpose=r.choice(["action", "", "x" * 500]),
                response=r.choice(["", " ", "buy", "é" * 9]),
                timestamp=r.choice(
                    [WINDOW.start_at.replace(tzinfo=None), WINDOW.start_at.replace(tzinfo=None, year=1)]
                ),
            )
    insert_rows(engine, silent)
    assert go_through(engine, store, [WINDOW]) == 70
    assert_all_accounted(engine)
    assert bodies(engine) == before
