import asyncio
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from babylon_rl.errors import ConfigError, DataError
from babylon_rl.ingest.outcomes import examine_outcomes, sync_window_outcomes
from babylon_rl.simulator.market import make_market
from babylon_rl.simulator.play import AgentSlot, Playthrough, play
from babylon_rl.simulator.players import ScriptedPlayer
from babylon_rl.simulator.recording import record_play
from babylon_rl.simulator.spawn import AgentLineup, free_windows, spawn
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import GUIDE_SQL

FIRST = HourWindow.parse("2025-01-15T00:00")
NOW = datetime(2025, 1, 20, tzinfo=UTC)


def played(windows: int = 2, *, learner: bool = True) -> list[Playthrough]:
    slots = [AgentSlot(f"agent-{k}", ScriptedPlayer(k), learner=learner) for k in ("momentum", "contrarian")]
    return asyncio.run(play([make_market(FIRST.next(i), 1) for i in range(windows)], slots, seed=1))


def test_a_window_is_written_as_the_game_does_one_row_per_tick(engine: sa.Engine) -> None:
    rows = record_play(engine, played(), seed=1)
    assert rows == 2 * 2 * 3
    with engine.connect() as conn:
        written = (
            conn.execute(sa.text("SELECT * FROM trajectories WHERE agent_id = 'agent-momentum' ORDER BY start_time"))
            .mappings()
            .all()
        )
        calls = conn.scalar(sa.text("SELECT count(*) FROM llm_call_logs"))
    assert calls == rows
    assert [r["window_id"] for r in written] == ["2025-01-15T00:00"] * 3 + ["2025-01-15T01:00"] * 3
    assert [r["start_time"].minute for r in written] == [0, 20, 40] * 2
    assert all(r["end_time"].hour == r["start_time"].hour for r in written), "a tick's row stays in its hour"
    (step,) = json.loads(written[0]["steps_json"])
    assert step["llmCalls"][0]["model"] == "scripted/momentum"
    assert step["environmentState"]["agentBalance"] == 10_000
    assert int(written[0]["id"]) > 2**53


def test_recording_the_same_play_again_is_refused(engine: sa.Engine) -> None:
    record_play(engine, played(), seed=1)
    with pytest.raises(DataError, match="holds recorded play already"):
        record_play(engine, played(), seed=1)
    with engine.connect() as conn:
        assert conn.scalar(sa.text("SELECT count(*) FROM trajectories")) == 12


def test_outcomes_are_the_markets_own_prices(engine: sa.Engine) -> None:
    """Neighbouring hours have prices of their own: an hour's close is not the next hour's opening."""
    record_play(engine, played(), seed=1)
    for window in (FIRST, FIRST.next()):
        market = make_market(window, 1)
        with engine.begin() as conn:
            sync_window_outcomes(conn, window, now=NOW)
            outcomes = examine_outcomes(conn, window)[0]
        assert {s.ticker: s.end_price for s in outcomes.stocks} == {
            t: pytest.approx(p, abs=0.006) for t, p in market.closing.items()
        }
        assert {s.ticker: s.start_price for s in outcomes.stocks} == {
            t: pytest.approx(market.ticks[0].prices[t], abs=0.006) for t in market.tickers
        }
        assert [p.outcome for p in outcomes.predictions] == ["YES" if market.resolves_yes else "NO"]


def test_the_guides_sql_answers_as_printed(engine: sa.Engine) -> None:
    record_play(engine, played(3), seed=1)
    with engine.connect() as conn:
        rows = conn.execute(sa.text(GUIDE_SQL)).all()
    assert [(r.window_id, r.agents) for r in rows] == [(f"2025-01-15T0{hour}:00", 2) for hour in (2, 1, 0)]
    assert all(r.avg_pnl is not None for r in rows)


def test_spawning_again_plays_other_hours_of_the_last_day(engine: sa.Engine) -> None:
    first = free_windows(engine, 3, now=NOW)
    spawn(engine, first, AgentLineup(learners=5, policy="guide"), seed=1)
    second = free_windows(engine, 3, now=NOW)
    assert not set(first) & set(second)
    assert all(w.closed_at(NOW) and w >= HourWindow.containing(NOW).next(-24) for w in first + second)
    many = free_windows(engine, 30, now=NOW)
    assert len(set(many)) == 30
    assert not set(many) & set(first)


def test_a_start_too_near_to_now_is_refused_with_what_there_is(engine: sa.Engine) -> None:
    with pytest.raises(ConfigError, match="only 2 free closed hours"):
        free_windows(engine, 3, now=NOW, start=HourWindow.containing(NOW).next(-2))


def test_rivals_are_recorded_but_offered_to_no_training(engine: sa.Engine) -> None:
    record_play(engine, played(1, learner=False), seed=1)
    with engine.connect() as conn:
        assert conn.scalars(sa.text("SELECT DISTINCT is_training_data FROM trajectories")).all() == [False]


def test_market_and_scripted_play_ignore_the_hash_seed(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import asyncio, hashlib\n"
        "from babylon_rl.simulator.market import make_market\n"
        "from babylon_rl.simulator.play import AgentSlot, play\n"
        "from babylon_rl.simulator.players import ScriptedPlayer\n"
        "from babylon_rl.windows import HourWindow\n"
        "m = make_market(HourWindow.parse('2025-01-15T00:00'), 1)\n"
        "p = asyncio.run(play([m], [AgentSlot('a', ScriptedPlayer('habits'))], seed=1))\n"
        "print(hashlib.sha256(repr((m, p[0].moves)).encode()).hexdigest())\n"
    )
    command = [sys.executable, "-c", code]
    digests = set()
    for seed, tz in (("1", "UTC"), ("2", "Asia/Kolkata"), ("3", "America/New_York")):
        env = os.environ | {"PYTHONHASHSEED": seed, "TZ": tz}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=tmp_path)
        digests.add(done.stdout)
    assert len(digests) == 1
