"""Ingest, measured on seeded data: reading rows into groups, writing rows, readiness, and memory.

    python benchmarks/ingest.py                  # everything; --only read,write,ready,memory for a part
    python benchmarks/ingest.py --rows 125000,1000000

Databases of its own on an embedded server in a temporary directory, with the server's default durability; rows of the
size and shape of the game's (`game_rows.py`).
Rows per second are those of the best round; ratios are the median of each round's own ratio.
Prints a table, and writes `benchmarks/baselines/ingest.json` with machine, commit and date.

Our reader is compared with `straightforward.py` and with raw COPY in both formats, text (the default of `COPY … TO
STDOUT`) and binary (which our reader uses). How fast any of them can be depends on how the server stores the steps, so
each is measured:

    uncompressed   our migration's choice where the server has no lz4, as the embedded one
    lz4            our migration's choice where it has lz4; name such a server with --server postgresql://…
    pglz           PostgreSQL's default, and so what the game's own database has
"""

import argparse
import asyncio
import json
import os
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

import asyncpg
import psutil
import psycopg
import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from babylon_rl.database import game_tables
from babylon_rl.database.bulk_copy import insert_new
from babylon_rl.database.connection import connect
from babylon_rl.database.embedded import ensure_database, ensure_server, stop_server
from babylon_rl.database.migrate import upgrade
from babylon_rl.grouping.groups import make_groups
from babylon_rl.ingest.columns import COLUMN_TYPES, ColumnNames
from babylon_rl.ingest.queries import select_window, window_parameters
from babylon_rl.ingest.reader import stream_window
from babylon_rl.ingest.recorder import TrajectoryRecorder
from babylon_rl.ingest.stitching import is_usable, stitch
from babylon_rl.ingest.window_summary import refresh
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.pipeline.readiness import readiness
from babylon_rl.pipeline.workspace import open_workspace
from babylon_rl.settings import Settings
from babylon_rl.store.windows import Store
from babylon_rl.windows import HourWindow
from benchmarks.game_rows import FIRST, STEP_BYTES, load, make_rows
from benchmarks.straightforward import read_group

SNAKE_CASE = ColumnNames(
    trajectories={c: c for c in COLUMN_TYPES["trajectories"]}, llm_call_logs={}, market_outcomes={}
)


def raw_copy(conn: psycopg.Connection[Any], window: HourWindow, options: str = "") -> int:
    with (
        conn.cursor() as cursor,
        cursor.copy(f"COPY ({select_window(SNAKE_CASE)}) TO STDOUT {options}", window_parameters(window)) as copy,
    ):
        return sum(len(data) for data in copy)


def ours(conn: sa.Connection, window: HourWindow) -> int:
    made = make_groups(
        window, (t for a in stream_window(conn, window) for t in stitch(a.rows) if is_usable(t)), min_agents=2
    )
    return sum(len(m.turns) for group in made for m in group.members)


# ── measuring ──────────────────────────────────────────────────────────────────────────────────────


def both(work: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds and CPU seconds of this process; the latter do not depend on other load."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def times_faster(theirs: list[float], ours: list[float]) -> float:
    """The median of each round's ratio: both times of a round were taken under the same load."""
    return round(statistics.median(t / o for t, o in zip(theirs, ours, strict=True)), 2)


def storage_of(url: str) -> str:
    """How the server stores steps."""
    query = """SELECT attstorage, coalesce(nullif(attcompression::text, ''), left(current_setting('default_toast_compression'), 1))
               FROM pg_attribute WHERE attrelid = 'trajectories'::regclass AND attname = 'steps_json'"""
    with psycopg.connect(url) as conn:
        storage, compression = conn.execute(query).fetchone() or ("", "")
    return "uncompressed" if storage == "e" else {"l": "lz4", "p": "pglz"}[compression]


def bench_read(url: str, *, windows: int = 3, agents: int = 25, ticks: int = 12, rounds: int = 15) -> dict[str, Any]:
    rows = make_rows(windows, agents, ticks)
    kb = statistics.mean(len(r["steps_json"]) for r in rows) / 1000
    load(url, rows)
    count = len(rows)
    del rows
    hours = [FIRST.next(i) for i in range(windows)]
    engine = connect(url)
    loop = asyncio.new_event_loop()
    plain = loop.run_until_complete(asyncpg.connect(url))

    def straightforward(window: HourWindow) -> int:
        _, made = loop.run_until_complete(read_group(plain, window))
        return sum(len(a["turns"]) for a in made.values())

    times: dict[str, list[tuple[float, float]]] = {}
    with psycopg.connect(url) as raw, engine.connect() as conn:
        readers: dict[str, Callable[[HourWindow], object]] = {
            "raw COPY, binary": lambda w: raw_copy(raw, w, "(FORMAT BINARY)"),
            "raw COPY, text": lambda w: raw_copy(raw, w),
            "ours": lambda w: ours(conn, w),
            "straightforward": straightforward,
        }
        assert ours(conn, FIRST) == straightforward(FIRST) == agents * ticks * 3
        for _ in range(rounds):  # in turns, so that other load slows each equally
            for name, read in readers.items():
                times.setdefault(name, []).append(both(lambda read=read: [read(h) for h in hours]))  # type: ignore[misc]
    engine.dispose()
    loop.run_until_complete(plain.close())
    loop.close()
    walls = {k: [wall for wall, _ in v] for k, v in times.items()}
    best = {k: min(v) for k, v in walls.items()}
    cpu = {k: min(own for _, own in v) for k, v in times.items()}
    return {
        "rows": count,
        "kb_of_steps_per_row": round(kb, 1),
        "rounds": rounds,
        **{f"{k} rows/s": round(count / v) for k, v in best.items()},
        **{
            f"ours over {k}": times_faster(walls[k], walls["ours"])
            for k in ("straightforward", "raw COPY, text", "raw COPY, binary")
        },
        **{f"{k} client CPU µs/row": round(v / count * 1e6, 1) for k, v in cpu.items()},
    }


def bench_write(url: str, *, trajectories: int = 300) -> dict[str, Any]:
    """Rows written by the recorder, in a batch and one by one; and the same rows, prepared, by COPY and by INSERTs.

    INSERTs are one statement per row, in one transaction or with a commit each, and without our triggers.
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
                    t,
                    model=c["model"],
                    model_version=c["modelVersion"],
                    system_prompt=c["systemPrompt"],
                    user_prompt=c["userPrompt"],
                    response=c["response"],
                    purpose=c["purpose"],
                    temperature=0.7,
                )
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

    def copied() -> None:
        with engine.begin() as conn:
            insert_new(conn, game_tables.trajectories, kept, key="trajectory_id")
            insert_new(conn, game_tables.llm_call_logs, calls, key="call_id")

    batch()
    kept, calls = rows_of(game_tables.trajectories), rows_of(game_tables.llm_call_logs)
    clear()
    times: dict[str, list[float]] = {}
    for _ in range(12):
        for name, work in (("recorder, batch", batch), ("recorder, one by one", one_by_one), ("COPY", copied)):
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
        "trajectories": len(kept),
        "calls": len(calls),
        **{f"{k} rows/s": round((len(kept) + len(calls)) / v) for k, v in best.items()},
        "recorder, batch over one by one": times_faster(times["recorder, one by one"], times["recorder, batch"]),
        "COPY over row inserts": times_faster(times["row inserts"], times["COPY"]),
        "COPY over row inserts, a commit each": times_faster(times["row inserts, a commit each"], times["COPY"]),
    }


GROUP_BY = """SELECT window_id, count(*), count(DISTINCT agent_id), avg(final_pnl) FROM trajectories
              WHERE window_id IS NOT NULL AND is_training_data AND NOT is_evaluation GROUP BY window_id"""


def bench_ready(settings: Settings, url: str, *, sizes: list[int], per_window: int = 300) -> dict[str, Any]:
    """`readiness()` at growing histories: 25 agents × 12 ticks an hour, rows without steps (it never reads them)."""
    results: dict[str, Any] = {"rows_per_window": per_window}
    with open_workspace(settings) as w, psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SET synchronous_commit = off")
        conn.execute("TRUNCATE trajectories")
        existing = 0
        for size in sizes:
            conn.execute(
                f"""INSERT INTO trajectories (id, trajectory_id, agent_id, start_time, window_id, steps_json,
                    reward_components_json, metrics_json, metadata_json, total_reward, episode_length, final_status, final_pnl)
                    SELECT n, 't' || n, 'agent-' || (n % 25), t, to_char(t, 'YYYY-MM-DD"T"HH24":00"'), '[]', '{{}}',
                           '{{}}', '{{}}', 0, 1, 'completed', n % 7
                    FROM (SELECT n, timestamp '2015-01-01' + (n / {per_window}) * interval '1 hour'
                                 + (n % {per_window}) * interval '1 second' AS t
                          FROM generate_series({existing}, {size - 1}) n) x"""
            )
            existing = size
            conn.execute("VACUUM ANALYZE trajectories")
            first = seconds(lambda: refresh(w.game, w.store.engine, now=w.now()))
            conn.execute("VACUUM ANALYZE babylon_rl.window_summary, babylon_rl.row_changes, babylon_rl.window_counts")

            def ask() -> object:
                return readiness(w, min_agents=5, min_windows=3, now=datetime(2025, 1, 2, tzinfo=UTC))

            ask()
            calm = [seconds(ask) for _ in range(40)]
            busy = []
            for i in range(10):  # an hour's agents have just written
                conn.execute("UPDATE trajectories SET final_pnl = %s WHERE window_id = '2015-01-03T05:00'", (i,))
                busy.append(seconds(ask))
            results[f"{size:,} rows"] = {
                "windows": size // per_window,
                "readiness ms": round(min(calm) * 1e3, 2),
                "readiness median ms": round(statistics.median(calm) * 1e3, 2),
                "after a change ms": round(min(busy) * 1e3, 2),
                "GROUP BY over all rows ms": round(
                    min(seconds(lambda: conn.execute(GROUP_BY).fetchall()) for _ in range(2)) * 1e3, 1
                ),
                "first count s": round(first, 2),
            }
    small, large = (results[f"{s:,} rows"]["readiness ms"] for s in (sizes[0], sizes[-1]))
    results["times rows"] = round(sizes[-1] / sizes[0], 1)
    results["times readiness"] = round(large / small, 2)
    return results


def bench_memory(url: str, *, agents: int = 500) -> dict[str, Any]:
    """Growth of the resident set, sampled every 2 ms, after five-agent windows; in a process of its own each."""
    small, large = FIRST.next(7000), FIRST.next(7001)
    load(url, make_rows(1, 5, 1, small))
    load(url, make_rows(1, agents, 1, large))
    grown = {}
    for how in ("ingest", "group", "straightforward"):
        out = subprocess.run(
            [sys.executable, __file__, "--child", how, url, str(small), str(large)],
            capture_output=True,
            text=True,
            check=True,
        )
        grown[f"{how} MB"] = round(float(out.stdout), 1)
    return {"agents": agents, "mb_of_steps": round(agents * STEP_BYTES / 1e6), **grown}


def child(how: str, url: str, small: str, large: str) -> None:
    engine = connect(url)
    store = Store(engine)

    def work(window: HourWindow) -> None:
        if how == "ingest":
            ingest_window(window, engine, store)
        elif how == "group":
            group_window(window, store, min_agents=5)
        else:
            asyncio.run(straightforward(window))

    async def straightforward(window: HourWindow) -> None:
        conn = await asyncpg.connect(url)
        await read_group(conn, window)
        await conn.close()

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
    parser.add_argument("--server", metavar="URL", help="a server to make databases on; else the embedded one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "baselines" / "ingest.json")
    parser.add_argument("--child", nargs=4, metavar=("HOW", "URL", "SMALL", "LARGE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    home = Path(tempfile.mkdtemp(prefix="babylon-bench-"))
    try:
        server = options.server or ensure_server(home)
        results: dict[str, Any] = {}
        for name in options.only.split(","):
            if name == "read":
                for pglz in (False,) if options.server else (False, True):
                    url = fresh_database(home, server, f"babylon_bench_read_{pglz}".lower())
                    if pglz:
                        alter(url, "steps_json", "SET STORAGE EXTENDED", "SET COMPRESSION pglz")
                    results[f"read, {storage_of(url)}"] = bench_read(url)
                    drop_database(server, url)
                continue
            url = fresh_database(home, server, f"babylon_bench_{name}")
            if name == "ready":
                settings = settings_for(home, url)
                results[name] = bench_ready(settings, url, sizes=[int(s) for s in options.rows.split(",")])
            else:
                results[name] = {"write": bench_write, "memory": bench_memory}[name](url)
            drop_database(server, url)
        for name, result in results.items():
            show(name, result)
    finally:
        if options.server is None:
            stop_server(home)
        shutil.rmtree(home, ignore_errors=True)
    known = json.loads(options.out.read_text())["results"] if options.out.exists() else {}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    stamp = {
        "machine": f"{os.cpu_count()} cores",
        "commit": commit.stdout.strip(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    for name, result in results.items():
        known[name] = {**stamp, **result}
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({"benchmark": "ingest", "results": known}, indent=2, ensure_ascii=False) + "\n")


def settings_for(home: Path, url: str) -> Settings:
    return Settings.load(BABYLON_HOME=str(home), DATABASE_URL=url, BABYLON_PLATFORM_URL=None)


def fresh_database(home: Path, server: str, name: str) -> str:
    url = ensure_database(server, name)
    drop_database(server, url)
    ensure_database(server, name)
    upgrade(settings_for(home, url).database)
    return url


def drop_database(server: str, url: str) -> None:
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE "{psycopg.conninfo.conninfo_to_dict(url)["dbname"]}" WITH (FORCE)')


def alter(url: str, column: str, *actions: str) -> None:
    with psycopg.connect(url) as conn:
        for action in actions:
            conn.execute(f"ALTER TABLE trajectories ALTER COLUMN {column} {action}")


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
