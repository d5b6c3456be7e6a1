"""A role that lacks a right is told so in one sentence, with the GRANT to run; what needs no such right goes on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from babylon_rl.errors import ConfigError
from babylon_rl.ingest.columns import find_column_names
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.pipeline.outcomes import snapshot_outcomes
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl_tests.factories import WINDOW
from babylon_rl_tests.postgres.games import G2, Game, a_game, a_game_call, a_game_row, a_game_step, open_read_only

NOW = WINDOW.start_at + timedelta(days=1)


@pytest.fixture
def game(server_url: str) -> Iterator[Game]:
    with a_game(server_url, G2) as game:
        steps = [a_game_step(WINDOW.start_at, a_game_call("HOLD"))]
        game.insert("trajectories", *[a_game_row(game, f"a{i}", WINDOW.start_at, steps) for i in range(6)])
        game.insert("trajectories", a_game_row(game, "idle", WINDOW.start_at, [a_game_step(WINDOW.start_at)]))
        written = game.now_at(WINDOW.end_at)
        game.insert("market_outcomes", {"id": "1", "windowId": str(WINDOW), "stockTicker": "BTC", "createdAt": written})
        yield game


@pytest.fixture
def workspace(game: Game, empty_database_url: str, tmp_path: Path) -> Iterator[Workspace]:
    with open_read_only(game, empty_database_url, tmp_path) as w:
        yield w


@pytest.mark.parametrize("table", ["llm_call_logs", "market_outcomes"])
def test_a_table_out_of_reach_is_named_and_the_rest_goes_on(game: Game, workspace: Workspace, table: str) -> None:
    game.run(f"REVOKE SELECT ON {table} FROM {game.role}")
    sentence = f'GRANT SELECT ON {table} TO "{game.role}";'
    read = ingest_window(WINDOW, workspace.game, workspace.store)
    facts = snapshot_outcomes(WINDOW, workspace.game, workspace.store, now=NOW, sync=False).facts
    (said,) = read.facts["unreadable"]
    assert said.endswith(sentence)
    assert f"role '{game.role}' may not read table '{table}'" in said
    assert read.facts["agents"] == 6
    assert group_window(WINDOW, workspace.store, min_agents=5).count == 6
    assert facts["stocks"] == (0 if table == "market_outcomes" else 1)
    assert ("unreadable" in facts) == (table == "market_outcomes")


def check_windows(game: Game, platform_url: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "babylon_rl.cli.main", "check-windows"],
        env={
            **{k: os.environ[k] for k in ("PATH", "PYTHONPATH") if k in os.environ},
            "BABYLON_HOME": str(home),
            "DATABASE_URL": game.reader_url,
            "BABYLON_PLATFORM_URL": platform_url,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(("table", "status"), [("trajectories", 2), ("market_outcomes", 1)])
def test_a_command_says_it_in_a_sentence(
    game: Game, empty_database_url: str, tmp_path: Path, table: str, status: int
) -> None:
    """Without `trajectories` there is nothing to show; without another table the windows are shown."""
    game.run(f"REVOKE SELECT ON {table} FROM {game.role}")
    done = check_windows(game, empty_database_url, tmp_path)
    assert done.returncode == status
    assert f'GRANT SELECT ON {table} TO "{game.role}";' in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert (str(WINDOW) in done.stdout) == (table != "trajectories")


def test_a_column_that_may_not_be_read_is_named(game: Game, workspace: Workspace) -> None:
    game.run(f"REVOKE SELECT ON trajectories FROM {game.role}")
    game.run(f'GRANT SELECT (id, "trajectoryId", "agentId", "startTime", "endTime") ON trajectories TO {game.role}')
    with (
        workspace.game.connect() as conn,
        pytest.raises(
            ConfigError, match=r"column '\w+' and \d+ more\); as its owner run: GRANT SELECT ON trajectories"
        ),
    ):
        find_column_names(conn)


def test_rights_on_the_columns_that_we_read_are_enough(game: Game, workspace: Workspace) -> None:
    game.run(f"REVOKE SELECT ON market_outcomes FROM {game.role}")
    columns = game.run(
        "SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute WHERE attnum > 0 AND "
        "attrelid = 'market_outcomes'::regclass AND attname <> 'volume'"
    )[0][0]
    game.run(f"GRANT SELECT ({columns}) ON market_outcomes TO {game.role}")
    facts = snapshot_outcomes(WINDOW, workspace.game, workspace.store, now=NOW, sync=False).facts
    assert (facts["stocks"], "unreadable" in facts) == (1, False)
