"""Our own tables, in schema `babylon_rl`."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("trainer", sa.Text(), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("judgment_keys", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("trained_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("lineage", "step"),
        sa.UniqueConstraint("lineage", "window_id", name="one_checkpoint_per_partition"),
        schema="babylon_rl",
    )
    op.create_table(
        "consumed_windows",
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("judgment_key", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("lineage", "window_id"),
        schema="babylon_rl",
    )
    op.create_table(
        "evaluations",
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("suite", sa.Text(), nullable=False),
        sa.Column("base_mean_pnl_usd", sa.Double(), nullable=False),
        sa.Column("mean_pnl_usd", sa.Double(), nullable=False),
        sa.Column("lift_usd", sa.Double(), nullable=False),
        sa.Column("lift_lo_usd", sa.Double(), nullable=False),
        sa.Column("lift_hi_usd", sa.Double(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("evaluated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("lineage", "step", "suite"),
        schema="babylon_rl",
    )
    op.create_table(
        "judgments",
        sa.Column("judgment_key", sa.Text(), nullable=False),
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("explanation", sa.Text(), nullable=False),
        sa.Column("judge_model", sa.Text(), nullable=False),
        sa.Column("judge_version", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("cost_usd", sa.Double(), nullable=False),
        sa.Column("judged_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("judgment_key", "trajectory_id"),
        schema="babylon_rl",
    )
    op.create_index(
        op.f("ix_babylon_rl_judgments_window_id"), "judgments", ["window_id"], unique=False, schema="babylon_rl"
    )
    op.create_table(
        "news_facts",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("headline", sa.Text(), nullable=False),
        sa.Column("ticker", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("at", "headline"),
        schema="babylon_rl",
    )
    op.create_table(
        "prediction_facts",
        sa.Column("market_id", sa.Text(), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("final_probability", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("market_id"),
        schema="babylon_rl",
    )
    op.create_index(
        op.f("ix_babylon_rl_prediction_facts_window_id"),
        "prediction_facts",
        ["window_id"],
        unique=False,
        schema="babylon_rl",
    )
    op.create_table(
        "price_facts",
        sa.Column("ticker", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("price", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("ticker", "at"),
        schema="babylon_rl",
    )
    op.create_table(
        "row_dispositions",
        sa.Column("source_id", sa.Text(), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("disposition", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("source_id"),
        schema="babylon_rl",
    )
    op.create_index(
        op.f("ix_babylon_rl_row_dispositions_window_id"),
        "row_dispositions",
        ["window_id"],
        unique=False,
        schema="babylon_rl",
    )
    op.create_table(
        "training_plans",
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("windows", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("judgment_keys", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("learning_rate", sa.Double(), nullable=True),
        sa.Column("planned_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("lineage", "step"),
        schema="babylon_rl",
    )
    op.create_table(
        "trajectory_groups",
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("data_version", sa.Text(), nullable=False),
        sa.Column("members", sa.Integer(), nullable=False),
        sa.Column("turns", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("hindsight", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("group_id"),
        sa.UniqueConstraint("window_id"),
        schema="babylon_rl",
    )
    op.create_table(
        "window_judgments",
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("judgment_key", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("window_id"),
        schema="babylon_rl",
    )
    op.create_table(
        "window_outcomes",
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("data_version", sa.Text(), nullable=False),
        sa.Column("stocks", sa.Integer(), nullable=False),
        sa.Column("predictions", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("window_id"),
        schema="babylon_rl",
    )
    op.create_table(
        "window_trajectories",
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("turns", sa.Integer(), nullable=False),
        sa.Column("pnl_usd", sa.Double(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("trajectory_id"),
        schema="babylon_rl",
    )
    op.create_index(
        op.f("ix_babylon_rl_window_trajectories_window_id"),
        "window_trajectories",
        ["window_id"],
        unique=False,
        schema="babylon_rl",
    )
    op.create_table(
        "window_verdicts",
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("check_name", sa.Text(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("window_id", "check_name"),
        schema="babylon_rl",
    )
    op.create_table(
        "windows",
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("data_version", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("agents", sa.Integer(), nullable=False),
        sa.Column("turns", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("window_id"),
        schema="babylon_rl",
    )


def downgrade() -> None:
    op.drop_table("windows", schema="babylon_rl")
    op.drop_table("window_verdicts", schema="babylon_rl")
    op.drop_table("window_trajectories", schema="babylon_rl")
    op.drop_table("window_outcomes", schema="babylon_rl")
    op.drop_table("window_judgments", schema="babylon_rl")
    op.drop_table("trajectory_groups", schema="babylon_rl")
    op.drop_table("training_plans", schema="babylon_rl")
    op.drop_table("row_dispositions", schema="babylon_rl")
    op.drop_table("price_facts", schema="babylon_rl")
    op.drop_table("prediction_facts", schema="babylon_rl")
    op.drop_table("news_facts", schema="babylon_rl")
    op.drop_table("judgments", schema="babylon_rl")
    op.drop_table("evaluations", schema="babylon_rl")
    op.drop_table("consumed_windows", schema="babylon_rl")
    op.drop_table("checkpoints", schema="babylon_rl")
