"""`python -m babylon_rl_tests.same_bytes SOURCE TARGET ORDER WORKERS …`: hashes of a data set built in several ways.

Copies the game's rows from SOURCE into the empty TARGET in a shuffled order, then reads, groups, judges and exports
with WORKERS workers over the windows in a shuffled order. ORDER seeds the shuffles; each (ORDER, WORKERS) starts from an
empty TARGET and prints one line. Run by `test_same_bytes.py`, each time in another environment.
"""

import asyncio
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from babylon_rl.database import game_tables
from babylon_rl.database import tables as t
from babylon_rl.database.connection import connect
from babylon_rl.export.dataset import export
from babylon_rl.judging.hindsight_judge import HindsightJudge
from babylon_rl.pipeline.score import score_windows
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl.windows import HourWindow
from babylon_rl_tests.played import hours, prepare, verify

COPIED = (game_tables.trajectories, game_tables.llm_call_logs, t.price_facts, t.prediction_facts, t.news_facts)


def copy_rows(source: sa.Engine, target: sa.Engine, r: random.Random) -> None:
    everything = [*game_tables.game.tables.values(), *t.platform.tables.values()]
    everything.remove(t.deployment_events)  # append-only; nothing is deployed here
    with target.begin() as conn:
        conn.execute(sa.text(f"TRUNCATE {', '.join(x.fullname for x in everything)}"))
    for table in COPIED:
        with source.connect() as conn:
            rows = [dict(x) for x in conn.execute(sa.select(table)).mappings()]
        r.shuffle(rows)
        with target.begin() as conn:
            for row in rows:  # one by one, so that their places on disk follow this order too
                conn.execute(sa.insert(table), [row])


def build(workspace: Workspace, windows: Sequence[HourWindow], *, workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(partial(prepare, workspace), windows))
    asyncio.run(score_windows(workspace, HindsightJudge(), windows, concurrency=workers))
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(partial(verify, workspace), windows))


def digest_of(workspace: Workspace) -> dict[str, str]:
    """A hash of each result that must be the same."""
    queries = {
        "data versions": "SELECT window_id, data_version FROM babylon_rl.windows ORDER BY window_id",
        "outcomes": "SELECT window_id, data_version FROM babylon_rl.window_outcomes ORDER BY window_id",
        "groups": "SELECT window_id, group_id, data_version FROM babylon_rl.contextualized_groups ORDER BY window_id",
        "trajectories": "SELECT trajectory_id, body FROM babylon_rl.window_trajectories ORDER BY trajectory_id",
        "row outcomes": "SELECT source_id, status, reason, group_id FROM babylon_rl.row_outcomes ORDER BY source_id",
        "judgment keys": "SELECT window_id, judgment_key FROM babylon_rl.window_judgments ORDER BY window_id",
        "scores": "SELECT trajectory_id, score, explanation FROM babylon_rl.judgments ORDER BY trajectory_id",
    }
    hashes = {}
    with workspace.store.engine.connect() as conn:
        for name, query in queries.items():
            rows = [tuple(r) for r in conn.execute(sa.text(query))]
            assert {str(r[0])[:16] for r in rows} >= set(map(str, hours(3))) or name == "row outcomes", (
                f"{name}: a window is missing"
            )
            hashes[name] = hashlib.sha256(repr(rows).encode()).hexdigest()
    with tempfile.TemporaryDirectory() as directory:
        for format in ("parquet", "jsonl"):
            for what in ("turns", "groups"):
                file = Path(directory) / f"{what}.{format}"
                export(workspace, str(file), format=format, what=what, with_hindsight=True)  # type: ignore[arg-type]
                hashes[f"{what}.{format}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return hashes


def main(source_url: str, target_url: str, order: str, workers: str) -> dict[str, str]:
    r = random.Random(order)
    source = connect(source_url)
    with open_workspace(Settings.load(DATABASE_URL=target_url, BABYLON_PLATFORM_URL=None)) as workspace:
        copy_rows(source, workspace.game, r)
        windows = hours(3)
        r.shuffle(windows)
        build(workspace, windows, workers=int(workers))
        hashes = digest_of(workspace)
    source.dispose()
    return hashes


if __name__ == "__main__":
    source_, target_, *ways = sys.argv[1:]
    for order_, workers_ in zip(ways[::2], ways[1::2], strict=True):
        sys.stdout.write(json.dumps(main(source_, target_, order_, workers_)) + "\n")
