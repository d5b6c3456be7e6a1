"""The game's tables, in the snake_case spelling: those that are missing, and only where no Prisma spelling stands.

`babylon_rl.created_game_tables` remembers what was created here; a downgrade drops nothing else.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

_PRISMA_COLUMNS = ("windowId", "agentId", "trajectoryId", "batchId", "modelId", "stepsJson")


def upgrade() -> None:
    op.create_table(
        "created_game_tables",
        sa.Column("schema_name", sa.Text(), primary_key=True),
        sa.Column("table_name", sa.Text(), primary_key=True),
        schema="babylon_rl",
    )
    if not context.config.attributes["game"]:
        return  # our schema lives in a database of its own
    conn = op.get_bind()
    schema = conn.scalar(sa.text("SELECT current_schema()"))
    found: dict[str, set[str]] = {}
    for table, column in conn.execute(
        sa.text("SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = :s"), {"s": schema}
    ):
        found.setdefault(table, set()).add(column)
    if any(found.get(name, set()) & set(_PRISMA_COLUMNS) for name in _CREATE):
        return
    for name, create in _CREATE.items():
        if name not in found:
            create()
            conn.execute(
                sa.text("INSERT INTO babylon_rl.created_game_tables VALUES (:s, :t)"), {"s": schema, "t": name}
            )


def downgrade() -> None:
    conn = op.get_bind()
    for schema, name in conn.execute(sa.text("SELECT * FROM babylon_rl.created_game_tables")).all():
        op.drop_table(name, schema=schema, if_exists=True)
    op.drop_table("created_game_tables", schema="babylon_rl")


def _llm_call_logs() -> None:
    op.create_table(
        "llm_call_logs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("timestamp", postgresql.TIMESTAMP(precision=3), nullable=False),
        sa.Column("latency_ms", sa.Integer(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("action_type", sa.Text(), nullable=True),
        sa.Column("system_prompt", sa.Text(), nullable=False),
        sa.Column("user_prompt", sa.Text(), nullable=False),
        sa.Column("messages_json", sa.Text(), nullable=True),
        sa.Column("response", sa.Text(), nullable=False),
        sa.Column("reasoning", sa.Text(), nullable=True),
        sa.Column("temperature", sa.Double(), nullable=True),
        sa.Column("max_tokens", sa.Integer(), nullable=True),
        sa.Column("top_p", sa.Double(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=True),
        sa.Column("completion_tokens", sa.Integer(), nullable=True),
        sa.Column("total_tokens", sa.Integer(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(precision=3),
            server_default=sa.text("(now() AT TIME ZONE 'UTC')"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("call_id"),
    )
    op.create_index(op.f("ix_llm_call_logs_trajectory_id"), "llm_call_logs", ["trajectory_id"], unique=False)


def _market_outcomes() -> None:
    op.create_table(
        "market_outcomes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("window_id", sa.String(length=50), nullable=False),
        sa.Column("stock_ticker", sa.String(length=20), nullable=True),
        sa.Column("start_price", sa.Numeric(precision=10, scale=2), nullable=True),
        sa.Column("end_price", sa.Numeric(precision=10, scale=2), nullable=True),
        sa.Column("change_percent", sa.Numeric(precision=5, scale=2), nullable=True),
        sa.Column("sentiment", sa.String(length=20), nullable=True),
        sa.Column("news_events", sa.JSON(), nullable=True),
        sa.Column("prediction_market_id", sa.Text(), nullable=True),
        sa.Column("question", sa.Text(), nullable=True),
        sa.Column("outcome", sa.String(length=20), nullable=True),
        sa.Column("final_probability", sa.Numeric(precision=5, scale=4), nullable=True),
        sa.Column("volume", sa.Numeric(precision=15, scale=2), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(precision=3),
            server_default=sa.text("(now() AT TIME ZONE 'UTC')"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_market_outcomes_window_id"), "market_outcomes", ["window_id"], unique=False)


def _reward_judgments() -> None:
    op.create_table(
        "reward_judgments",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("judge_model", sa.Text(), nullable=False),
        sa.Column("judge_version", sa.Text(), nullable=False),
        sa.Column("overall_score", sa.Double(), nullable=False),
        sa.Column("component_scores_json", sa.Text(), nullable=True),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("normalized_score", sa.Double(), nullable=True),
        sa.Column("group_id", sa.Text(), nullable=True),
        sa.Column("reasoning", sa.Text(), nullable=False),
        sa.Column("strengths_json", sa.Text(), nullable=True),
        sa.Column("weaknesses_json", sa.Text(), nullable=True),
        sa.Column("criteria_json", sa.Text(), nullable=False),
        sa.Column(
            "judged_at",
            postgresql.TIMESTAMP(precision=3),
            server_default=sa.text("(now() AT TIME ZONE 'UTC')"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("trajectory_id"),
    )


def _trained_models() -> None:
    op.create_table(
        "trained_models",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("training_batch", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), server_default="training", nullable=False),
        sa.Column("deployed_at", postgresql.TIMESTAMP(precision=3), nullable=True),
        sa.Column("archived_at", postgresql.TIMESTAMP(precision=3), nullable=True),
        sa.Column("storage_path", sa.Text(), nullable=False),
        sa.Column("benchmark_score", sa.Double(), nullable=True),
        sa.Column("accuracy", sa.Double(), nullable=True),
        sa.Column("avg_reward", sa.Double(), nullable=True),
        sa.Column("eval_metrics", sa.JSON(), nullable=True),
        sa.Column("wandb_run_id", sa.Text(), nullable=True),
        sa.Column("wandb_artifact_id", sa.Text(), nullable=True),
        sa.Column("agents_using", sa.Integer(), server_default="0", nullable=False),
        sa.Column("total_inferences", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(precision=3),
            server_default=sa.text("(now() AT TIME ZONE 'UTC')"),
            nullable=False,
        ),
        sa.Column("updated_at", postgresql.TIMESTAMP(precision=3), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("model_id"),
    )


def _training_batches() -> None:
    op.create_table(
        "training_batches",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("scenario_id", sa.String(length=100), nullable=True),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("trajectory_ids", sa.Text(), nullable=False),
        sa.Column("rankings_json", sa.Text(), nullable=True),
        sa.Column("rewards_json", sa.Text(), nullable=False),
        sa.Column("training_loss", sa.Double(), nullable=True),
        sa.Column("policy_improvement", sa.Double(), nullable=True),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(precision=3),
            server_default=sa.text("(now() AT TIME ZONE 'UTC')"),
            nullable=False,
        ),
        sa.Column("started_at", postgresql.TIMESTAMP(precision=3), nullable=True),
        sa.Column("completed_at", postgresql.TIMESTAMP(precision=3), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("batch_id"),
    )


def _trajectories() -> None:
    op.create_table(
        "trajectories",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("start_time", postgresql.TIMESTAMP(precision=3), nullable=False),
        sa.Column("end_time", postgresql.TIMESTAMP(precision=3), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=True),
        sa.Column("window_id", sa.String(length=50), nullable=True),
        sa.Column("window_hours", sa.Integer(), server_default="1", nullable=False),
        sa.Column("episode_id", sa.String(length=100), nullable=True),
        sa.Column("scenario_id", sa.String(length=100), nullable=True),
        sa.Column("batch_id", sa.String(length=100), nullable=True),
        sa.Column("steps_json", sa.Text(), nullable=False),
        sa.Column("reward_components_json", sa.Text(), nullable=False),
        sa.Column("metrics_json", sa.Text(), nullable=False),
        sa.Column("metadata_json", sa.Text(), nullable=False),
        sa.Column("total_reward", sa.Double(), nullable=False),
        sa.Column("episode_length", sa.Integer(), nullable=False),
        sa.Column("final_status", sa.Text(), nullable=False),
        sa.Column("final_balance", sa.Double(), nullable=True),
        sa.Column("final_pnl", sa.Double(), nullable=True),
        sa.Column("trades_executed", sa.Integer(), nullable=True),
        sa.Column("posts_created", sa.Integer(), nullable=True),
        sa.Column("ai_judge_reward", sa.Double(), nullable=True),
        sa.Column("ai_judge_reasoning", sa.Text(), nullable=True),
        sa.Column("judged_at", postgresql.TIMESTAMP(precision=3), nullable=True),
        sa.Column("is_training_data", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("is_evaluation", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("used_in_training", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("trained_in_batch", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(precision=3),
            server_default=sa.text("(now() AT TIME ZONE 'UTC')"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            postgresql.TIMESTAMP(precision=3),
            server_default=sa.text("(now() AT TIME ZONE 'UTC')"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("trajectory_id"),
    )
    op.create_index("ix_trajectories_start_time", "trajectories", ["start_time"], unique=False)
    op.create_index("ix_trajectories_window_agent", "trajectories", ["window_id", "agent_id"], unique=False)


_CREATE = {
    "llm_call_logs": _llm_call_logs,
    "market_outcomes": _market_outcomes,
    "reward_judgments": _reward_judgments,
    "trained_models": _trained_models,
    "training_batches": _training_batches,
    "trajectories": _trajectories,
}
