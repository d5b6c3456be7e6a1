"""`babylon-rl import`: the game's JSON files become rows of our own table, once, and a bad file costs no other."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from babylon_rl.errors import ConfigError, DataError
from babylon_rl.ingest.import_files import ImportReport, import_folder
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.store.windows import Store
from babylon_rl.types import Json
from babylon_rl_tests.factories import WINDOW
from babylon_rl_tests.postgres.games import G2, a_game, a_game_call, a_game_row, a_game_step


def a_file_row(number: int = 0, **changes: Any) -> Json:
    """A trajectory as the recorder hands it to JSON.stringify."""
    start = WINDOW.start_at + timedelta(minutes=number % 50)
    steps = [a_game_step(start, a_game_call("HOLD", user=f"{number}: …"), pnl=0, trustState={"trustScore": 0.5})]
    own = str(2_011_000_000_000_000_000 + number)
    row: Json = {
        "id": f"9{own}",
        "trajectoryId": own,
        "agentId": f"agent-{number % 7}",
        "archetype": "trader",
        "startTime": start.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "endTime": (start + timedelta(seconds=30)).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "durationMs": 30_000,
        "scenarioId": str(WINDOW),
        "batchId": None,
        "windowId": str(WINDOW),
        "windowHours": 1,
        "stepsJson": json.dumps(steps),
        "rewardComponentsJson": '{"environmentReward":0}',
        "metricsJson": "{}",
        "metadataJson": '{"isTrainingData":true,"gameKnowledge":{}}',
        "totalReward": 0,
        "episodeLength": 1,
        "finalStatus": "completed",
        "finalBalance": 1000,
        "finalPnL": 0,
        "aiJudgeReward": 0.5,
        "aiJudgeReasoning": "steady",
        "judgedAt": "2025-01-15T10:00:01.000Z",
        "isTrainingData": True,
        "isEvaluation": False,
        "usedInTraining": False,
        "updatedAt": "2025-01-15T10:00:01.000Z",
    }
    return row | changes


def write_file(folder: Path, row: Json, name: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    body = {"trajectory": row, "rewardJudgment": {"overallScore": 0.5}, "llmCalls": []}
    (folder / f"{name or row['trajectoryId']}.json").write_text(json.dumps(body, indent=2))


def take(engine: sa.Engine, folder: Path) -> tuple[ImportReport, list[str]]:
    said: list[str] = []
    return import_folder(engine, folder, complain=said.append), said


def stored(engine: sa.Engine) -> list[Any]:
    with engine.connect() as conn:
        return list(conn.execute(sa.text("SELECT * FROM trajectories ORDER BY id")).mappings())


def test_the_same_folder_twice_writes_nothing_twice(engine: sa.Engine, tmp_path: Path) -> None:
    folder = tmp_path / "training-data-output"
    for i in range(230):
        write_file(folder / "trajectories", a_file_row(i))
    assert take(engine, folder) == (ImportReport(written=230, unchanged=0, failed=0), [])
    before = stored(engine)
    assert take(engine, folder / "trajectories") == (ImportReport(written=0, unchanged=230, failed=0), [])
    assert stored(engine) == before
    first = min(before, key=lambda r: r["trajectory_id"])
    assert (first["start_time"], first["final_pnl"], first["archetype"]) == (
        WINDOW.start_at.replace(tzinfo=None),
        0.0,
        "trader",
    )


def test_a_changed_file_is_told_and_changes_no_row(engine: sa.Engine, tmp_path: Path) -> None:
    for i in range(3):
        write_file(tmp_path, a_file_row(i))
    take(engine, tmp_path)
    before = stored(engine)
    write_file(tmp_path, a_file_row(1, finalPnL=None))
    write_file(tmp_path, a_file_row(2, aiJudgeReward=0.9, judgedAt=None))  # the game judged it again
    write_file(tmp_path, a_file_row(8, id=a_file_row(0)["id"]))
    report, said = take(engine, tmp_path)
    assert report == ImportReport(written=0, unchanged=2, failed=2)
    assert [a_file_row(1)["trajectoryId"] in said[0], "final_pnl differ" in said[0]] == [True, True]
    assert "its id is taken" in said[1]
    assert stored(engine) == before


BAD: dict[str, tuple[Any, str]] = {
    "cut": ('{"trajectory": {"id"', "is no JSON"),
    "list": ("[]", "holds a list"),
    "no-agent": (a_file_row(1, agentId=None), "no 'agentId'"),
    "no-steps": ({k: v for k, v in a_file_row(2).items() if k != "stepsJson"}, "its 'stepsJson' is a NoneType"),
    "number-id": (a_file_row(3, trajectoryId=2**60), "is a int; expected text"),
    "long-window": (a_file_row(4, windowId="x" * 51), "has 51 characters; the column holds 50"),
    "no-time": (a_file_row(5, startTime="yesterday"), "'yesterday'; expected an ISO time"),
    "latin": (b'{"trajectory": "\xff"}', "is no JSON"),
}


def test_a_bad_file_is_named_and_costs_no_other(engine: sa.Engine, tmp_path: Path) -> None:
    for name, (content, _) in BAD.items():
        if isinstance(content, bytes):
            (tmp_path / f"{name}.json").write_bytes(content)
        elif isinstance(content, str):
            (tmp_path / f"{name}.json").write_text(content)
        else:
            write_file(tmp_path, content, name)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "notes.txt").write_text("no trajectory")
    for i in range(10, 16):
        write_file(tmp_path, a_file_row(i))
    report, said = take(engine, tmp_path)
    assert report == ImportReport(written=6, unchanged=0, failed=len(BAD) + 1)
    assert all(any(f"{tmp_path / name}.json" in s and why in s for s in said) for name, (_, why) in BAD.items())
    assert len(said) == len(BAD) + 1


def test_odd_values_are_taken_as_rows_hold_them(engine: sa.Engine, tmp_path: Path) -> None:
    """Half an emoji, NUL, NaN, a bare row, steps that are no text: each is a row, and reading it decides."""
    half = json.dumps([a_game_step(WINDOW.start_at, a_game_call("moon \ud83d"))])
    write_file(tmp_path, a_file_row(0, stepsJson=half))
    write_file(tmp_path, a_file_row(1, stepsJson=json.loads(half), aiJudgeReasoning="half \ud83d, nul \0"))
    write_file(tmp_path, a_file_row(2, finalPnL=float("nan"), finalBalance=float("inf"), durationMs=1.5))
    (tmp_path / "bare.json").write_text(json.dumps(a_file_row(3, startTime=1736935200123)))
    assert take(engine, tmp_path) == (ImportReport(written=4, unchanged=0, failed=0), [])
    assert take(engine, tmp_path) == (ImportReport(written=0, unchanged=4, failed=0), [])
    rows = {r["trajectory_id"][-1]: r for r in stored(engine)}
    assert (rows["2"]["final_pnl"], rows["2"]["final_balance"]) == (None, None)
    assert str(rows["3"]["start_time"]) == "2025-01-15 10:00:00.123000"
    store = Store(engine)
    ingest_window(WINDOW, engine, store)
    with engine.connect() as conn:
        outcomes = conn.execute(sa.text("SELECT reason FROM babylon_rl.row_outcomes ORDER BY source_id")).scalars()
        assert list(outcomes) == ["lone_surrogate", "lone_surrogate", "has_turn", "has_turn"]


def test_files_give_the_group_that_the_games_database_gives(
    engine: sa.Engine, server_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    groups = []
    with a_game(server_url, G2) as game:
        rows = [
            a_game_row(
                game,
                f"a{i}",
                WINDOW.start_at + timedelta(minutes=i),
                [a_game_step(WINDOW.start_at, a_game_call(f"{i}"))],
            )
            for i in range(6)
        ]
        game.insert("trajectories", *rows)
        for row in rows:
            texts = {k: v.replace(tzinfo=UTC).isoformat() for k, v in row.items() if isinstance(v, datetime)}
            write_file(tmp_path, row | texts)
        assert take(engine, tmp_path)[0].written == 6
        theirs = sa.create_engine(sa.make_url(game.reader_url).set(drivername="postgresql+psycopg"))
        for source in (engine, theirs):
            store = Store(engine)
            ingest_window(WINDOW, source, store)
            group_window(WINDOW, store, min_agents=5)
            groups.append(store.group(WINDOW))
        theirs.dispose()
    assert groups[0] is not None
    assert groups[0] == groups[1]
    assert {m.archetype for m in groups[0].members} == {"trader"}


def test_a_foreign_games_tables_are_not_written(server_url: str, tmp_path: Path) -> None:
    write_file(tmp_path, a_file_row())
    with a_game(server_url, G2) as game:
        engine = sa.create_engine(sa.make_url(game.owner_url).set(drivername="postgresql+psycopg"))
        with pytest.raises(ConfigError, match="not created by babylon-rl, so nothing is imported"):
            take(engine, tmp_path)
        engine.dispose()
        assert game.run("SELECT count(*) FROM trajectories") == [(0,)]


def test_a_folder_without_files_is_told(engine: sa.Engine, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.json file"):
        take(engine, tmp_path)


def run_import(environment: dict[str, str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "babylon_rl.cli.main", "import", str(folder)],
        env=environment | {k: os.environ[k] for k in ("PYTHONPATH",) if k in os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_says_what_it_did_in_its_exit_status(environment: dict[str, str], tmp_path: Path) -> None:
    for i in range(3):
        write_file(tmp_path / "in", a_file_row(i))
    good = run_import(environment, tmp_path / "in")
    out, err = good.communicate(timeout=120)
    assert (good.returncode, err) == (0, "")
    assert "3 trajectories written, 0 were there already, 0 not taken; next: babylon-rl check-windows" in out
    (tmp_path / "in" / "cut.json").write_text("{")
    bad = run_import(environment, tmp_path / "in")
    out, err = bad.communicate(timeout=120)
    assert bad.returncode == 1
    assert "0 trajectories written, 3 were there already, 1 not taken" in out
    assert err.count("cut.json was not imported: it is no JSON") == 1
    assert "Traceback" not in err


def test_an_import_that_was_killed_is_finished_by_the_next(environment: dict[str, str], tmp_path: Path) -> None:
    files = 1_500
    for i in range(files):
        write_file(tmp_path / "in", a_file_row(i))

    def count(conn: Any) -> int:
        return int(conn.execute("SELECT count(*) FROM trajectories").fetchone()[0])

    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as conn:
        killed = run_import(environment, tmp_path / "in")
        give_up = time.monotonic() + 60
        while not count(conn) and time.monotonic() < give_up:
            time.sleep(0.002)
        killed.kill()
        killed.communicate(timeout=60)
        assert 0 < count(conn) <= files
        again = run_import(environment, tmp_path / "in")
        again.communicate(timeout=120)
        assert again.returncode == 0
        assert count(conn) == files
