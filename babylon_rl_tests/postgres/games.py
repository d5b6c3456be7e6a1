"""The databases of both generations of the game: their tables, rows as their writers leave them, a role that may only read.

Written from what their writers leave behind. G1 is Prisma's: `timestamp(3)`, `windowId` the hour of the end, 0 stored as null. G2 is
Drizzle's: `timestamp`, `createdAt` by `now()` of the session's zone, `windowId` the hour of the start, more columns and keys.
"""

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import sqlalchemy as sa
from psycopg import sql

from babylon_rl.database.embedded import ensure_database
from babylon_rl.database.migrate import upgrade
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl.types import Json
from babylon_rl.windows import HourWindow
from babylon_rl_tests.conftest import drop_database

_serial = itertools.count(2_011_000_000_000_000_000)

_TRAJECTORIES = """
CREATE TABLE trajectories (id text PRIMARY KEY, "trajectoryId" text UNIQUE NOT NULL, "agentId" text NOT NULL,
  "startTime" {ts} NOT NULL, "endTime" {ts} NOT NULL, "durationMs" int NOT NULL, "windowId" varchar(50),
  "windowHours" int NOT NULL DEFAULT 1, "episodeId" varchar(100), "scenarioId" varchar(100), "batchId" varchar(100),
  "stepsJson" text NOT NULL, "rewardComponentsJson" text NOT NULL, "metricsJson" text NOT NULL,
  "metadataJson" text NOT NULL, "totalReward" double precision NOT NULL, "episodeLength" int NOT NULL,
  "finalStatus" text NOT NULL, "finalBalance" double precision, "finalPnL" double precision, "tradesExecuted" int,
  "postsCreated" int, "aiJudgeReward" double precision, "aiJudgeReasoning" text, "judgedAt" {ts},
  "isTrainingData" boolean NOT NULL DEFAULT true, "isEvaluation" boolean NOT NULL DEFAULT false,
  "usedInTraining" boolean NOT NULL DEFAULT false, "trainedInBatch" text, "createdAt" {ts} NOT NULL DEFAULT {now},
  "updatedAt" {ts} NOT NULL{more});
CREATE TABLE llm_call_logs (id text PRIMARY KEY, "trajectoryId" text NOT NULL, "stepId" text NOT NULL,
  "callId" text UNIQUE NOT NULL, timestamp {ts} NOT NULL, "latencyMs" int, model text NOT NULL, purpose text NOT NULL,
  "actionType" text, "systemPrompt" text NOT NULL, "userPrompt" text NOT NULL, "messagesJson" text,
  response text NOT NULL, reasoning text, temperature double precision NOT NULL, "maxTokens" int NOT NULL,
  "topP" double precision, "promptTokens" int, "completionTokens" int, "totalTokens" int, metadata text,
  "createdAt" {ts} NOT NULL DEFAULT {now});
CREATE TABLE market_outcomes (id text PRIMARY KEY, "windowId" varchar(50) NOT NULL, "stockTicker" varchar(20),
  "startPrice" numeric(10,2), "endPrice" numeric(10,2), "changePercent" numeric(5,2), sentiment varchar(20),
  "newsEvents" {json}, "predictionMarketId" text, question text, outcome varchar(20), "finalProbability" numeric(5,4),
  volume numeric(15,2), "createdAt" {ts} NOT NULL DEFAULT {now});
CREATE TABLE reward_judgments (id text PRIMARY KEY, "trajectoryId" text UNIQUE NOT NULL, "judgeModel" text NOT NULL,
  "judgeVersion" text NOT NULL, "overallScore" double precision NOT NULL, reasoning text NOT NULL,
  "criteriaJson" text NOT NULL, "judgedAt" {ts} NOT NULL DEFAULT {now});
"""
_MORE_OF_G2 = """, archetype varchar(50), "worldStateSnapshotId" text, "packId" text, "npcRole" varchar(20),
  "questionIds" text, "eventIds" text, "arcPhase" varchar(20), "memorySnapshotJson" text, "relationshipSnapshotJson" text"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    name: str
    ddl: str
    is_second: bool


G1 = Generation(
    name="g1",
    ddl=_TRAJECTORIES.format(ts="timestamp(3)", now="CURRENT_TIMESTAMP", json="jsonb", more=""),
    is_second=False,
)
G2 = Generation(
    name="g2", ddl=_TRAJECTORIES.format(ts="timestamp", now="now()", json="json", more=_MORE_OF_G2), is_second=True
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """A game's database.

    Attributes:
        owner_url: As the game connects: may write, in the database's own time zone.
        reader_url: As we connect: a role that may only read.
        zone: The server's time zone, in which `now()` fills `createdAt`.
    """

    generation: Generation
    owner_url: str
    reader_url: str
    role: str
    zone: str

    def insert(self, table: str, *rows: Json) -> None:
        with psycopg.connect(self.owner_url) as conn:
            for row in rows:
                statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                    sql.Identifier(table),
                    sql.SQL(", ").join(map(sql.Identifier, row)),
                    sql.SQL(", ").join([sql.Placeholder()] * len(row)),
                )
                conn.execute(statement, list(row.values()))

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.owner_url, autocommit=True) as conn:
            cursor = conn.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def now_at(self, at: datetime) -> datetime:
        """What `now()` would have written at an instant: the zone's own time, without the zone."""
        return at.astimezone(ZoneInfo(self.zone)).replace(tzinfo=None)

    def fingerprint(self) -> list[tuple[Any, ...]]:
        """Every value of the game's tables."""
        tables = ("trajectories", "llm_call_logs", "market_outcomes", "reward_judgments")
        return [self.run(f"SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {t} t")[0] for t in tables]


@contextmanager
def a_game(server_url: str, generation: Generation, *, zone: str = "UTC") -> Iterator[Game]:
    """A fresh database of one generation, with a reader of its own."""
    number = next(_serial)
    name, role = f"babylon_{generation.name}_{os.getpid()}_{number}", f"reader_{os.getpid()}_{number}"
    url = ensure_database(server_url, name)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {name} SET timezone TO '{zone}'".encode())
        conn.execute(generation.ddl.encode())
        conn.execute(f"CREATE ROLE {role} LOGIN".encode())
        conn.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}".encode())
        conn.execute(f"GRANT {role} TO CURRENT_USER".encode())
    reader = sa.make_url(url).update_query_dict({"options": f"-crole={role}"})
    try:
        yield Game(
            generation=generation,
            owner_url=url,
            reader_url=reader.render_as_string(hide_password=False),
            role=role,
            zone=zone,
        )
    finally:
        drop_database(server_url, name)
        with psycopg.connect(server_url, autocommit=True) as conn:
            conn.execute(f"DROP ROLE {role}".encode())


@contextmanager
def open_read_only(game: Game, platform_url: str, home: Path) -> Iterator[Workspace]:
    """A workspace over a game's database that may only read it; our schema lives in `platform_url`."""
    settings = Settings.load(BABYLON_HOME=str(home), DATABASE_URL=game.reader_url, BABYLON_PLATFORM_URL=platform_url)
    upgrade(settings.database)
    with open_workspace(settings) as workspace:
        yield workspace


def a_game_call(response: str, *, purpose: str = "action", user: str = "Markets: …", **keys: Any) -> Json:
    return {
        "model": "gpt-4o",
        "systemPrompt": "You trade.",
        "userPrompt": user,
        "response": response,
        "temperature": 0.7,
        "maxTokens": 1000,
        "latencyMs": 812,
        "purpose": purpose,
        **keys,
    }


def a_game_step(
    at: datetime, *calls: Json, balance: float | None = 1000.0, pnl: float | None = 0.0, **keys: Any
) -> Json:
    return {
        "stepNumber": 0,
        "timestamp": int(at.timestamp() * 1000),
        "environmentState": {"agentBalance": balance, "agentPnL": pnl, "openPositions": 0, "activeMarkets": 3},
        "providerAccesses": [{"providerName": "MARKETS", "data": {"n": 3}, "purpose": "context"}],
        "llmCalls": list(calls),
        "action": {"actionType": "HOLD", "parameters": {}, "success": True},
        "reward": 0,
        **keys,
    }


def a_game_row(
    game: Game,
    agent: str,
    start: datetime,
    steps: Sequence[Json] | str,
    *,
    end: datetime | None = None,
    pnl: float | None = 0.0,
    metadata: Json | None = None,
    **columns: Any,
) -> Json:
    """A row of `trajectories` as the generation's own recorder writes it; `columns` replaces or adds."""
    end = end or start + timedelta(seconds=40)
    second = game.generation.is_second
    own_id = str(next(_serial))
    hour_of = start if second else end
    row: Json = {
        "id": own_id,
        "trajectoryId": f"t-{own_id}",
        "agentId": agent,
        "startTime": _naive(start),
        "endTime": _naive(end),
        "durationMs": round((end - start).total_seconds() * 1000),
        "windowId": str(HourWindow.containing(hour_of)),
        "scenarioId": str(HourWindow.containing(start)),
        "stepsJson": steps if isinstance(steps, str) else json.dumps(steps),
        "rewardComponentsJson": '{"environmentReward": 0}',
        "metricsJson": "{}",
        "metadataJson": json.dumps({"isTrainingData": True, **(metadata or {})} if second else metadata or {}),
        "totalReward": 0.0,
        "episodeLength": 1,
        "finalStatus": "completed",
        "finalBalance": 1000.0,
        "finalPnL": pnl,
        "createdAt": game.now_at(end + timedelta(seconds=1)),
        "updatedAt": _naive(end),
    }
    if second:
        row |= {"archetype": "trader", "packId": "simulation", "aiJudgeReward": 0.61, "aiJudgeReasoning": "steady"}
    return row | columns


def a_reward_judgment(row: Json) -> Json:
    """What G2 writes beside each row."""
    return {
        "id": str(next(_serial)),
        "trajectoryId": row["trajectoryId"],
        "judgeModel": "feed-deterministic",
        "judgeVersion": "trust-v1",
        "overallScore": 0.61,
        "reasoning": "steady",
        "criteriaJson": "{}",
    }


def _naive(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(tzinfo=None)
