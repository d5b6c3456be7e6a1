"""Served calls by agent: who answers each agent now is one look per agent, however many calls there are."""

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.create_index("ix_served_calls_agent", "served_calls", ["lineage", "agent_id", "asked_at"], schema="babylon_rl")


def downgrade() -> None:
    op.drop_index("ix_served_calls_agent", "served_calls", schema="babylon_rl")
