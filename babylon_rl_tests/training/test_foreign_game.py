"""Training on a game that is not ours, at W&B over HTTP: what can be said is said, and nothing is called money earned."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from serverless_server import KEY, ServerlessServer

from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.policy.shipped import shipped_base
from babylon_rl.settings import Settings
from babylon_rl.store.log_evaluations import LogEvaluation, NotEvaluated, read_log_rows
from babylon_rl_tests.another_game import SYSTEM_PROMPT, another_game


@pytest.fixture
def server() -> Iterator[ServerlessServer]:
    with ServerlessServer() as server:
        yield server


@pytest.fixture
def game_url(server_url: str) -> Iterator[str]:
    with another_game(server_url, f"babylon_test_{os.getpid()}_foreign", windows=8) as url:
        yield url


@pytest.fixture
def variables(
    environment: dict[str, str], game_url: str, empty_database_url: str, server: ServerlessServer
) -> dict[str, str]:
    return environment | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "DATABASE_URL": game_url,
        "BABYLON_PLATFORM_URL": empty_database_url,
        "BABYLON_TRAINER": "serverless",
        "BABYLON_BASE_MODEL": str(shipped_base()),
        "BABYLON_WANDB_TRAINING_URL": server.url,
        "WANDB_API_KEY": KEY,
    }


def train(variables: dict[str, str], iterations: int) -> str:
    command = [sys.executable, "-m", "babylon_rl.cli.main", "train"]
    arguments = ["--iterations", str(iterations), "--windows-per-iteration", "2"]
    done = subprocess.run([*command, *arguments], env=variables, capture_output=True, text=True, timeout=400)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return re.sub(r"\s+", " ", done.stdout + done.stderr)


def open_platform(variables: dict[str, str]) -> Workspace:
    settings = Settings.load(**{k: v for k, v in variables.items() if k.startswith(("BABYLON", "DATABASE", "WANDB"))})
    return open_workspace(settings)  # type: ignore[return-value]


def rows_that_say(word: str, url: str) -> list[str]:
    """Tables with a row whose text holds the word, in every schema of a database."""
    with psycopg.connect(url) as conn:
        tables = conn.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        found = []
        for schema, table in tables:
            query = f'SELECT count(*) FROM "{schema}"."{table}" x WHERE x::text ILIKE %s'
            (count,) = conn.execute(query, (f"%{word}%",)).fetchone() or (0,)  # type: ignore[arg-type]
            if count:
                found.append(f"{schema}.{table}")
    return found


def test_three_iterations_on_a_foreign_game_end_well(server: ServerlessServer, variables: dict[str, str]) -> None:
    """The first paid iteration used to end in exit status 2; on a CPU it got dollars of another game."""
    server.says = {
        "base": "hm",
        "wandb-artifact:///test-entity/babylon-agents/babylon-mmo:step3": '{"action": "OPEN_LONG"}',
    }

    output = train(variables, 3)

    assert len(server.jobs) == 3
    assert "Final step: 3 Checkpoints trained: 3" in output
    assert "on 2 held-out windows of the log" in output
    assert "Model: wandb-artifact:///test-entity/babylon-agents/babylon-mmo:step3" in output
    with open_platform(variables) as workspace:  # type: ignore[attr-defined]
        rows = read_log_rows(workspace.store.engine, "babylon-mmo")
        trained = {w for c in workspace.ledger.checkpoints() for w in c.windows}
    results = [r.result for r in rows if isinstance(r.result, LogEvaluation)]
    assert [r.step for r in rows] == [1, 2, 3]
    assert [len(r.windows) for r in results] == [6, 4, 2]
    assert not trained & set(results[-1].windows)
    last = results[-1]
    assert last.base.invalid_rate == 1.0
    assert last.policy.invalid_rate == 0.0
    assert last.changes["invalid_rate"].mean == -1.0
    # Agent 4 earned most. Hours 6 and 7 are held out, where it held (2 + 6 is 2 of 3) and went long (2 + 7 is 0).
    assert (last.base.same_action_rate, last.policy.same_action_rate) == (0.0, 0.5)
    assert last.policy.ranks_best_first is None
    assert "no log-probabilities of prompts" in last.unknown["ranks_best_first"]
    assert {c["messages"][0]["content"] for c in server.chats} == {SYSTEM_PROMPT}, "no prompt of the simulator was sent"
    for name in ("DATABASE_URL", "BABYLON_PLATFORM_URL", "BABYLON_DAGSTER_URL"):
        assert rows_that_say("lift", variables[name]) == []
        assert rows_that_say(KEY, variables[name]) == []
    assert "lift" not in str([r.facts() for r in results]) + output
    with psycopg.connect(variables["BABYLON_PLATFORM_URL"]) as conn:
        assert conn.execute("SELECT count(*) FROM babylon_rl.evaluations").fetchone() == (0,)


def test_an_endpoint_that_refuses_ends_no_paid_training(server: ServerlessServer, variables: dict[str, str]) -> None:
    nowhere = {**variables, "BABYLON_WANDB_INFERENCE_URL": f"{server.url}/elsewhere"}

    output = train(nowhere, 1)

    assert "Evaluation: not evaluated: policy" in output
    assert "HTTP 404" in output
    with open_platform(variables) as workspace:  # type: ignore[attr-defined]
        (row,) = read_log_rows(workspace.store.engine, "babylon-mmo")
    assert isinstance(row.result, NotEvaluated)
    assert (row.result.windows, row.result.try_again) == (6, False)

    assert "on 6 held-out windows of the log" in train(variables, 1), "a person asks again, and it can be said now"


def test_a_cpu_checkpoint_of_a_foreign_game_gets_no_dollars(variables: dict[str, str]) -> None:
    """It played our simulator, whose prompts it never saw, and was told what it would earn there."""
    here = {k: v for k, v in variables.items() if k != "BABYLON_BASE_MODEL"} | {"BABYLON_TRAINER": "cpu"}

    output = train(here, 1)

    with psycopg.connect(variables["BABYLON_PLATFORM_URL"]) as conn:
        assert conn.execute("SELECT count(*) FROM babylon_rl.evaluations").fetchone() == (0,)
        said = conn.execute("SELECT kind, windows, ranks_best_first FROM babylon_rl.log_evaluations").fetchone()
    assert said is not None
    assert said[:2] == ("held_out_log", 6)
    assert 0 <= said[2] <= 1
    assert "ranks the judge's best first" in output
