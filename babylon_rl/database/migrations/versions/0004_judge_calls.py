"""Requests to judges, what they cost, and how judges did in their audits."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

# What judging cost, by window and UTC day. A request without an answer counts with what was reserved for it.
JUDGE_COSTS = """
CREATE VIEW babylon_rl.judge_costs AS
SELECT c.day, c.window_id, c.judge_model, c.judge_version,
       count(*) FILTER (WHERE c.state NOT IN ('refused', 'denied'))::integer AS calls,
       count(*) FILTER (WHERE c.state IN ('asked', 'lost'))::integer AS unanswered,
       coalesce(sum(c.prompt_tokens) FILTER (WHERE c.state = 'replied'), 0)::bigint AS prompt_tokens,
       coalesce(sum(c.completion_tokens) FILTER (WHERE c.state = 'replied'), 0)::bigint AS completion_tokens,
       coalesce(sum(coalesce(c.cost_usd, c.reserved_usd)) FILTER (WHERE c.state NOT IN ('refused', 'denied')), 0) AS cost_usd,
       count(DISTINCT w.judgment_key)::integer AS kept_groups,
       coalesce(sum(coalesce(c.cost_usd, c.reserved_usd)) FILTER (WHERE c.state NOT IN ('refused', 'denied')), 0)
         / nullif(count(DISTINCT w.judgment_key), 0) AS cost_usd_per_kept_group
FROM babylon_rl.judge_calls c
LEFT JOIN babylon_rl.window_judgments w ON w.window_id = c.window_id AND w.judgment_key = c.judgment_key
GROUP BY c.day, c.window_id, c.judge_model, c.judge_version
"""


def upgrade() -> None:
    op.create_table(
        "judge_calls",
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("serial", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("judgment_key", sa.Text(), nullable=False),
        sa.Column("slot", sa.Text(), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("judge_model", sa.Text(), nullable=False),
        sa.Column("judge_version", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("expected_tokens", sa.Integer(), nullable=False),
        sa.Column("reserved_usd", sa.Double(), nullable=False),
        sa.Column("reply", sa.Text(), nullable=True),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=True),
        sa.Column("completion_tokens", sa.Integer(), nullable=True),
        sa.Column("cost_usd", sa.Double(), nullable=True),
        sa.Column("asked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("call_id"),
        schema="babylon_rl",
    )
    for column in ("judgment_key", "window_id", "day"):
        op.create_index(
            op.f(f"ix_babylon_rl_judge_calls_{column}"), "judge_calls", [column], unique=False, schema="babylon_rl"
        )
    op.create_table(
        "judge_audits",
        sa.Column("judge_model", sa.Text(), nullable=False),
        sa.Column("judge_version", sa.Text(), nullable=False),
        sa.Column("audited_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("groups", sa.Integer(), nullable=False),
        sa.Column("fit", sa.Boolean(), nullable=False),
        sa.Column("false_positive_rate", sa.Double(), nullable=False),
        sa.Column("length_bias", sa.Double(), nullable=False),
        sa.Column("position_bias", sa.Double(), nullable=False),
        sa.Column("retest_noise", sa.Double(), nullable=False),
        sa.Column("truth_agreement", sa.Double(), nullable=False),
        sa.Column("figures", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("judge_model", "judge_version", "audited_at"),
        schema="babylon_rl",
    )
    op.add_column("judgments", sa.Column("details", sa.Text(), nullable=True), schema="babylon_rl")
    op.add_column(
        "judgments",
        sa.Column(
            "tokens", sa.Integer(), sa.Computed("prompt_tokens + completion_tokens", persisted=True), nullable=True
        ),
        schema="babylon_rl",
    )
    op.execute(JUDGE_COSTS)


def downgrade() -> None:
    op.execute("DROP VIEW babylon_rl.judge_costs")
    op.drop_column("judgments", "tokens", schema="babylon_rl")
    op.drop_column("judgments", "details", schema="babylon_rl")
    op.drop_table("judge_audits", schema="babylon_rl")
    op.drop_table("judge_calls", schema="babylon_rl")
