"""Outcomes computed from the facts that the game keeps, where the game's tables are not ours to write."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.create_table(
        "computed_outcomes",
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("stocks", sa.Integer(), nullable=False),
        sa.Column("predictions", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("computed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("window_id"),
        schema="babylon_rl",
    )


def downgrade() -> None:
    op.drop_table("computed_outcomes", schema="babylon_rl")
