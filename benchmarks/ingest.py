"""Rows in: read → groups, rows written, readiness, and memory, side by side in one run on seeded data.

    python benchmarks/ingest.py                  # everything; --only read,write,ready,memory for a part
    python benchmarks/ingest.py --rows 125000,1000000

A database of its own on an embedded server in a temporary directory, with the server's default durability. Rows have
the size and shape of the game's: 71 KB of steps, three steps a row, two calls a step.
Prints a table, and writes `benchmarks/baselines/ingest.json` with machine, commit and date.

The straightforward reader is what one writes first: fetch a window's rows, `json.loads`, validate with pydantic, build
messages. It is on psycopg (asyncpg is not a dependency of this project) with binary results, its fastest way to fetch;
an asyncpg reader would spend the same on JSON and pydantic, which is nearly all of it (`fetch only` says how much).
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg
import sqlalchemy as sa
from psycopg.rows import dict_row
from pydantic import BaseModel, ConfigDict, Field

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from babylon_rl import stages
from babylon_rl.grouping import make_group
from babylon_rl.readiness import readiness
from babylon_rl.settings import Settings
from babylon_rl.source import tables
from babylon_rl.source.database import connect
from babylon_rl.source.embedded import ensure_database, ensure_server, stop_server
from babylon_rl.source.migrate import upgrade
from babylon_rl.source.reader import stream_window
from babylon_rl.source.recorder import TrajectoryRecorder
from babylon_rl.source.sql import SNAKE_CASE, select_window, window_parameters
from babylon_rl.source.staging import insert_new
from babylon_rl.source.stitching import stitch, usable
from babylon_rl.source.summary import refresh
from babylon_rl.store import Store
from babylon_rl.windows import HourWindow
from babylon_rl.workspace import open_workspace

FIRST = HourWindow.parse("2025-01-01T00:00")
STEP_BYTES = 71_000
WORDS = [
    f"{a}{b}"
    for a in ("mar", "bull", "pol", "tru", "odds", "vol", "news", "yes")
    for b in ("ket", "ish", "l", "mp", "s", "ume", "es", "no")
]


# ── data ───────────────────────────────────────────────────────────────────────────────────────────


def prose(r: random.Random, chars: int) -> str:
    words = r.choices(WORDS, k=chars // 6 + 1)
    for i in range(0, len(words), 7):
        words[i] = f"{r.random() * 1000:.2f}"
    return " ".join(words)[:chars]


def step(r: random.Random, number: int, at: datetime, system: str) -> dict[str, Any]:
    """About 23.7 KB: half in the prompts of two calls, the rest in what data providers told."""

    def market(i: int) -> dict[str, Any]:
        known = {"id": str(1_900_000_000_000_000_000 + i), "question": prose(r, 90)}
        return {**known, "yes": r.random(), "no": r.random(), "volume": r.random() * 1e5}

    def call(purpose: str, chars: int) -> dict[str, Any]:
        said = {"systemPrompt": system, "userPrompt": prose(r, chars), "response": prose(r, 600), "purpose": purpose}
        return {
            "model": "babylon",
            "modelVersion": "babylon-mmo@3",
            "temperature": 0.7,
            "maxTokens": 512,
            "latencyMs": 812.5,
            **said,
        }

    return {
        "stepNumber": number,
        "timestamp": int(at.timestamp() * 1000),
        "environmentState": {"agentBalance": 10_000 + r.random(), "agentPnL": r.random(), "openPositions": 2, "activeMarkets": [market(i) for i in range(6)]},
        "providerAccesses": [{"providerName": f"P{p}", "purpose": "decide", "data": {"markets": [market(i) for i in range(9)], "text": prose(r, 300)}} for p in range(5)],
        "llmCalls": [call("reasoning", 3_300), call("action", 3_300)],
        "action": {"actionType": "BUY", "parameters": {"ticker": "BTC", "amount": 100}, "success": True},
        "reward": 0,
    }  # fmt: skip


def make_rows(windows: int, agents: int, ticks: int, first: HourWindow = FIRST) -> list[dict[str, Any]]:
    r = random.Random(7)
    system = prose(r, 1_500)
    rows = []
    for w in range(windows):
        window = first.next(w)
        for agent in range(agents):
            for tick in range(ticks):
                at = window.start_at + timedelta(minutes=tick * 60 / ticks)
                n = len(rows) + 1_900_000_000_000_000_000 + int(window.start_at.timestamp()) * 1000
                rows.append(
                    {
                        "id": str(n), "trajectory_id": f"t{n}", "agent_id": f"agent-{agent}",
                        "start_time": at.replace(tzinfo=None), "end_time": at.replace(tzinfo=None),
                        "window_id": str(window), "scenario_id": str(window),
                        "steps_json": json.dumps([step(r, s, at, system) for s in range(3)]),
                        "reward_components_json": "{}", "metrics_json": "{}", "metadata_json": "{}", "total_reward": 0.0,
                        "episode_length": 3, "final_status": "completed", "final_balance": 1.0, "final_pnl": r.random(),
                    }
                )  # fmt: skip
    return rows


def load(url: str, rows: list[dict[str, Any]]) -> None:
    columns = list(rows[0])
    statement = f"COPY trajectories ({', '.join(columns)}) FROM STDIN"
    with psycopg.connect(url) as conn, conn.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row([row[c] for c in columns])
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("VACUUM ANALYZE trajectories")


# ── the straightforward reader ─────────────────────────────────────────────────────────────────────


class Call(BaseModel):
    model_config = ConfigDict(populate_by_name=True, extra="ignore")
    system_prompt: str = Field(alias="systemPrompt")
    user_prompt: str = Field(alias="userPrompt")
    response: str
    purpose: str
    model: str | None = None
    model_version: str | None = Field(default=None, alias="modelVersion")
    temperature: float | None = None
    max_tokens: int | None = Field(default=None, alias="maxTokens")


class Environment(BaseModel):
    model_config = ConfigDict(extra="allow")
    agentBalance: float | None = None  # noqa: N815
    agentPnL: float | None = None  # noqa: N815


class Provider(BaseModel):
    providerName: str  # noqa: N815
    data: dict[str, Any]
    purpose: str


class StepModel(BaseModel):
    stepNumber: int  # noqa: N815
    timestamp: int
    environmentState: Environment  # noqa: N815
    providerAccesses: list[Provider] = []  # noqa: N815
    llmCalls: list[Call] = []  # noqa: N815
    action: dict[str, Any]
    reward: float | None = None


class TrajectoryModel(BaseModel):
    trajectory_id: str
    agent_id: str
    window_id: str
    final_pnl: float | None
    steps: list[StepModel]


def straightforward(conn: psycopg.Connection[Any], window: HourWindow) -> int:
    """Messages per agent of one window; how many."""
    with conn.cursor(row_factory=dict_row, binary=True) as cursor:
        rows = cursor.execute(
            "SELECT * FROM trajectories WHERE window_id = %s ORDER BY start_time", (str(window),)
        ).fetchall()
    agents: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        t = TrajectoryModel.model_validate({**row, "steps": json.loads(row["steps_json"])})
        for s in t.steps:
            for c in s.llmCalls:
                if c.purpose == "action":
                    agents.setdefault(t.agent_id, []).extend(
                        [{"role": "system", "content": c.system_prompt}, {"role": "user", "content": c.user_prompt},
                         {"role": "assistant", "content": c.response}]
                    )  # fmt: skip
    return sum(map(len, agents.values())) // 3


def fetch_only(conn: psycopg.Connection[Any], window: HourWindow) -> int:
    with conn.cursor(row_factory=dict_row, binary=True) as cursor:
        return len(
            cursor.execute(
                "SELECT * FROM trajectories WHERE window_id = %s ORDER BY start_time", (str(window),)
            ).fetchall()
        )


def raw_copy(conn: psycopg.Connection[Any], window: HourWindow) -> int:
    with (
        conn.cursor() as cursor,
        cursor.copy(f"COPY ({select_window(SNAKE_CASE)}) TO STDOUT (FORMAT BINARY)", window_parameters(window)) as copy,
    ):
        return sum(len(data) for data in copy)


def ours(conn: sa.Connection, window: HourWindow) -> int:
    made = make_group(
        window, (t for a in stream_window(conn, window) for t in stitch(a.rows) if usable(t)), min_agents=2
    )
    return 0 if made is None else sum(len(m.turns) for m in made.members)


# ── measuring ──────────────────────────────────────────────────────────────────────────────────────


def both(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and own CPU seconds; the second does not mind a busy neighbour."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def bench_read(url: str, *, windows: int = 8, agents: int = 10, ticks: int = 5, rounds: int = 12) -> dict[str, Any]:
    rows = make_rows(windows, agents, ticks)
    kb = statistics.mean(len(r["steps_json"]) for r in rows) / 1000
    load(url, rows)
    count = len(rows)
    del rows
    hours = [FIRST.next(i) for i in range(windows)]
    engine = connect(url)
    times: dict[str, list[tuple[float, float]]] = {"raw COPY": [], "ours": [], "straightforward": [], "fetch only": []}
    with psycopg.connect(url) as plain, engine.connect() as conn:
        assert ours(conn, FIRST) == straightforward(plain, FIRST) == agents * ticks * 3
        for _ in range(rounds):  # in turns, so that a busy neighbour costs each the same
            times["raw COPY"].append(both(lambda: [raw_copy(plain, h) for h in hours]))
            times["ours"].append(both(lambda: [ours(conn, h) for h in hours]))
            times["straightforward"].append(both(lambda: [straightforward(plain, h) for h in hours]))
            times["fetch only"].append(both(lambda: [fetch_only(plain, h) for h in hours]))
    engine.dispose()
    best = {k: min(wall for wall, _ in v) for k, v in times.items()}
    cpu = {k: min(own for _, own in v) for k, v in times.items()}
    return {
        "rows": count, "kb_of_steps_per_row": round(kb, 1), "rounds": rounds,
        **{f"{k} rows/s": round(count / v) for k, v in best.items()},
        "ours over straightforward": round(best["straightforward"] / best["ours"], 2),
        "ours over raw COPY": round(best["raw COPY"] / best["ours"], 2),
        **{f"{k} client CPU ms/row": round(v / count * 1e3, 3) for k, v in cpu.items()},
        "client CPU, ours over straightforward": round(cpu["straightforward"] / cpu["ours"], 2),
    }  # fmt: skip


def bench_write(url: str, *, trajectories: int = 300) -> dict[str, Any]:
    """The recorder in a batch and one by one; and the same rows, made beforehand, by staged COPY and by INSERTs.

    INSERTs are one statement a row, all in one transaction or a commit each, and no trigger of ours runs for them.
    """
    engine = connect(url)
    source = [json.loads(r["steps_json"]) for r in make_rows(1, trajectories, 1, FIRST)]
    clock = iter(FIRST.start_at + timedelta(milliseconds=37 * i) for i in range(10**7))

    def play(recorder: TrajectoryRecorder, steps: list[dict[str, Any]], agent: int) -> None:
        t = recorder.start_trajectory(agent_id=f"agent-{agent}")
        for s in steps:
            recorder.start_step(t, s["environmentState"])
            for p in s["providerAccesses"]:
                recorder.log_provider_access(t, provider=p["providerName"], data=p["data"], purpose=p["purpose"])
            for c in s["llmCalls"]:
                recorder.log_llm_call(
                    t, model=c["model"], model_version=c["modelVersion"], system_prompt=c["systemPrompt"],
                    user_prompt=c["userPrompt"], response=c["response"], purpose=c["purpose"], temperature=0.7,
                )  # fmt: skip
            recorder.complete_step(t, action_type="BUY", parameters={"ticker": "BTC"}, success=True)
        recorder.end_trajectory(t, final_balance=1.0, final_pnl=0.0)

    def batch() -> None:
        recorder = TrajectoryRecorder(engine, clock=lambda: next(clock))
        with recorder.batch():
            for i, steps in enumerate(source):
                play(recorder, steps, i)

    def rows_of(table: sa.Table) -> list[dict[str, Any]]:
        with engine.connect() as conn:
            return [dict(r) for r in conn.execute(sa.select(table)).mappings()]

    def clear() -> None:
        with engine.begin() as conn:
            for table in ("trajectories", "llm_call_logs"):
                conn.exec_driver_sql(f"TRUNCATE {table}")

    def as_rows(kept: list[dict[str, Any]], calls: list[dict[str, Any]], *, commit_each: bool) -> None:
        with psycopg.connect(url) as conn:
            for table, rows in (("trajectories", kept), ("llm_call_logs", calls)):
                columns = list(rows[0])
                statement = (
                    f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(f'%({c})s' for c in columns)})"
                )
                for row in rows:
                    conn.execute(statement, row)
                    if commit_each:
                        conn.commit()

    def one_by_one() -> None:
        recorder = TrajectoryRecorder(engine, clock=lambda: next(clock))
        for i, steps in enumerate(source):
            play(recorder, steps, i)

    def staged() -> None:
        with engine.begin() as conn:
            insert_new(conn, tables.trajectories, kept, key="trajectory_id")
            insert_new(conn, tables.llm_call_logs, calls, key="call_id")

    batch()
    kept, calls = rows_of(tables.trajectories), rows_of(tables.llm_call_logs)
    clear()
    times: dict[str, list[float]] = {}
    for _ in range(4):
        for name, work in (("recorder, batch", batch), ("recorder, one by one", one_by_one), ("staged COPY", staged)):
            times.setdefault(name, []).append(seconds(work))
            clear()
        with engine.begin() as conn:
            conn.exec_driver_sql("ALTER TABLE trajectories DISABLE TRIGGER USER")
        for name, each in (("row inserts", False), ("row inserts, a commit each", True)):
            times.setdefault(name, []).append(seconds(lambda each=each: as_rows(kept, calls, commit_each=each)))  # type: ignore[misc]
            clear()
        with engine.begin() as conn:
            conn.exec_driver_sql("ALTER TABLE trajectories ENABLE TRIGGER USER")
    engine.dispose()
    best = {k: min(v) for k, v in times.items()}
    return {
        "trajectories": len(kept), "calls": len(calls),
        **{f"{k} rows/s": round((len(kept) + len(calls)) / v) for k, v in best.items()},
        "recorder, batch over one by one": round(best["recorder, one by one"] / best["recorder, batch"], 2),
        "staged COPY over row inserts": round(best["row inserts"] / best["staged COPY"], 2),
        "staged COPY over row inserts, a commit each": round(best["row inserts, a commit each"] / best["staged COPY"], 2),
    }  # fmt: skip


GROUP_BY = """SELECT window_id, count(*), count(DISTINCT agent_id), avg(final_pnl) FROM trajectories
              WHERE window_id IS NOT NULL AND is_training_data AND NOT is_evaluation GROUP BY window_id"""


def bench_ready(settings: Settings, url: str, *, sizes: list[int], per_window: int = 300) -> dict[str, Any]:
    """`readiness()` at growing histories: 25 agents × 12 ticks an hour, rows without steps (it never reads them)."""
    found: dict[str, Any] = {"rows_per_window": per_window}
    with open_workspace(settings) as w, psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SET synchronous_commit = off")
        conn.execute("TRUNCATE trajectories")
        there = 0
        for size in sizes:
            conn.execute(
                f"""INSERT INTO trajectories (id, trajectory_id, agent_id, start_time, window_id, steps_json,
                    reward_components_json, metrics_json, metadata_json, total_reward, episode_length, final_status, final_pnl)
                    SELECT n, 't' || n, 'agent-' || (n % 25), t, to_char(t, 'YYYY-MM-DD"T"HH24":00"'), '[]', '{{}}',
                           '{{}}', '{{}}', 0, 1, 'completed', n % 7
                    FROM (SELECT n, timestamp '2015-01-01' + (n / {per_window}) * interval '1 hour'
                                 + (n % {per_window}) * interval '1 second' AS t
                          FROM generate_series({there}, {size - 1}) n) x"""
            )
            there = size
            conn.execute("VACUUM ANALYZE trajectories")
            first = seconds(lambda: refresh(w.game, w.store.engine))
            conn.execute("VACUUM ANALYZE babylon_rl.window_summary, babylon_rl.row_changes, babylon_rl.window_counts")

            def ask() -> object:
                return readiness(w, min_agents=5, min_windows=3, now=datetime(2025, 1, 2, tzinfo=UTC))

            ask()
            calm = [seconds(ask) for _ in range(40)]
            busy = []
            for i in range(10):  # an hour's agents have just written
                conn.execute("UPDATE trajectories SET final_pnl = %s WHERE window_id = '2015-01-03T05:00'", (i,))
                busy.append(seconds(ask))
            found[f"{size:,} rows"] = {
                "windows": size // per_window,
                "readiness ms": round(min(calm) * 1e3, 2),
                "readiness median ms": round(statistics.median(calm) * 1e3, 2),
                "after a change ms": round(min(busy) * 1e3, 2),
                "GROUP BY over all rows ms": round(min(seconds(lambda: conn.execute(GROUP_BY).fetchall()) for _ in range(2)) * 1e3, 1),
                "first count s": round(first, 2),
            }  # fmt: skip
    small, large = (found[f"{s:,} rows"]["readiness ms"] for s in (sizes[0], sizes[-1]))
    found["times rows"] = round(sizes[-1] / sizes[0], 1)
    found["times readiness"] = round(large / small, 2)
    return found


def bench_memory(url: str, *, agents: int = 500) -> dict[str, Any]:
    """Growth of the resident set, sampled every 2 ms, after five-agent windows; in a process of its own each."""
    small, large = FIRST.next(7000), FIRST.next(7001)
    load(url, make_rows(1, 5, 1, small))
    load(url, make_rows(1, agents, 1, large))
    grown = {}
    for how in ("ingest", "group", "straightforward"):
        out = subprocess.run(
            [sys.executable, __file__, "--child", how, url, str(small), str(large)], capture_output=True, text=True, check=True
        )  # fmt: skip
        grown[f"{how} MB"] = round(float(out.stdout), 1)
    return {"agents": agents, "mb_of_steps": round(agents * STEP_BYTES / 1e6), **grown}


def child(how: str, url: str, small: str, large: str) -> None:
    engine = connect(url)
    store = Store(engine)

    def work(window: HourWindow) -> None:
        if how == "ingest":
            stages.ingest(window, engine, store)
        elif how == "group":
            stages.group(window, store, min_agents=5)
        else:
            with psycopg.connect(url) as conn:
                straightforward(conn, window)

    for _ in range(3):
        work(HourWindow.parse(small))
    me, done, peak = psutil.Process(), threading.Event(), 0
    before = me.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, me.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work(HourWindow.parse(large))
    done.set()
    watcher.join()
    print((peak - before) / 1e6)


# ── the run ────────────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="read,write,ready,memory")
    parser.add_argument("--rows", default="125000,1000000")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "baselines" / "ingest.json")
    parser.add_argument("--child", nargs=4, metavar=("HOW", "URL", "SMALL", "LARGE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    home = Path(tempfile.mkdtemp(prefix="babylon-bench-"))
    try:
        server = ensure_server(home)
        results: dict[str, Any] = {}
        for name in options.only.split(","):
            url = ensure_database(server, f"bench_{name}")
            settings = Settings.load(BABYLON_HOME=str(home), DATABASE_URL=url, BABYLON_PLATFORM_URL=None)
            upgrade(settings)
            if name == "ready":
                results[name] = bench_ready(settings, url, sizes=[int(s) for s in options.rows.split(",")])
            else:
                results[name] = {"read": bench_read, "write": bench_write, "memory": bench_memory}[name](url)
            show(name, results[name])
    finally:
        stop_server(home)
        shutil.rmtree(home, ignore_errors=True)
    known = json.loads(options.out.read_text())["results"] if options.out.exists() else {}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)  # fmt: skip
    stamp = {
        "machine": f"{os.cpu_count()} cores",
        "commit": commit.stdout.strip(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    for name, result in results.items():
        known[name] = {**stamp, **result}
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({"benchmark": "ingest", "results": known}, indent=2, ensure_ascii=False) + "\n")


def show(name: str, result: dict[str, Any], indent: str = "  ") -> None:
    print(f"{indent[2:]}{name}")
    for key, value in result.items():
        if isinstance(value, dict):
            show(key, value, indent + "  ")
        else:
            print(
                f"{indent}{key:<42}{value:>12,}"
                if isinstance(value, int | float)
                else f"{indent}{key:<42}{value!s:>12}"
            )


if __name__ == "__main__":
    main()
