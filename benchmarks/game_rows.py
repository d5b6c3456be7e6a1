"""Rows of the game's size and shape, seeded: 71 KB of steps, three steps a row, two calls a step."""

import json
import random
from datetime import datetime, timedelta
from typing import Any

import psycopg

from babylon_rl.windows import HourWindow

FIRST = HourWindow.parse("2025-01-01T00:00")
STEP_BYTES = 71_000
WORDS = [
    f"{a}{b}"
    for a in ("mar", "bull", "pol", "tru", "odds", "vol", "news", "yes")
    for b in ("ket", "ish", "l", "mp", "s", "ume", "es", "no")
]


def prose(r: random.Random, chars: int) -> str:
    words = r.choices(WORDS, k=chars // 6 + 1)
    for i in range(0, len(words), 7):
        words[i] = f"{r.random() * 1000:.2f}"
    return " ".join(words)[:chars]


def step(r: random.Random, number: int, at: datetime, system: str) -> dict[str, Any]:
    """About 23.7 KB: half in the prompts of two calls, the rest in the data of providers."""

    def market(i: int) -> dict[str, Any]:
        known = {"id": str(1_900_000_000_000_000_000 + i), "question": prose(r, 90)}
        return {**known, "yes": r.random(), "no": r.random(), "volume": r.random() * 1e5}

    def call(purpose: str, chars: int) -> dict[str, Any]:
        texts = {"systemPrompt": system, "userPrompt": prose(r, chars), "response": prose(r, 600), "purpose": purpose}
        return {
            "model": "babylon",
            "modelVersion": "babylon-mmo@3",
            "temperature": 0.7,
            "maxTokens": 512,
            "latencyMs": 812.5,
            **texts,
        }

    return {
        "stepNumber": number,
        "timestamp": int(at.timestamp() * 1000),
        "environmentState": {
            "agentBalance": 10_000 + r.random(),
            "agentPnL": r.random(),
            "openPositions": 2,
            "activeMarkets": [market(i) for i in range(6)],
        },
        "providerAccesses": [
            {
                "providerName": f"P{p}",
                "purpose": "decide",
                "data": {"markets": [market(i) for i in range(9)], "text": prose(r, 300)},
            }
            for p in range(5)
        ],
        "llmCalls": [call("reasoning", 3_300), call("action", 3_300)],
        "action": {"actionType": "BUY", "parameters": {"ticker": "BTC", "amount": 100}, "success": True},
        "reward": 0,
    }


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
                        "id": str(n),
                        "trajectory_id": f"t{n}",
                        "agent_id": f"agent-{agent}",
                        "start_time": at.replace(tzinfo=None),
                        "end_time": at.replace(tzinfo=None),
                        "window_id": str(window),
                        "scenario_id": str(window),
                        "steps_json": json.dumps([step(r, s, at, system) for s in range(3)]),
                        "reward_components_json": "{}",
                        "metrics_json": "{}",
                        "metadata_json": "{}",
                        "total_reward": 0.0,
                        "episode_length": 3,
                        "final_status": "completed",
                        "final_balance": 1.0,
                        "final_pnl": r.random(),
                    }
                )
    return rows


def load(url: str, rows: list[dict[str, Any]]) -> None:
    columns = list(rows[0])
    statement = f"COPY trajectories ({', '.join(columns)}) FROM STDIN"
    with psycopg.connect(url) as conn, conn.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row([row[c] for c in columns])
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("VACUUM ANALYZE trajectories")
