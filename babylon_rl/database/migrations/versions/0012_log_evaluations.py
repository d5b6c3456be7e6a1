"""What can be said of a checkpoint whose game is not the simulator: figures of held-out windows of the log, never money.

A table of its own, so that `evaluations`, whose columns are dollars of the simulator, says nothing about any other game.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "log_evaluations",
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("suite", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("windows", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("try_again", sa.Boolean(), nullable=False),
        sa.Column("ranks_best_first", sa.Double(), nullable=True),
        sa.Column("better_over_worse_nats", sa.Double(), nullable=True),
        sa.Column("same_action_rate", sa.Double(), nullable=True),
        sa.Column("invalid_rate", sa.Double(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("evaluated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("lineage", "step", "suite"),
        schema="babylon_rl",
    )


def downgrade() -> None:
    op.drop_table("log_evaluations", schema="babylon_rl")
