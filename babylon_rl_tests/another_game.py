"""A game that is not our simulator, in a database of its own that we did not create: Prisma's tables, its own prompts."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from babylon_rl.database.embedded import ensure_database
from babylon_rl.windows import HourWindow
from babylon_rl_tests.conftest import drop_database
from babylon_rl_tests.prisma_tables import PRISMA

FIRST = HourWindow.parse("2025-01-15T00:00")
SYSTEM_PROMPT = "You are Ada, a trader of another game. Answer with JSON."
ACTIONS = ("open_long", "open_short", "hold")


def action_of(agent: int, hour: int) -> str:
    return ACTIONS[(agent // 2 + hour) % len(ACTIONS)]


@contextmanager
def another_game(server_url: str, name: str, *, windows: int, agents: int = 5) -> Iterator[str]:
    """URL of a game with so many windows, each with agents that earned different money; agent 4 the most."""
    url = ensure_database(server_url, name)
    with psycopg.connect(url) as conn:
        conn.execute(PRISMA)
        for hour in range(windows):
            add_window(conn, FIRST.next(hour), hour, agents)
    try:
        yield url
    finally:
        drop_database(server_url, name)


def add_window(conn: "psycopg.Connection[tuple[object, ...]]", window: HourWindow, hour: int, agents: int = 5) -> None:
    start = window.start_at.replace(tzinfo=None)
    for agent in range(agents):
        call = {
            "model": "babylon-mmo",
            "modelVersion": "babylon-mmo@0",
            "systemPrompt": SYSTEM_PROMPT,
            "userPrompt": f"Hour {hour}. You hold nothing. BTC rose.",
            "response": json.dumps({"action": action_of(agent, hour), "ticker": "BTC"}),
            "temperature": 1.0,
            "purpose": "action",
        }
        step = {
            "stepNumber": 0,
            "timestamp": int(window.start_at.timestamp() * 1000),
            "environmentState": {"agentBalance": 1000, "agentPnL": 0},
            "llmCalls": [call],
            "action": {"actionType": action_of(agent, hour), "parameters": {}, "success": True},
        }
        own = f"{hour:03d}{agent:03d}"
        conn.execute(
            'INSERT INTO trajectories (id, "trajectoryId", "agentId", "startTime", "endTime", "windowId", "stepsJson", '
            '"metadataJson", "finalBalance", "finalPnL") VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)',
            (own, f"t{own}", f"ada-{agent}", start, start, str(window), json.dumps([step]), "{}", 1000, 10.0 * agent),
        )
    conn.execute(
        'INSERT INTO market_outcomes (id, "windowId", "stockTicker", "startPrice", "endPrice", "changePercent", "createdAt") '
        "VALUES (%s, %s, 'BTC', 100, 110, 10, %s)",
        (f"o{hour}", str(window), window.end_at.replace(tzinfo=None)),
    )
