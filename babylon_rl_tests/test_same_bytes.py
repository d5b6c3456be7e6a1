"""The same rows give the same data set, to the byte, however the processes that made it were started."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

import babylon_rl
from babylon_rl.database.embedded import ensure_database
from babylon_rl.pipeline.workspace import open_workspace
from babylon_rl.settings import Settings
from babylon_rl_tests.conftest import drop_database
from babylon_rl_tests.factories import a_json_step, insert_call_log, insert_row
from babylon_rl_tests.played import FIRST, hours, play

ZONES = ("America/New_York", "Asia/Kolkata", "UTC")
HASH_SEEDS = ("0", "1", "4242")
WAYS = (("shuffled-1", "1"), ("shuffled-2", "4"), ("shuffled-3", "8"))  # order of rows and windows; workers
STARTS = list(itertools.product(HASH_SEEDS, ZONES))


@pytest.fixture
def targets(server_url: str, template_database: str) -> Iterator[list[str]]:
    """An empty, migrated database for each process."""
    names = [f"babylon_test_{os.getpid()}_same_{i}" for i in range(len(STARTS))]
    with psycopg.connect(server_url, autocommit=True) as conn:
        for name in names:
            conn.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template_database}" STRATEGY file_copy')
    yield [ensure_database(server_url, name) for name in names]
    for name in names:
        drop_database(server_url, name)


def make_game(settings: Settings) -> None:
    """Three hours of play, with malformed and unusual rows among them."""
    with open_workspace(settings) as workspace:
        play(workspace, hours(3))
        game = workspace.game
        start = FIRST.start_at.replace(tzinfo=None)
        for i in range(3):  # equal times: only ids tell them apart
            insert_row(game, "same-time", window=FIRST, id=f"same-{i}", final_pnl=float(i))
        insert_row(game, "null-window", window=FIRST, window_id=None, start_time=start.replace(minute=59, second=59))
        insert_row(game, "successor", window=FIRST, window_id="2025-01-15-00")
        for i, steps in enumerate(("[]", "[{", "[1]", '[{"llmCalls":[{"userPrompt":"a","response":"\\ud83d"}]}]')):
            insert_row(game, "broken", window=FIRST, id=f"broken-{i}", steps_json=steps)
        silent = insert_row(game, "logged", window=FIRST, steps_json=[a_json_step(stepId="s", llmCalls=[])])
        for i in range(3):
            insert_call_log(
                game, silent["trajectory_id"], step_id="s", call_id=f"c-{i}", response=f"{i}", timestamp=start
            )
        knowledge = {"gameKnowledge": {str(i): i for i in range(20)}}
        insert_row(game, "knowing", window=FIRST, metadata_json=knowledge)
        insert_row(game, "knowing", window=FIRST, metadata_json={"gameKnowledge": {"0": "later"}}, tick=1)


def test_one_hash_whatever_the_seed_zone_row_order_and_workers(
    settings: Settings, targets: list[str], tmp_path: Path
) -> None:
    make_game(settings)
    assert settings.database.url is not None
    source = settings.database.url.get_secret_value()

    def run(number: int) -> list[dict[str, str]]:
        hash_seed, zone = STARTS[number]
        arguments = [targets[number], *(x for way in WAYS for x in way)]
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(babylon_rl.__file__).parent.parent),
            "PYTHONHASHSEED": hash_seed,
            "TZ": zone,
            "PGTZ": zone,
            "BABYLON_HOME": str(tmp_path / str(number)),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [sys.executable, "-m", "babylon_rl_tests.same_bytes", source, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(2) as pool:
        hashes = [one for several in pool.map(run, range(len(STARTS))) for one in several]

    assert len(hashes) == len(STARTS) * len(WAYS) >= 20
    assert len(hashes[0]) == 11
    for name in hashes[0]:
        assert len({one[name] for one in hashes}) == 1, f"{name} differ"
