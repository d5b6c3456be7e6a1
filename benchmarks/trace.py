"""`trace` and `publish`, measured on a database with 100,000 trajectories: seconds, and the memory that publishing takes.

    python benchmarks/trace.py                   # --trajectories 100000 --steps-kb 4 --calls 500000
    python benchmarks/trace.py --json            # also writes benchmarks/baselines/trace.json

A database of its own on an embedded server in a temporary directory, with the server's default durability. Windows of eight
agents, one source row each, 64 windows a checkpoint, filled by SQL; every text that publishing or tracing reads has the
length that real ones have. `trace` is measured as a call, the best and the worst of the rounds, and as a command.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from babylon_rl.common.canonical import pack
from babylon_rl.database.embedded import ensure_database, ensure_server, stop_server
from babylon_rl.database.migrate import upgrade
from babylon_rl.export.trace import trace
from babylon_rl.ingest.window_summary import refresh
from babylon_rl.pipeline.publish import publish
from babylon_rl.pipeline.workspace import open_workspace
from babylon_rl.settings import Settings
from babylon_rl.types import GroupMember, Trajectory, TrajectoryGroup, Turn

ROOT = Path(__file__).resolve().parent.parent
FIRST = "2015-01-01T00:00"
TRACED = {"call": "call-1", "row": "1900000000000000007"}
AGENTS = 8
WINDOWS_A_STEP = 64
_FILL = """
CREATE TEMP TABLE own AS
SELECT w, to_char('2015-01-01'::timestamp + w * interval '1 hour', 'YYYY-MM-DD"T"HH24":00"') AS window_id, w / {per} + 1 AS step
FROM generate_series(0, {windows} - 1) w;
CREATE TEMP TABLE members AS
SELECT w, window_id, step, 'agent-' || a AS agent_id, (1900000000000000000 + w * {agents} + a)::text AS source_id, a,
       window_id || '#' || left(md5(window_id), 12) AS group_id, md5(window_id) || md5('x' || window_id) AS judgment_key
FROM own, generate_series(0, {agents} - 1) a;
INSERT INTO trajectories (id, trajectory_id, agent_id, start_time, window_id, steps_json, reward_components_json, metrics_json,
                          metadata_json, total_reward, episode_length, final_status)
SELECT source_id, 't-' || source_id, agent_id, window_id::timestamp, window_id, repeat(md5(source_id), {kb} * 32), '{{}}', '{{}}',
       '{{}}', 0, 1, 'completed' FROM members;
INSERT INTO babylon_rl.windows (window_id, data_version, rows, agents, turns, changes_seen, min_agents)
SELECT window_id, 'v', {agents}, {agents}, {agents}, 1, 5 FROM own;
INSERT INTO babylon_rl.row_outcomes SELECT source_id, window_id, 't-' || source_id, agent_id, 'grouped', 'has_turn', group_id FROM members;
INSERT INTO babylon_rl.contextualized_groups (group_id, window_id, data_version, members, turns, body, hindsight)
SELECT DISTINCT group_id, window_id, 'g', {agents}, {agents}, ''::bytea, ''::bytea FROM members;
INSERT INTO babylon_rl.window_trajectories
SELECT window_id || '/' || agent_id, window_id, agent_id, 1, 0, convert_to(repeat(md5(source_id), 64), 'UTF8') FROM members;
INSERT INTO babylon_rl.judgments (judgment_key, trajectory_id, group_id, window_id, score, explanation, judge_model, judge_version,
                                  prompt_tokens, completion_tokens, cost_usd)
SELECT judgment_key, window_id || '/' || agent_id, group_id, window_id, a / {agents}.0, repeat(md5(source_id), 10), 'openai/o3', 'trading-3',
       0, 0, 0 FROM members;
INSERT INTO babylon_rl.window_judgments SELECT DISTINCT window_id, group_id, judgment_key FROM members;
INSERT INTO babylon_rl.checkpoints (lineage, step, window_id, trainer, base_model, path, manifest, judgment_keys, metrics)
SELECT 'babylon-mmo', step, max(window_id), 'cpu', 'shipped', 'p' || step, '{{"adapter_model.safetensors":"5e"}}',
       array_agg(DISTINCT judgment_key), '{{"loss/train":0.5}}' FROM members GROUP BY step;
INSERT INTO babylon_rl.consumed_windows (lineage, window_id, step, judgment_key, data_version)
SELECT DISTINCT 'babylon-mmo', window_id, step, judgment_key, 'g' FROM members;
INSERT INTO babylon_rl.deployment_events (lineage, number, move, stage, incumbent, threshold, test_threshold, paused, subject, reason, made_by)
SELECT 'babylon-mmo', row_number() OVER (ORDER BY step), 'promoted', 'none', step, 0, 0, false, step, 'It is better.', 'platform'
FROM babylon_rl.checkpoints;
INSERT INTO babylon_rl.served_calls (call_id, agent_id, window_id, lineage, step, digest, arm, deployment, upstream, status, asked_at,
                                     latency_ms, streamed)
SELECT 'call-' || n, 'agent-' || n % 200, '2025-01-15T10:00', 'babylon-mmo', {steps} - (n % 3 = 0)::int, '', 'incumbent', {steps}, 'engine',
       200, now() - n * interval '0.1 second', 10, false FROM generate_series(1, {calls}) n;
ANALYZE;
"""


def measure(rounds: int, work: Callable[[], object]) -> list[float]:
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return took


def write_first_window(conn: "psycopg.Connection[Any]") -> None:
    """The window whose row is traced forward is read whole: its bodies must be real."""
    turn = Turn(system="You trade.", user="Markets: " * 500, response='{"action":"HOLD"}')
    group_id = conn.execute(
        "SELECT group_id FROM babylon_rl.contextualized_groups WHERE window_id = %s", [FIRST]
    ).fetchone()
    members = []
    for a in range(AGENTS):
        own = f"{FIRST}/agent-{a}"
        members.append(GroupMember(trajectory_id=own, agent_id=f"agent-{a}", turns=(turn,)))
        body = Trajectory(
            trajectory_id=own,
            agent_id=f"agent-{a}",
            window_id=FIRST,
            row_ids=(str(1900000000000000000 + a),),
            turns=(turn,),
            decisions=(),
            start_balance_usd=None,
            pnl_usd=None,
            game_knowledge={},
        )
        conn.execute("UPDATE babylon_rl.window_trajectories SET body = %s WHERE trajectory_id = %s", [pack(body), own])
    group = TrajectoryGroup(group_id=str((group_id or ("",))[0]), window_id=FIRST, members=tuple(members))
    conn.execute("UPDATE babylon_rl.contextualized_groups SET body = %s WHERE window_id = %s", [pack(group), FIRST])


def run(settings: Settings, url: str, *, trajectories: int, kb: int, calls: int, rounds: int) -> dict[str, Any]:
    windows = trajectories // AGENTS
    steps = (windows - 1) // WINDOWS_A_STEP + 1
    upgrade(settings.database)
    with psycopg.connect(url, autocommit=True) as conn:
        values = {"per": WINDOWS_A_STEP, "windows": windows, "agents": AGENTS, "kb": kb, "calls": calls, "steps": steps}
        for statement in _FILL.format(**values).split(";\n"):
            if statement.strip():
                conn.execute(statement.encode())
        write_first_window(conn)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DATABASE_URL": url, "BABYLON_HOME": str(settings.home)}
    with open_workspace(settings) as workspace:
        refresh(workspace.game, workspace.store.engine, now=datetime.now(UTC))
        results: dict[str, Any] = {
            "trajectories": trajectories,
            "checkpoints": steps,
            "served calls": calls,
            "steps, kB a row": kb,
        }
        for name, id_ in TRACED.items():
            took = measure(rounds, partial(trace, workspace, id_))
            results[f"trace of a {name}, s"] = f"{statistics.median(took):.3f} ({min(took):.3f} to {max(took):.3f})"
            command = [sys.executable, "-m", "babylon_rl.cli.main", "trace", id_]
            shown = measure(3, partial(subprocess.run, command, env=environment, check=True, capture_output=True))
            results[f"trace of a {name}, as a command, s"] = round(min(shown), 2)
        results["trace of a call with all ids, s"] = round(
            min(measure(3, lambda: trace(workspace, "call-1", with_ids=True))), 3
        )
        results["publish, dry run, s"] = round(measure(1, lambda: publish(workspace, dry_run=True))[0], 1)
        results["publish, s"] = round(measure(1, lambda: publish(workspace))[0], 1)
        results["publish again, nothing new, s"] = round(measure(1, lambda: publish(workspace))[0], 1)
        results["peak memory of the process, MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, default=100_000)
    parser.add_argument("--steps-kb", type=int, default=4)
    parser.add_argument("--calls", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="also write benchmarks/baselines/trace.json")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="babylon-bench-"))
    try:
        url = ensure_database(ensure_server(home), "bench_trace")
        settings = Settings.load(BABYLON_HOME=str(home), DATABASE_URL=url, BABYLON_PLATFORM_URL=None)
        results = run(
            settings,
            url,
            trajectories=options.trajectories,
            kb=options.steps_kb,
            calls=options.calls,
            rounds=options.rounds,
        )
    finally:
        stop_server(home)
        shutil.rmtree(home, ignore_errors=True)
    for key, value in results.items():
        print(f"  {key:<52}{value!s:>28}")
    if options.json:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
        stamp = {
            "machine": f"{os.cpu_count()} cores",
            "commit": commit.stdout.strip(),
            "date": f"{datetime.now(UTC):%F}",
        }
        out = ROOT / "benchmarks" / "baselines" / "trace.json"
        out.write_text(
            json.dumps({"benchmark": "trace", **stamp, "results": results}, indent=2, ensure_ascii=False) + "\n"
        )


if __name__ == "__main__":
    main()
