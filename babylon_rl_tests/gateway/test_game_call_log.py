"""An agent that only makes HTTP calls is recorded: its calls are the gateway's to log, its steps are its own."""

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from recording_factories import a_logged_call, served

from babylon_rl.database import game_tables
from babylon_rl.database.connection import connect
from babylon_rl.deployment.stages import Arm
from babylon_rl.gateway.calls import ServedCall
from babylon_rl.gateway.recording import CallRecorder, RecordingStats
from babylon_rl.ingest.call_logs import find_prompts
from babylon_rl.ingest.reader import stream_window
from babylon_rl.ingest.stitching import stitch
from babylon_rl.types import Trajectory
from babylon_rl_tests.factories import WINDOW, a_json_step, a_row, insert_rows
from babylon_rl_tests.prisma_tables import PRISMA

ANSWERS = [f'{{"action":"BUY","ticker":"T{i}"}}' for i in range(3)]


def record(url: str, folder: Path, calls: Sequence[ServedCall], **options: Any) -> RecordingStats:
    async def run() -> RecordingStats:
        recorder = CallRecorder(url, folder, **options)
        async with recorder.running():
            for call in calls:
                recorder.record(call)
        return recorder.stats

    return asyncio.run(run())


def stitched(engine: sa.Engine) -> list[Trajectory]:
    with engine.connect() as conn:
        return stitch(row for agent in stream_window(conn, WINDOW) for row in agent.rows)


@pytest.fixture
def prisma(empty_database_url: str) -> Iterator[sa.Engine]:
    """Another game's tables, in Prisma's spelling."""
    engine = connect(empty_database_url)
    with engine.begin() as conn:
        conn.exec_driver_sql(PRISMA)
    yield engine
    engine.dispose()


def write_agents_row(engine: sa.Engine, trajectory_id: str, *, spelling: str = "snake") -> None:
    """What the agent writes itself: three steps without any call."""
    row = a_row(trajectory_id=trajectory_id, steps_json=[a_json_step(i, llmCalls=[]) for i in range(3)])
    if spelling == "snake":
        insert_rows(engine, [row])
        return
    insert = (
        'INSERT INTO trajectories (id, "trajectoryId", "agentId", "startTime", "windowId", "stepsJson", "metadataJson", '
        '"finalPnL") VALUES (%(id)s, %(trajectory_id)s, %(agent_id)s, %(start_time)s, %(window_id)s, %(steps_json)s, '
        "'{}', 12.5)"
    )
    with engine.begin() as conn:
        conn.exec_driver_sql(insert, row)


def check_turns(trajectory: Trajectory) -> None:
    assert [t.response for t in trajectory.turns] == ANSWERS
    assert {(t.system, t.user) for t in trajectory.turns} == {("You trade.", "Markets: …")}
    assert [t.policy_version for t in trajectory.turns] == ["babylon-mmo@3", "babylon-mmo@4", "babylon-mmo@3"]
    assert [d["step"] for d in trajectory.decisions] == [0, 1, 2]
    assert [t.is_cut is True for t in trajectory.turns] == [False, True, False]


def calls_of(trajectory_id: str) -> list[ServedCall]:
    """In no order: the step's number tells, not the time, which may be years after the game's."""
    return [
        a_logged_call(trajectory_id, 2, ANSWERS[2]),
        a_logged_call(trajectory_id, 0, ANSWERS[0]),
        a_logged_call(trajectory_id, 1, ANSWERS[1], step=4, arm=Arm.CANDIDATE, finish_reason="length"),
        a_logged_call(trajectory_id, 1, "thinking", purpose="reasoning"),
        a_logged_call(trajectory_id, 1, "nobody saw this", arm=Arm.SHADOW),
        a_logged_call(trajectory_id, 1, "half an ans", status=499),
    ]


def test_calls_and_steps_meet_in_our_own_tables(engine: sa.Engine, database_url: str, tmp_path: Path) -> None:
    write_agents_row(engine, "t-1")
    calls = calls_of("t-1")
    stats = record(database_url, tmp_path, calls)
    again = record(database_url, tmp_path, calls)

    assert (stats.logged, stats.refused, stats.written) == (4, 0, 6)
    assert (again.logged, again.written) == (0, 0), "each once, however often it is tried"
    (trajectory,) = stitched(engine)
    check_turns(trajectory)
    with engine.connect() as conn:
        logs = {r["call_id"]: r for r in conn.execute(sa.select(game_tables.llm_call_logs)).mappings()}
    log = logs[calls[1].call_id]
    assert (log["step_id"], log["model"], log["purpose"], log["total_tokens"]) == (
        "t-1-0",
        "babylon-mmo",
        "action",
        220,
    )
    assert (log["temperature"], log["max_tokens"], log["latency_ms"], log["messages_json"]) == (0.5, 64, 12, None)
    assert json.loads(log["metadata"]) == {
        "modelVersion": "babylon-mmo@3",
        "gateway": calls[1].call_id,
        "finishReason": "stop",
    }


def test_numbers_that_no_column_holds_hold_up_nothing(engine: sa.Engine, database_url: str, tmp_path: Path) -> None:
    """As an upstream may count tokens, and no clock tells time."""
    counts = {"prompt_tokens": 2**31 - 1, "completion_tokens": 2**31 - 1}
    calls = [a_logged_call("t", 0, "r", latency_ms=1e300), a_logged_call("t", 1, "r", **counts)]

    stats = record(database_url, tmp_path, calls)

    assert (stats.written, stats.logged, stats.rejected, stats.waiting) == (2, 1, 1, 0)
    with engine.connect() as conn:
        assert conn.scalars(sa.select(game_tables.llm_call_logs.c.total_tokens)).all() == [None]


def test_calls_and_steps_meet_in_prismas_tables(
    engine: sa.Engine, database_url: str, prisma: sa.Engine, empty_database_url: str, tmp_path: Path
) -> None:
    write_agents_row(prisma, "t-1", spelling="prisma")
    stats = record(database_url, tmp_path, calls_of("t-1"), game_url=empty_database_url, into_foreign_game=True)
    assert (stats.logged, stats.refused) == (4, 0)
    (trajectory,) = stitched(prisma)
    check_turns(trajectory)


def test_what_a_real_game_takes_no_null_for_is_filled(
    engine: sa.Engine, database_url: str, prisma: sa.Engine, empty_database_url: str, tmp_path: Path
) -> None:
    """The game's own schema has `temperature Float` and `maxTokens Int`; an agent need not send a limit."""
    with prisma.begin() as conn:
        conn.exec_driver_sql(
            'ALTER TABLE llm_call_logs ALTER "maxTokens" SET NOT NULL, ALTER temperature SET NOT NULL, '
            "ALTER model SET NOT NULL, ALTER purpose SET NOT NULL"
        )
    write_agents_row(prisma, "t-1", spelling="prisma")
    calls = [a_logged_call("t-1", i, a, max_tokens=None, finish_reason=None) for i, a in enumerate(ANSWERS)]
    stats = record(database_url, tmp_path, calls, game_url=empty_database_url, into_foreign_game=True)
    assert (stats.logged, stats.rejected) == (3, 0)
    (trajectory,) = stitched(prisma)
    assert [t.response for t in trajectory.turns] == ANSWERS
    assert {t.is_cut is True for t in trajectory.turns} == {False}


def test_a_column_that_nothing_is_known_of_is_named(
    engine: sa.Engine,
    database_url: str,
    prisma: sa.Engine,
    empty_database_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with prisma.begin() as conn:
        conn.exec_driver_sql('ALTER TABLE llm_call_logs ADD "tenantId" text NOT NULL')
    stats = record(database_url, tmp_path, calls_of("t"), game_url=empty_database_url, into_foreign_game=True)
    assert (stats.refused, stats.written) == (4, 6)
    assert "'tenantId' that takes no null" in caplog.text


def test_another_games_log_is_left_alone(
    engine: sa.Engine,
    database_url: str,
    prisma: sa.Engine,
    empty_database_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Said once, counted, and the served calls are recorded all the same."""
    with caplog.at_level(logging.WARNING):
        stats = record(database_url, tmp_path, calls_of("t-1"), game_url=empty_database_url)
    with prisma.connect() as conn:
        assert conn.scalar(sa.text("SELECT count(*) FROM llm_call_logs")) == 0
    assert (stats.logged, stats.refused, stats.written, stats.waiting) == (0, 4, 6, 0)
    assert len(served(engine)) == 6
    (said,) = [r.message for r in caplog.records if "another game's" in r.message]
    assert "--into-foreign-game" in said


def test_a_game_without_the_table_is_said_in_a_sentence(
    engine: sa.Engine, database_url: str, empty_database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        stats = record(database_url, tmp_path, calls_of("t"), game_url=empty_database_url, into_foreign_game=True)
    assert stats.refused == 4
    assert "no table 'llm_call_logs'" in caplog.text


def test_a_call_without_a_step_belongs_to_the_step_of_its_time(
    engine: sa.Engine, database_url: str, tmp_path: Path
) -> None:
    write_agents_row(engine, "t-1")
    step_begins = [s["timestamp"] for s in (a_json_step(i) for i in range(3))]
    calls = [
        a_logged_call(
            "t-1", None, answer, asked_at=WINDOW.start_at.fromtimestamp(ms / 1000 + 5, WINDOW.start_at.tzinfo)
        )
        for answer, ms in zip(ANSWERS, step_begins, strict=True)
    ]
    record(database_url, tmp_path, calls[::-1])
    (trajectory,) = stitched(engine)
    assert [t.response for t in trajectory.turns] == ANSWERS


def test_of_a_dialogue_nothing_trains_and_all_is_kept(engine: sa.Engine, database_url: str, tmp_path: Path) -> None:
    """The game's log has two texts for a prompt: whatever they held would not be what the policy was shown."""
    dialogue = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    write_agents_row(engine, "t-1")
    stats = record(database_url, tmp_path, [a_logged_call("t-1", 0, "d", messages=json.dumps(dialogue))])
    assert stats.logged == 1
    assert stitched(engine) == []
    with engine.connect() as conn:
        kept = conn.scalar(sa.select(game_tables.llm_call_logs.c.messages_json))
    assert json.loads(str(kept)) == dialogue


@pytest.mark.parametrize(
    ("messages", "prompts"),
    [
        ([{"role": "user", "content": "u"}], ("", "u")),
        ([{"role": "developer", "content": "s"}, {"role": "user", "content": "u"}], ("s", "u")),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], ("", "ab")),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], None),
        ([{"role": "system", "content": "s"}], None),
        (
            [{"role": "system", "content": "s"}, {"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
            None,
        ),
        ([{"role": "tool", "content": "s"}], None),
        ([], None),
    ],
)
def test_two_prompts_are_found_where_they_are_all(messages: Any, prompts: tuple[str, str] | None) -> None:
    assert find_prompts(messages) == prompts


def test_a_broken_row_of_the_game_costs_no_other(
    engine: sa.Engine, database_url: str, prisma: sa.Engine, empty_database_url: str, tmp_path: Path
) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute("ALTER TABLE llm_call_logs ADD CHECK (response NOT LIKE 'never%')")
    calls = [a_logged_call("t-1", i, "never" if i == 1 else "r") for i in range(4)]
    stats = record(database_url, tmp_path, calls, game_url=empty_database_url, into_foreign_game=True)
    assert (stats.logged, stats.rejected, stats.written, stats.waiting) == (3, 1, 4, 0)
