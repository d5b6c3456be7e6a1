"""What is deployed, why, and who answered each call; moves are append-only and tell whoever listens."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0015"
down_revision = "0014"

_S = "babylon_rl"
_NOW = sa.text("now()")
_DEPLOYED = """
CREATE VIEW babylon_rl.deployed AS
SELECT DISTINCT ON (lineage) lineage, number, stage, incumbent, candidate, rollout, threshold, test_threshold, paused, at
FROM babylon_rl.deployment_events ORDER BY lineage, number DESC"""
_KEEP = """
CREATE FUNCTION babylon_rl.refuse_rewritten_moves() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'deployment_events is append-only: a move is taken back by another move';
END $$"""
_KEEP_TRIGGER = """
CREATE TRIGGER refuse_rewritten_moves BEFORE UPDATE OR DELETE OR TRUNCATE ON babylon_rl.deployment_events
FOR EACH STATEMENT EXECUTE FUNCTION babylon_rl.refuse_rewritten_moves()"""
_TELL = """
CREATE FUNCTION babylon_rl.tell_of_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('babylon_rl_deployment', NEW.lineage || ' ' || NEW.number);
    RETURN NULL;
END $$"""
_TELL_TRIGGER = """
CREATE TRIGGER tell_of_move AFTER INSERT ON babylon_rl.deployment_events
FOR EACH ROW EXECUTE FUNCTION babylon_rl.tell_of_move()"""


def upgrade() -> None:
    op.create_table(
        "deployment_events",
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("move", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("incumbent", sa.Integer(), nullable=False),
        sa.Column("candidate", sa.Integer()),
        sa.Column("rollout", sa.Text()),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("test_threshold", sa.Double(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("subject", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("made_by", sa.Text(), nullable=False),
        sa.Column("window_id", sa.Text()),
        sa.Column("facts", sa.Text(), nullable=False, server_default="{}"),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
        sa.PrimaryKeyConstraint("lineage", "number"),
        schema=_S,
    )
    op.create_index(
        "uq_deployment_events_hour",
        "deployment_events",
        ["lineage", "window_id"],
        unique=True,
        postgresql_where=sa.text("window_id IS NOT NULL"),
        schema=_S,
    )
    op.create_table(
        "deployment_looks",
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.Column("rollout", sa.Text(), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("windows", sa.Integer(), nullable=False),
        sa.Column("mean_usd", sa.Double()),
        sa.Column("lo_usd", sa.Double()),
        sa.Column("hi_usd", sa.Double()),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("looked_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
        sa.PrimaryKeyConstraint("lineage", "rollout", "window_id"),
        schema=_S,
    )
    op.create_table(
        "served_calls",
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text()),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Integer(), nullable=False),
        sa.Column("rollout", sa.Text()),
        sa.Column("fell_back_from", sa.Integer()),
        sa.Column("upstream", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("first_token_ms", sa.Double()),
        sa.Column("latency_ms", sa.Double(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer()),
        sa.Column("completion_tokens", sa.Integer()),
        sa.Column("temperature", sa.Double()),
        sa.Column("finish_reason", sa.Text()),
        sa.Column("streamed", sa.Boolean(), nullable=False),
        sa.Column("logprobs", ARRAY(sa.REAL())),
        sa.Column("trajectory_id", sa.Text()),
        sa.Column("step_number", sa.Integer()),
        sa.Column("messages", sa.Text()),
        sa.Column("response", sa.Text()),
        sa.PrimaryKeyConstraint("call_id"),
        schema=_S,
    )
    op.create_index("ix_served_calls_window_agent", "served_calls", ["window_id", "agent_id"], schema=_S)
    op.create_index(
        "ix_served_calls_trajectory",
        "served_calls",
        ["trajectory_id"],
        postgresql_where=sa.text("trajectory_id IS NOT NULL"),
        schema=_S,
    )
    op.create_index(
        "ix_served_calls_rollout",
        "served_calls",
        ["rollout", "window_id"],
        postgresql_where=sa.text("rollout IS NOT NULL"),
        schema=_S,
    )
    for statement in (_DEPLOYED, _KEEP, _KEEP_TRIGGER, _TELL, _TELL_TRIGGER):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP VIEW babylon_rl.deployed")
    for name in ("served_calls", "deployment_looks", "deployment_events"):
        op.drop_table(name, schema=_S)
    op.execute("DROP FUNCTION babylon_rl.tell_of_move()")
    op.execute("DROP FUNCTION babylon_rl.refuse_rewritten_moves()")
