"""The guide's commands, each run as a process, as a person runs it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import sqlalchemy as sa

from babylon_rl.database.embedded import ensure_database
from babylon_rl.windows import HourWindow
from babylon_rl_tests.conftest import drop_database
from babylon_rl_tests.factories import GUIDE_SQL, insert_row


def run(environment: dict[str, str], *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "babylon_rl.cli.main", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return re.sub(r"\s+", " ", done.stdout + done.stderr)


def test_the_guides_quick_start_leads_to_a_checkpoint(environment: dict[str, str], engine: sa.Engine) -> None:
    """No windows → spawn → outcomes missing → sync → ready → train → used; every answer names the next command."""
    output = run(environment, "check-windows", status=1)
    assert "No windows found." in output
    assert "run: babylon-rl spawn-test-agents --agents 5 --windows 3" in output

    output = run(environment, "spawn-test-agents", "--agents", "5", "--windows", "3")
    assert "3 windows played by 5 agents (guide)" in output

    output = run(environment, "check-windows", status=1)
    assert "Windows with 5+ agents: 3" in output
    assert "run: babylon-rl sync-outcomes --hours 24" in output

    assert "written=3" in run(environment, "sync-outcomes", "--hours", "24")
    assert "written=0" in run(environment, "sync-outcomes", "--hours", "24"), "syncing again writes nothing"

    output = run(environment, "check-windows")
    assert "Windows with 5+ agents: 3" in output
    assert "READY FOR TRAINING!" in output

    output = run(environment, "train", "--min-agents", "5", "--iterations", "2", "--no-evaluate")
    assert "ITERATION 1/2" in output
    assert "Found 5 simultaneous agents" in output
    assert re.search(r"RULER scores: min=0\.\d\d, max=0\.\d\d, avg=0\.\d\d", output)
    assert re.search(r"Best: agent-\d-\w+ \(score: 0\.\d\d, P&L: −?\$[\d,]+\.\d\d\)", output)
    assert "Training on 3 windows... " in output
    assert "Iteration 1 complete! Checkpoint: step 1" in output
    assert "Final step: 1 Checkpoints trained: 1" in output

    output = run(environment, "check-windows", status=1)
    assert "trained @1" in output
    assert "3 are used or kept out" in output
    output = run(environment, "train", "--iterations", "1", "--no-evaluate", status=1)
    assert "Checkpoints trained: 0" in output, "and the status says so"
    with engine.connect() as conn:
        assert conn.scalar(sa.text("SELECT count(*) FROM babylon_rl.consumed_windows")) == 3


def test_training_without_data_fails_with_one_sentence(environment: dict[str, str]) -> None:
    output = run(environment, "train", "--iterations", "1", status=2)
    assert "0 unused windows with 5+ agents are ready, 3 make one training; run `babylon-rl check-windows`" in output


def test_a_wrong_argument_fails_with_one_sentence(environment: dict[str, str]) -> None:
    assert "window id 'yesterday' is not a UTC hour" in run(
        environment, "materialize", "--from", "yesterday", "--to", "x", status=2
    )
    assert "player 'lucky' is unknown" in run(environment, "spawn-test-agents", "--policy", "lucky", status=2)
    wrong = environment | {"BABYLON_MIN_AGENTS": "many"}
    assert "BABYLON_MIN_AGENTS" in run(wrong, "check-windows", status=2)
    secret = environment | {"DATABASE_URL": "postgresql://game:hunter2@127.0.0.1:1/none"}
    output = run(secret, "check-windows", status=2)
    assert "cannot be reached" in output
    assert "hunter2" not in output


def test_the_guides_sql_answers_in_psql(environment: dict[str, str]) -> None:
    run(environment, "spawn-test-agents", "--agents", "6", "--start", "2025-01-15T00:00")
    output = run(environment, "psql", "-c", GUIDE_SQL)
    assert re.search(r"window_id \| agents \| avg_pnl", output)
    assert re.search(r"2025-01-15T00:00 \| 6 \| -?\d+", output)


def test_the_database_url_opens_the_game(environment: dict[str, str]) -> None:
    import psycopg

    url = run(environment, "db-url").strip()
    with psycopg.connect(url) as conn:
        assert conn.execute("SELECT count(*) FROM trajectories").fetchone() == (0,)


def test_psql_opens_our_own_schema_where_it_lives_elsewhere(environment: dict[str, str], server_url: str) -> None:
    name = f"apart_{os.getpid()}"
    apart = ensure_database(server_url, name)
    try:
        elsewhere = environment | {"BABYLON_PLATFORM_URL": apart}
        run(elsewhere, "migrate")
        assert f"/{name}?" in run(elsewhere, "db-url", "--platform")
        assert "0 (1 row)" in run(elsewhere, "psql", "--platform", "-c", "SELECT count(*) FROM babylon_rl.row_outcomes")
        assert "0 (1 row)" in run(elsewhere, "psql", "-c", "SELECT count(*) FROM trajectories")
    finally:
        drop_database(server_url, name)


def test_the_command_line_audits_a_judge_and_judges_again(environment: dict[str, str], engine: sa.Engine) -> None:
    output = run(environment, "audit-judge", "--groups", "3")
    assert "truth agreement (tau)" in output
    assert "judge hindsight hindsight-1: fit" in output
    run(environment, "spawn-test-agents", "--agents", "5", "--start", "2025-01-15T00:00")
    insert_row(engine, "crashed", window=HourWindow.parse("2025-01-15T00:00"), steps_json="[]")
    output = run(environment, "materialize", "--from", "2025-01-15T00:00", "--to", "2025-01-15T01:00")
    assert re.search(r"\d+ rows: \d+ grouped \(has_turn\).* 1 quarantined \(no_steps\) 1 of 2 windows judged", output)
    output = run(environment, "rejudge", "--judge", "hindsight", "--windows", "2025-01-15T00:00..2025-01-15T02:00")
    assert "1 group: 0 judged now, 1 judged before, 0 failed, cost $0.0000" in output
    assert "Rank agreement old/new (Kendall tau, mean over groups): +1.000" in output
    assert "The current judgments stay" in output
    with engine.connect() as conn:
        assert conn.scalar(sa.text("SELECT count(*) FROM babylon_rl.judge_audits WHERE fit")) == 1
    assert "JUDGE_BUDGET_USD is set but no table knows" in run(
        environment | {"JUDGE_BASE_URL": "http://127.0.0.1:9/v1", "JUDGE_BUDGET_USD": "1"},
        "audit-judge",
        "--judge",
        "openai/nobody-knows-me",
        status=2,
    )


def test_up_serves_dagster_until_ctrl_c(environment: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "up.log"
    with log.open("w") as out:
        command = [sys.executable, "-m", "babylon_rl.cli.main", "up", "--port", str(port)]
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 90
        while not (serves(port) and "prepare_missed_windows skipped" in log.read_text()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.terminate()  # not kill: it takes its children with it
        process.wait(60)
    output = log.read_text()
    assert "Traceback" not in output
    assert not re.search(r"(Beta|Preview|Deprecation)Warning", output)


def serves(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_settings_are_not_written_into_a_missing_file(environment: dict[str, str]) -> None:
    output = run(environment, "settings", "--write", "/nonexistent/README.md", status=2)
    assert "does not exist" in output
    assert "Traceback" not in output
