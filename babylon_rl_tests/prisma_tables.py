"""The game's tables as Prisma creates them, with the columns that every writer fills: quoted names, no column of ours."""

PRISMA = """
CREATE TABLE trajectories (id text PRIMARY KEY, "trajectoryId" text UNIQUE NOT NULL, "agentId" text NOT NULL,
  "startTime" timestamp(3) NOT NULL, "endTime" timestamp(3), "windowId" varchar(50), "scenarioId" varchar(100),
  "stepsJson" text NOT NULL, "metadataJson" text NOT NULL, "finalBalance" double precision,
  "finalPnL" double precision, "isTrainingData" boolean NOT NULL DEFAULT true,
  "isEvaluation" boolean NOT NULL DEFAULT false);
CREATE TABLE llm_call_logs (id text PRIMARY KEY, "trajectoryId" text NOT NULL, "stepId" text NOT NULL,
  "callId" text UNIQUE NOT NULL, timestamp timestamp(3) NOT NULL, model text, purpose text, "actionType" text,
  "systemPrompt" text NOT NULL, "userPrompt" text NOT NULL, response text NOT NULL, reasoning text,
  temperature double precision, "maxTokens" int, metadata text);
CREATE TABLE market_outcomes (id text PRIMARY KEY, "windowId" varchar(50) NOT NULL, "stockTicker" varchar(20),
  "startPrice" numeric(10,2), "endPrice" numeric(10,2), "changePercent" numeric(5,2), sentiment varchar(20),
  "newsEvents" json, "predictionMarketId" text, question text, outcome varchar(20),
  "finalProbability" numeric(5,4), "createdAt" timestamp(3) NOT NULL DEFAULT now());
"""
