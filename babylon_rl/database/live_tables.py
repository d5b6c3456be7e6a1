"""Our tables of a live game: what is deployed, why, and who answered each call. Used through `tables.py`, like all of ours."""

from sqlalchemy import REAL, Boolean, Column, Double, Index, Integer, Table, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY

from babylon_rl.database.schema import instant as _at
from babylon_rl.database.schema import platform

# Append-only: each row is a move and what is deployed after it; view deployed has the newest.
deployment_events = Table(
    "deployment_events",
    platform,
    Column("lineage", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),  # from 1: two moves from one state collide
    Column("move", Text, nullable=False),  # deployment.stages.MoveKind
    Column("stage", Text, nullable=False),  # deployment.stages.Stage, after the move
    Column("incumbent", Integer, nullable=False),  # step; 0: the base
    Column("candidate", Integer),
    Column("rollout", Text),
    Column("threshold", Double, nullable=False),
    Column("test_threshold", Double, nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("subject", Integer, nullable=False),  # the step that the move is about
    Column("reason", Text, nullable=False),  # a sentence
    Column("made_by", Text, nullable=False),  # platform, or operator
    Column("window_id", Text),  # the hour whose look decided it; an operator's move has none
    Column("facts", Text, nullable=False, server_default="{}"),  # canonical JSON
    Column("at", _at, nullable=False, server_default=func.now()),
    Index(
        "uq_deployment_events_hour",
        "lineage",
        "window_id",
        unique=True,
        postgresql_where=text("window_id IS NOT NULL"),
    ),
)

deployment_looks = Table(  # what each closed hour of a rollout said: the interval over time
    "deployment_looks",
    platform,
    Column("lineage", Text, primary_key=True),
    Column("rollout", Text, primary_key=True),
    Column("window_id", Text, primary_key=True),
    Column("number", Integer, nullable=False),  # of the deployment that was looked at
    Column("stage", Text, nullable=False),
    Column("decision", Text, nullable=False),  # deployment.rules.Decision
    Column("reason", Text, nullable=False),
    Column("windows", Integer, nullable=False),  # that the interval rests on
    Column("mean_usd", Double),  # candidate less incumbent, an agent and window
    Column("lo_usd", Double),
    Column("hi_usd", Double),
    Column("facts", Text, nullable=False),  # canonical JSON: arms, guard rails
    Column("looked_at", _at, nullable=False, server_default=func.now()),
)

served_calls = Table(  # every call that the gateway answered, or could not
    "served_calls",
    platform,
    Column("call_id", Text, primary_key=True),  # the answer's id
    Column("agent_id", Text),  # null: the caller named none
    Column("window_id", Text, nullable=False),  # the hour it was asked in, or that the caller named
    Column("lineage", Text, nullable=False),
    Column("step", Integer, nullable=False),  # that answered
    Column("digest", Text, nullable=False),  # of its recorded manifest; empty for the base and for remote weights
    Column("arm", Text, nullable=False),  # deployment.stages.Arm
    Column("deployment", Integer, nullable=False),  # number of the deployment_events row it was answered under
    Column("rollout", Text),
    Column("fell_back_from", Integer),  # step that should have answered and could not
    Column("upstream", Text, nullable=False),  # gateway's kind of upstream: engine, or openai
    Column("status", Integer, nullable=False),  # HTTP; 499: the caller left
    Column("error", Text),  # OpenAI's error code, never a message
    Column("asked_at", _at, nullable=False),
    Column("first_token_ms", Double),
    Column("latency_ms", Double, nullable=False),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("temperature", Double),
    Column("finish_reason", Text),
    Column("streamed", Boolean, nullable=False),
    Column("logprobs", ARRAY(REAL)),  # of each drawn token, where our engine answered
    Column("trajectory_id", Text),  # as the caller named it
    Column("step_number", Integer),
    Column("messages", Text),  # JSON, only if asked for
    Column("response", Text),
    Index("ix_served_calls_window_agent", "window_id", "agent_id"),
    Index("ix_served_calls_agent", "lineage", "agent_id", "asked_at"),
    Index("ix_served_calls_trajectory", "trajectory_id", postgresql_where=text("trajectory_id IS NOT NULL")),
    Index("ix_served_calls_rollout", "rollout", "window_id", postgresql_where=text("rollout IS NOT NULL")),
)
