"""Databases of the real game, of both generations: tables, three hours of play, prices and questions.

G1 is Prisma's (`timestamp(3)` in UTC, no tickers); G2 is Drizzle's (more columns, tickers, NaN in doubles, `createdAt` in
the server's zone). Nobody here wrote a row of `market_outcomes`. What is expected of them is computed by the tests.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import psycopg
import sqlalchemy as sa

from babylon_rl.database.embedded import ensure_database
from babylon_rl.windows import HourWindow
from babylon_rl_tests.conftest import drop_database
from babylon_rl_tests.factories import a_json_step, a_row

Generation = Literal["G1", "G2"]
HOURS = 3
AGENTS = 6
TABLES = (
    "trajectories",
    "llm_call_logs",
    "market_outcomes",
    "Organization",
    "StockPrice",
    "PredictionPriceHistory",
    "Market",
    "Question",
)

_COMMON = """
CREATE TABLE trajectories (id text PRIMARY KEY, "trajectoryId" text UNIQUE NOT NULL, "agentId" text NOT NULL,
  "startTime" {ts} NOT NULL, "endTime" {ts}, "durationMs" int, "windowId" varchar(50), "windowHours" int DEFAULT 1,
  "episodeId" varchar(100), "scenarioId" varchar(100), "batchId" varchar(100), "stepsJson" text NOT NULL,
  "rewardComponentsJson" text NOT NULL DEFAULT '{{}}', "metricsJson" text NOT NULL DEFAULT '{{}}',
  "metadataJson" text NOT NULL, "totalReward" float8 NOT NULL DEFAULT 0, "episodeLength" int NOT NULL DEFAULT 1,
  "finalStatus" text NOT NULL DEFAULT 'completed', "finalBalance" float8, "finalPnL" float8, "tradesExecuted" int,
  "postsCreated" int, "aiJudgeReward" float8, "aiJudgeReasoning" text, "judgedAt" {ts},
  "isTrainingData" boolean NOT NULL DEFAULT true, "isEvaluation" boolean NOT NULL DEFAULT false,
  "usedInTraining" boolean NOT NULL DEFAULT false, "trainedInBatch" text,
  "createdAt" {ts} NOT NULL DEFAULT now(), "updatedAt" {ts} NOT NULL DEFAULT now() {more});
CREATE INDEX ON trajectories ("windowId", "agentId");
CREATE TABLE llm_call_logs (id text PRIMARY KEY, "trajectoryId" text NOT NULL, "stepId" text NOT NULL,
  "callId" text UNIQUE NOT NULL, timestamp {ts} NOT NULL, "latencyMs" int, model text NOT NULL, purpose text NOT NULL,
  "actionType" text, "systemPrompt" text NOT NULL, "userPrompt" text NOT NULL, "messagesJson" text,
  response text NOT NULL, reasoning text, temperature float8, "maxTokens" int, "topP" float8, "promptTokens" int,
  "completionTokens" int, "totalTokens" int, metadata text, "createdAt" {ts} NOT NULL DEFAULT now());
CREATE TABLE market_outcomes (id text PRIMARY KEY, "windowId" varchar(50) NOT NULL, "stockTicker" varchar(20),
  "startPrice" numeric(10,2), "endPrice" numeric(10,2), "changePercent" numeric(5,2), sentiment varchar(20),
  "newsEvents" {json}, "predictionMarketId" text, question text, outcome varchar(20),
  "finalProbability" numeric(5,4), volume numeric(15,2), "createdAt" {ts} NOT NULL DEFAULT now());
CREATE TABLE "Organization" (id text PRIMARY KEY, name text NOT NULL, {ticker} type text, "initialPrice" float8,
  "currentPrice" float8);
CREATE TABLE "StockPrice" (id text PRIMARY KEY, "organizationId" text NOT NULL, price float8 NOT NULL,
  change float8 NOT NULL DEFAULT 0, "changePercent" float8 NOT NULL DEFAULT 0, timestamp {ts} NOT NULL DEFAULT now(),
  "isSnapshot" boolean NOT NULL DEFAULT false, "openPrice" float8, "highPrice" float8, "lowPrice" float8, volume float8);
CREATE INDEX ON "StockPrice" ("organizationId", timestamp);
CREATE INDEX ON "StockPrice" (timestamp);
CREATE TABLE "PredictionPriceHistory" (id text PRIMARY KEY, "marketId" text NOT NULL, "yesPrice" float8 NOT NULL,
  "noPrice" float8 NOT NULL, "eventType" text NOT NULL, source text NOT NULL DEFAULT 'npc_trade',
  "createdAt" {ts} NOT NULL DEFAULT now());
CREATE INDEX ON "PredictionPriceHistory" ("marketId", "createdAt");
CREATE TABLE "Market" (id text PRIMARY KEY, question text NOT NULL, resolved boolean NOT NULL DEFAULT false,
  resolution boolean, "endDate" {ts} NOT NULL, "createdAt" {ts} NOT NULL DEFAULT now(), "updatedAt" {ts} NOT NULL);
CREATE TABLE "Question" (id text PRIMARY KEY, "questionNumber" int UNIQUE NOT NULL, text text NOT NULL,
  outcome boolean NOT NULL, "resolutionDate" {ts} NOT NULL, "resolvedOutcome" boolean, status text NOT NULL);
"""
_G2_ONLY = """
CREATE TABLE "PerpMarketSnapshot" (ticker text PRIMARY KEY, "organizationId" text NOT NULL, name text,
  "currentPrice" float8 NOT NULL, "markPrice" float8);
"""
_G2_COLUMNS = """, archetype varchar(50), "worldStateSnapshotId" text, "packId" text, "npcRole" text, "questionIds" json,
  "eventIds" json, "arcPhase" text, "memorySnapshotJson" text, "relationshipSnapshotJson" text"""

# (organisation, minutes after the first hour's start, price)
PRICES: tuple[tuple[str, float, float], ...] = (
    ("btc-corp", -300, 5.0),
    ("btc-corp", -30, 100.0),
    ("btc-corp", 5, 104.0),
    ("btc-corp", 10, math.nan),
    ("btc-corp", 25, 96.0),
    ("btc-corp", 59.9, 110.0),
    ("btc-corp", 60, 111.0),
    ("btc-corp", 100, 99.9),
    ("btc-corp", 130, 102.0),
    ("btc-corp", 170, 90.0),
    ("btc-corp", 200, 1000.0),
    ("open-agi", 20, 40.0),
    ("open-agi", 40, 50.0),
    ("open-agi", 90, 25.0),
    ("open-agi", 175, 25.0),
    ("quiet", -500, 7.0),
)
NAMES = {"btc-corp": ("Bit Corp", "BTC"), "open-agi": ("OpenAGI", "OAGI"), "quiet": ("Quiet Inc", "QUIET")}
# (market, minutes, price of YES, kind)
ODDS: tuple[tuple[str, float, float, str], ...] = (
    ("7001", -20, 0.5, "trade"),
    ("7001", 15, 0.6, "trade"),
    ("7001", 50, 0.7, "trade"),
    ("7001", 80, 0.65, "trade"),
    ("7001", 150, 1.0, "resolution"),
    ("7002", 30, 0.5, "trade"),
)
QUESTIONS = {"7001": "Will the bit moon?", "7002": "Will it rain on Mars?"}
RESOLVED_AFTER_MIN = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignGame:
    """One such database.

    Attributes:
        url: Its owner's.
        reader_url: Of a role that may only read.
        first: The first of its hours.
    """

    generation: Generation
    url: str
    reader_url: str
    role: str
    first: HourWindow

    @property
    def hours(self) -> list[HourWindow]:
        return list(self.first.until(self.first.next(HOURS - 1)))

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """One statement as the owner."""
        with psycopg.connect(self.url, autocommit=True) as conn:
            cursor = conn.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def digests(self) -> dict[str, str]:
        """A hash over every row of every table, and over the list of tables, schemas and functions."""
        found: dict[str, str] = {}
        tables = self.run("""SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
                             WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1""")
        for (table,) in tables:
            rows = self.run(f"SELECT t::text FROM {table} t ORDER BY 1")
            found[table] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        found["schemas"] = json.dumps(self.run("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' ORDER BY 1"))
        return found

    def insert_prices(self, prices: Sequence[tuple[str, float, float]] = PRICES) -> None:
        for organization, minutes, price in prices:
            self.run(
                """INSERT INTO "StockPrice" (id, "organizationId", price, timestamp)
                   VALUES ((SELECT (count(*) + 1)::text FROM "StockPrice"), %s, %s, %s)""",
                organization,
                price,
                self.at(minutes),
            )

    def insert_odds(self, *, offset: timedelta = timedelta(0)) -> None:
        """Price histories whose `createdAt` is `offset` later than it was."""
        for i, (market, minutes, yes, kind) in enumerate(ODDS):
            self.run(
                """INSERT INTO "PredictionPriceHistory" (id, "marketId", "yesPrice", "noPrice", "eventType", "createdAt")
                   VALUES (%s, %s, %s, %s, %s, %s)""",
                str(i),
                market,
                yes,
                1 - yes,
                kind,
                self.at(minutes) + offset,
            )

    def at(self, minutes: float) -> datetime:
        """An instant as these tables hold it: in UTC, without a zone."""
        return self.first.start_at.replace(tzinfo=None) + timedelta(minutes=minutes)


@contextmanager
def foreign_game(
    server_url: str, generation: Generation, first: HourWindow, *, with_facts: bool = True
) -> Iterator[ForeignGame]:
    """A database of the game with three hours of six agents, deleted afterwards."""
    name = f"babylon_{generation.lower()}_{os.getpid()}"
    role = f"reader_{generation.lower()}_{os.getpid()}"
    drop_database(server_url, name)
    url = ensure_database(server_url, name)
    reader = sa.make_url(url).update_query_dict({"options": f"-crole={role}"}).render_as_string(hide_password=False)
    game = ForeignGame(generation=generation, url=url, reader_url=reader, role=role, first=first)
    g2 = generation == "G2"
    game.run(
        _COMMON.format(
            ts="timestamp" if g2 else "timestamp(3)",
            json="json" if g2 else "jsonb",
            ticker="ticker text," if g2 else "",
            more=_G2_COLUMNS if g2 else "",
        )
        + (_G2_ONLY if g2 else "")
    )
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"DROP ROLE IF EXISTS {role}".encode())
        conn.execute(f"CREATE ROLE {role} LOGIN".encode())
        conn.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}".encode())
        conn.execute(f"GRANT {role} TO CURRENT_USER".encode())
    for hour in game.hours:
        for agent in range(AGENTS):
            _insert_play(game, hour, agent)
    if with_facts:
        _insert_catalog(game)
        game.insert_prices()
        game.insert_odds()
    try:
        yield game
    finally:
        drop_database(server_url, name)
        with psycopg.connect(server_url, autocommit=True) as conn:
            conn.execute(f"DROP ROLE {role}".encode())


def _insert_play(game: ForeignGame, hour: HourWindow, agent: int) -> None:
    """One tick of an agent: it enters the hour at P&L 0 and leaves it with 10 dollars for each of its number."""
    row = a_row(
        f"player-{agent}",
        tick=1,
        window=hour,
        final_pnl=10.0 * agent - 20,
        steps_json=[a_json_step(1, at=hour.start_at + timedelta(minutes=20 + i)) for i in range(2)],
    )
    kept = {
        k: row[k] for k in ("id", "trajectory_id", "agent_id", "start_time", "end_time", "window_id", "scenario_id")
    }
    kept |= {k: row[k] for k in ("steps_json", "metadata_json", "final_balance", "final_pnl")}
    columns = ", ".join(f'"{_camel(c)}"' for c in kept)
    places = ", ".join(["%s"] * len(kept))
    game.run(f"INSERT INTO trajectories ({columns}) VALUES ({places})", *kept.values())


def _insert_catalog(game: ForeignGame) -> None:
    for id_, (name, ticker) in NAMES.items():
        game.run("""INSERT INTO "Organization" (id, name, "initialPrice") VALUES (%s, %s, 100)""", id_, name)
        if game.generation == "G2" and id_ != "open-agi":  # its ticker stands in the other table
            game.run("""UPDATE "Organization" SET ticker = %s WHERE id = %s""", f"${ticker}", id_)
    if game.generation == "G2":
        game.run("""INSERT INTO "PerpMarketSnapshot" VALUES ('OAGI', 'open-agi', 'OpenAGI', 25, 25)""")
    for market, question in QUESTIONS.items():
        game.run(
            """INSERT INTO "Market" (id, question, "endDate", "createdAt", "updatedAt") VALUES (%s, %s, %s, %s, %s)""",
            market,
            question,
            game.at(10_000),
            game.at(-600),
            game.at(-600),
        )
    game.run(
        """UPDATE "Market" SET resolved = true, resolution = true, "updatedAt" = %s WHERE id = '7001'""",
        game.at(RESOLVED_AFTER_MIN),
    )
    game.run(
        """INSERT INTO "Question" (id, "questionNumber", text, outcome, "resolutionDate", "resolvedOutcome", status)
           VALUES ('q1', 1, 'Will the bit moon?', true, %s, true, 'resolved')""",
        game.at(RESOLVED_AFTER_MIN),
    )


def _camel(column: str) -> str:
    if column == "final_pnl":
        return "finalPnL"
    first, *rest = column.split("_")
    return first + "".join(w.capitalize() for w in rest)
