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

PUBLISHED = """
ALTER TABLE trajectories ADD "aiJudgeReward" double precision, ADD "aiJudgeReasoning" text, ADD "judgedAt" timestamp(3),
  ADD "usedInTraining" boolean NOT NULL DEFAULT false, ADD "trainedInBatch" text,
  ADD "updatedAt" timestamp(3) NOT NULL DEFAULT now();
CREATE TABLE training_batches (id text PRIMARY KEY, "batchId" text UNIQUE NOT NULL, "scenarioId" text,
  "baseModel" text NOT NULL, "modelVersion" text NOT NULL, "trajectoryIds" text NOT NULL, "rankingsJson" text,
  "rewardsJson" text NOT NULL, "trainingLoss" double precision, "policyImprovement" double precision,
  status text NOT NULL DEFAULT 'pending', error text, "createdAt" timestamp(3) NOT NULL DEFAULT now(),
  "startedAt" timestamp(3), "completedAt" timestamp(3));
CREATE TABLE trained_models (id text PRIMARY KEY, "modelId" text UNIQUE NOT NULL, version text NOT NULL,
  "baseModel" text NOT NULL, "trainingBatch" text, status text NOT NULL DEFAULT 'training', "deployedAt" timestamp(3),
  "archivedAt" timestamp(3), "storagePath" text NOT NULL, "benchmarkScore" double precision, accuracy double precision,
  "avgReward" double precision, "evalMetrics" jsonb, "wandbRunId" text, "wandbArtifactId" text,
  "agentsUsing" integer NOT NULL DEFAULT 0, "totalInferences" integer NOT NULL DEFAULT 0,
  "createdAt" timestamp(3) NOT NULL DEFAULT now(), "updatedAt" timestamp(3) NOT NULL);
CREATE TABLE reward_judgments (id text PRIMARY KEY,
  "trajectoryId" text UNIQUE NOT NULL REFERENCES trajectories ("trajectoryId") ON DELETE CASCADE, "judgeModel" text NOT NULL,
  "judgeVersion" text NOT NULL, "overallScore" double precision NOT NULL, "componentScoresJson" text, rank integer,
  "normalizedScore" double precision, "groupId" text, reasoning text NOT NULL, "strengthsJson" text,
  "weaknessesJson" text, "criteriaJson" text NOT NULL, "judgedAt" timestamp(3) NOT NULL DEFAULT now());
"""
"""What the game itself writes of trainings, and the columns for them in `trajectories`."""
