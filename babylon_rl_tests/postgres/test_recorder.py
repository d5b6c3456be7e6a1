"""The recorder writes what the game's own recorder writes, whole or not at all."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any

import pytest
import sqlalchemy as sa

from babylon_rl.database import bulk_copy, game_tables
from babylon_rl.database.bulk_copy import insert_new
from babylon_rl.errors import DataError
from babylon_rl.ingest.recorder import SnowflakeIds, TrajectoryRecorder
from babylon_rl.types import Json
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import a_row, read_rows

AT = datetime(2025, 1, 15, 10, 59, 59, 999_600, tzinfo=UTC)


class Clock:
    def __init__(self, now: datetime = AT) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def record(r: TrajectoryRecorder, agent: str = "a", response: str = "r", end: bool = True, **final: Any) -> str:
    t = r.start_trajectory(agent_id=agent)
    r.start_step(t, {"agentBalance": 0, "agentPnL": None, "openPositions": 0})
    r.log_provider_access(t, provider="MARKETS", data={"BTC": 1}, purpose="prices")
    r.log_llm_call(
        t,
        model="m",
        model_version="babylon-mmo@3",
        system_prompt="s",
        user_prompt="u",
        response=response,
        temperature=0.0,
        max_tokens=64,
        latency_ms=12.5,
        prompt_tokens=10,
        completion_tokens=0,
    )
    r.complete_step(t, action_type="BUY", parameters={"ticker": "BTC"}, success=True, result={"price": 1})
    if end:
        r.end_trajectory(t, **final)
    return t


def rows_of(engine: sa.Engine, table: sa.Table) -> list[Any]:
    with engine.connect() as conn:
        return list(conn.execute(sa.select(table)).mappings())


def test_a_finish_reason_is_written_where_one_was_received(engine: sa.Engine) -> None:
    recorder = TrajectoryRecorder(engine, clock=Clock())
    t = recorder.start_trajectory(agent_id="a")
    recorder.start_step(t, {"agentBalance": 0})
    for reason in ("length", None):
        recorder.log_llm_call(
            t,
            model="m",
            model_version=None,
            system_prompt="s",
            user_prompt="u",
            response="r",
            max_tokens=1,
            finish_reason=reason,
        )
    recorder.complete_step(t, action_type="HOLD", parameters={}, success=True)
    recorder.end_trajectory(t)
    (row,) = rows_of(engine, game_tables.trajectories)
    assert [c.get("finishReason", "not written") for c in json.loads(row["steps_json"])[0]["llmCalls"]] == [
        "length",
        "not written",
    ]


def test_steps_are_written_in_the_games_own_json(engine: sa.Engine) -> None:
    record(TrajectoryRecorder(engine, clock=Clock()))
    (row,) = rows_of(engine, game_tables.trajectories)
    assert json.loads(row["steps_json"]) == [
        {
            "stepNumber": 0,
            "timestamp": 1736938799999,
            "environmentState": {"agentBalance": 0, "agentPnL": None, "openPositions": 0},
            "providerAccesses": [{"providerName": "MARKETS", "data": {"BTC": 1}, "purpose": "prices"}],
            "llmCalls": [
                {
                    "model": "m",
                    "modelVersion": "babylon-mmo@3",
                    "systemPrompt": "s",
                    "userPrompt": "u",
                    "response": "r",
                    "reasoning": None,
                    "temperature": 0.0,
                    "maxTokens": 64,
                    "latencyMs": 12.5,
                    "purpose": "action",
                    "actionType": None,
                }
            ],
            "action": {
                "actionType": "BUY",
                "parameters": {"ticker": "BTC"},
                "success": True,
                "result": {"price": 1},
            },
            "reward": 0.0,
        }
    ]
    (log,) = rows_of(engine, game_tables.llm_call_logs)
    assert json.loads(log["metadata"]) == {"modelVersion": "babylon-mmo@3"}
    assert (log["trajectory_id"], log["prompt_tokens"], log["completion_tokens"], log["total_tokens"]) == (
        row["trajectory_id"],
        10,
        0,
        10,
    )
    assert (row["trades_executed"], row["posts_created"], row["episode_length"]) == (1, 0, 1)


def test_a_recorded_window_is_the_hour_of_the_start(engine: sa.Engine) -> None:
    """Guards against letting PostgreSQL round 10:59:59.9996 up into the next hour."""
    clock = Clock()
    r = TrajectoryRecorder(engine, clock=clock)
    t = record(r, end=False)
    clock.now = AT + timedelta(minutes=5)
    r.end_trajectory(t)
    (row,) = rows_of(engine, game_tables.trajectories)
    assert (row["window_id"], row["scenario_id"], row["window_hours"]) == ("2025-01-15T10:00", "2025-01-15T10:00", 1)
    assert row["start_time"].isoformat() == "2025-01-15T10:59:59.999000"
    with engine.connect() as conn:
        assert len(read_rows(conn, HourWindow.parse("2025-01-15T10:00"))[0]) == 1


def test_a_given_scenario_is_kept_beside_the_window(engine: sa.Engine) -> None:
    r = TrajectoryRecorder(engine, clock=Clock())
    r.end_trajectory(r.start_trajectory(agent_id="a", scenario_id="benchmark-1", episode_id="e"))
    (row,) = rows_of(engine, game_tables.trajectories)
    assert (row["window_id"], row["scenario_id"], row["episode_id"]) == ("2025-01-15T10:00", "benchmark-1", "e")


def test_zero_is_written_as_zero_and_unknown_as_null(engine: sa.Engine) -> None:
    r = TrajectoryRecorder(engine, clock=Clock())
    record(r, "zero", final_pnl=0.0, final_balance=0.0)
    record(r, "unknown")
    found = {x["agent_id"]: (x["final_pnl"], x["final_balance"]) for x in rows_of(engine, game_tables.trajectories)}
    assert found == {"zero": (0.0, 0.0), "unknown": (None, None)}


def test_a_trajectory_is_written_with_its_calls_or_not_at_all(engine: sa.Engine) -> None:
    r = TrajectoryRecorder(engine, clock=Clock())
    t = record(r, end=False)
    with engine.begin() as conn:
        conn.execute(sa.text("DROP TABLE llm_call_logs"))
    with pytest.raises(sa.exc.ProgrammingError):
        r.end_trajectory(t)
    assert rows_of(engine, game_tables.trajectories) == []


def test_a_batch_with_an_error_writes_nothing(engine: sa.Engine) -> None:
    r = TrajectoryRecorder(engine, clock=Clock())
    with r.batch():
        record(r)
        assert rows_of(engine, game_tables.trajectories) == []
        with r.batch():
            record(r)
        assert rows_of(engine, game_tables.trajectories) == []
    assert len(rows_of(engine, game_tables.trajectories)) == len(rows_of(engine, game_tables.llm_call_logs)) == 2
    with pytest.raises(DataError, match="not open"), r.batch():  # noqa: PT012
        record(r)
        r.end_trajectory("nobody")
    assert len(rows_of(engine, game_tables.trajectories)) == 2
    record(r)
    assert len(rows_of(engine, game_tables.trajectories)) == 3


def test_a_batch_played_again_writes_nothing_twice(engine: sa.Engine) -> None:
    for _ in range(2):
        r = TrajectoryRecorder(engine, clock=Clock())
        with r.batch():
            record(r)
    assert len(rows_of(engine, game_tables.trajectories)) == len(rows_of(engine, game_tables.llm_call_logs)) == 1


def test_a_new_batch_goes_straight_into_the_table(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_copy, "_copy_missing", None)
    assert _insert(engine, [a_row("a"), a_row("b")]) == 2


def test_two_writers_of_the_same_batch_write_it_once(engine: sa.Engine) -> None:
    """Guards the straight COPY: neither saw the other's rows when it looked."""
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    rows = [a_row(f"agent-{i}", trajectory_id=f"t{i}") for i in range(3)]
    with ThreadPoolExecutor(1) as pool, engine.connect() as first, engine.connect() as watch:
        first.begin()
        assert insert_new(first, game_tables.trajectories, rows, key="trajectory_id") == 3
        more = [*rows, a_row("late", trajectory_id="t3")]
        second = pool.submit(lambda: _insert(engine, more))
        while not watch.scalar(waiting) and not second.done():
            watch.rollback()
        first.commit()
        assert second.result(10) == 1
    assert sorted(x["agent_id"] for x in rows_of(engine, game_tables.trajectories)) == [
        "agent-0",
        "agent-1",
        "agent-2",
        "late",
    ]


@pytest.mark.parametrize("batched", [True, False])
def test_another_trajectory_under_a_taken_id_is_refused(engine: sa.Engine, batched: bool) -> None:
    """Guards ON CONFLICT DO NOTHING: two writers with one simulated clock make the same ids."""
    record(TrajectoryRecorder(engine, clock=Clock()), "first")
    r = TrajectoryRecorder(engine, clock=Clock())
    with pytest.raises(DataError, match="different"), r.batch() if batched else nullcontext():
        record(r, "second")
    assert [x["agent_id"] for x in rows_of(engine, game_tables.trajectories)] == ["first"]
    record(TrajectoryRecorder(engine, clock=Clock(), new_id=SnowflakeIds(Clock(), worker=1)), "second")
    assert len(rows_of(engine, game_tables.trajectories)) == 2


def test_1500_rows_and_calls_take_under_a_second(engine: sa.Engine) -> None:
    r = TrajectoryRecorder(engine, clock=Clock())
    began = perf_counter()
    with r.batch():
        for i in range(1500):
            record(r, f"agent-{i % 8}", "x" * 500)
    assert perf_counter() - began < 1.0
    assert len(rows_of(engine, game_tables.llm_call_logs)) == 1500


def test_ids_are_decimal_above_2_to_53_distinct_and_rising() -> None:
    ids = SnowflakeIds(Clock())
    made = [int(ids()) for _ in range(10_000)]
    assert made == sorted(set(made))
    assert made[0] > 2**53
    assert made[-1] < 2**63


def test_text_that_postgres_cannot_hold_is_replaced_not_refused(engine: sa.Engine) -> None:
    record(TrajectoryRecorder(engine, clock=Clock()), response="a\ud83db\x00c😀")
    (log,) = rows_of(engine, game_tables.llm_call_logs)
    (row,) = rows_of(engine, game_tables.trajectories)
    assert log["response"] == json.loads(row["steps_json"])[0]["llmCalls"][0]["response"] == "a\ufffdb\ufffdc😀"


def test_misuse_is_an_error_of_one_sentence(engine: sa.Engine) -> None:
    r = TrajectoryRecorder(engine, clock=Clock())
    with pytest.raises(DataError, match="'nobody' is not open"):
        r.start_step("nobody", {})
    t = r.start_trajectory(agent_id="a")
    with pytest.raises(DataError, match="no open step"):
        r.complete_step(t, action_type="HOLD", parameters={}, success=True)
    r.start_step(t, {})
    with pytest.raises(DataError, match="step 0 still open"):
        r.start_step(t, {})
    with pytest.raises(DataError, match="step 0 still open"):
        r.end_trajectory(t)
    r.complete_step(t, action_type="HOLD", parameters={}, success=True)
    r.end_trajectory(t)
    with pytest.raises(DataError, match="is not open"):
        r.end_trajectory(t)
    with pytest.raises(DataError, match="without a time zone"):
        TrajectoryRecorder(engine, clock=lambda: datetime(2025, 1, 1)).start_trajectory(agent_id="a")  # noqa: DTZ001


def _insert(engine: sa.Engine, rows: list[Json]) -> int:
    with engine.begin() as conn:
        return insert_new(conn, game_tables.trajectories, rows, key="trajectory_id")
