"""An agent in any language is recorded by its base URL and two headers: it makes HTTP calls, and writes its own steps."""

import json

import httpx
import pytest
import sqlalchemy as sa
from gateway_factories import LINEAGE, gateway_in_thread, move, record_remote
from upstream_server import Upstream

from babylon_rl.database.connection import connect
from babylon_rl.deployment.stages import MoveKind
from babylon_rl.ingest.reader import stream_window
from babylon_rl.ingest.stitching import stitch
from babylon_rl.settings import Settings
from babylon_rl_tests.factories import WINDOW, a_json_step, a_row, insert_rows
from babylon_rl_tests.prisma_tables import PRISMA


def play_one_tick(url: str, trajectory_id: str, step: int, prompt: str, *, stream: bool) -> str:
    """What an agent does for a decision; gives what it was answered."""
    body = {
        "model": LINEAGE,
        "messages": [{"role": "system", "content": "You trade."}, {"role": "user", "content": prompt}],
        "max_tokens": 64,
        "stream": stream,
    }
    headers = {
        "x-babylon-agent": "agent-1",
        "x-babylon-window": str(WINDOW),
        "x-babylon-trajectory": trajectory_id,
        "x-babylon-step": str(step),
    }
    answer = httpx.post(f"{url}/chat/completions", json=body, headers=headers, trust_env=False)
    assert answer.status_code == 200, answer.text
    if not stream:
        return str(answer.json()["choices"][0]["message"]["content"])
    events = [json.loads(e) for e in answer.text.replace("data: ", "").split("\n\n") if e.startswith("{")]
    return "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"])


@pytest.mark.parametrize("spelling", ["snake_case", "camelCase"])
def test_its_calls_and_its_steps_become_one_trajectory(
    spelling: str,
    settings: Settings,
    engine: sa.Engine,
    database_url: str,
    empty_database_url: str,
    upstream: Upstream,
) -> None:
    is_ours = spelling == "snake_case"
    game_url = database_url if is_ours else empty_database_url
    settings = Settings.load(
        BABYLON_HOME=str(settings.home),
        DATABASE_URL=game_url,
        BABYLON_PLATFORM_URL=None if is_ours else database_url,
        BABYLON_TRAINER="local",
        BABYLON_BASE_MODEL="base",
        BABYLON_INFERENCE_URL=upstream.url,
    )
    game = connect(game_url)
    row = a_row(trajectory_id="t-1", steps_json=[a_json_step(i, llmCalls=[]) for i in range(3)])
    if is_ours:
        insert_rows(engine, [row])
    else:
        with game.begin() as conn:
            conn.exec_driver_sql(PRISMA)
            conn.exec_driver_sql(
                'INSERT INTO trajectories (id, "trajectoryId", "agentId", "startTime", "windowId", "stepsJson", '
                '"metadataJson", "finalPnL") VALUES (%(id)s, %(trajectory_id)s, %(agent_id)s, %(start_time)s, '
                "%(window_id)s, %(steps_json)s, '{}', 12.5)",
                row,
            )
    record_remote(engine, 1)
    move(engine, MoveKind.PROMOTED, 1, incumbent=1)

    with gateway_in_thread(settings, into_foreign_game=not is_ours) as url:
        answers = [play_one_tick(url, "t-1", i, f"tick {i}", stream=i == 1) for i in range(3)]

    with game.connect() as conn:
        (trajectory,) = stitch(r for agent in stream_window(conn, WINDOW) for r in agent.rows)
    game.dispose()
    assert [(t.system, t.user, t.response) for t in trajectory.turns] == [
        ("You trade.", f"tick {i}", answers[i]) for i in range(3)
    ]
    assert [t.policy_version for t in trajectory.turns] == [f"{LINEAGE}@1"] * 3
    assert [d["step"] for d in trajectory.decisions] == [0, 1, 2]
