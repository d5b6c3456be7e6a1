"""All tables, once: the game's in its snake_case spelling, and our own in schema `babylon_rl`.

Alembic migrations create what stands here; a test compares the two. Nothing here reads or writes.
Game timestamps are `timestamp(3)` without zone, in UTC; ids are snowflake strings, never numbers.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Computed,
    Date,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

OUR_SCHEMA = "babylon_rl"
CREATED_GAME_TABLES = "created_game_tables"  # which of the game's tables our migrations made: those are ours to write

game = MetaData()
platform = MetaData(schema=OUR_SCHEMA)

_ts3 = TIMESTAMP(precision=3)
_now = text("(now() AT TIME ZONE 'UTC')")

trajectories = Table(
    "trajectories",
    game,
    Column("id", Text, primary_key=True),
    Column("trajectory_id", Text, nullable=False, unique=True),
    Column("agent_id", Text, nullable=False),
    Column("start_time", _ts3, nullable=False),
    Column("end_time", _ts3),
    Column("duration_ms", Integer),
    Column("window_id", String(50)),
    Column("window_hours", Integer, nullable=False, server_default="1"),
    Column("episode_id", String(100)),
    Column("scenario_id", String(100)),
    Column("batch_id", String(100)),
    Column("steps_json", Text, nullable=False),
    Column("reward_components_json", Text, nullable=False),
    Column("metrics_json", Text, nullable=False),
    Column("metadata_json", Text, nullable=False),
    Column("total_reward", Double, nullable=False),
    Column("episode_length", Integer, nullable=False),
    Column("final_status", Text, nullable=False),
    Column("final_balance", Double),
    Column("final_pnl", Double),
    Column("trades_executed", Integer),
    Column("posts_created", Integer),
    Column("ai_judge_reward", Double),
    Column("ai_judge_reasoning", Text),
    Column("judged_at", _ts3),
    Column("is_training_data", Boolean, nullable=False, server_default=text("true")),
    Column("is_evaluation", Boolean, nullable=False, server_default=text("false")),
    Column("used_in_training", Boolean, nullable=False, server_default=text("false")),
    Column("trained_in_batch", Text),
    Column("created_at", _ts3, nullable=False, server_default=_now),
    Column("updated_at", _ts3, nullable=False, server_default=_now),
    Index("ix_trajectories_window_agent", "window_id", "agent_id"),
    Index("ix_trajectories_start_time", "start_time"),
)

llm_call_logs = Table(
    "llm_call_logs",
    game,
    Column("id", Text, primary_key=True),
    Column("trajectory_id", Text, nullable=False, index=True),
    Column("step_id", Text, nullable=False),
    Column("call_id", Text, nullable=False, unique=True),
    Column("timestamp", _ts3, nullable=False),
    Column("latency_ms", Integer),
    Column("model", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("action_type", Text),
    Column("system_prompt", Text, nullable=False),
    Column("user_prompt", Text, nullable=False),
    Column("messages_json", Text),
    Column("response", Text, nullable=False),
    Column("reasoning", Text),
    Column("temperature", Double),
    Column("max_tokens", Integer),
    Column("top_p", Double),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("total_tokens", Integer),
    Column("metadata", Text),
    Column("created_at", _ts3, nullable=False, server_default=_now),
)

market_outcomes = Table(
    "market_outcomes",
    game,
    Column("id", Text, primary_key=True),
    Column("window_id", String(50), nullable=False, index=True),
    Column("stock_ticker", String(20)),
    Column("start_price", Numeric(10, 2)),
    Column("end_price", Numeric(10, 2)),
    Column("change_percent", Numeric(5, 2)),
    Column("sentiment", String(20)),
    Column("news_events", JSON),
    Column("prediction_market_id", Text),
    Column("question", Text),
    Column("outcome", String(20)),
    Column("final_probability", Numeric(5, 4)),
    Column("volume", Numeric(15, 2)),
    Column("created_at", _ts3, nullable=False, server_default=_now),
)

training_batches = Table(
    "training_batches",
    game,
    Column("id", Text, primary_key=True),
    Column("batch_id", Text, nullable=False, unique=True),
    Column("scenario_id", String(100)),
    Column("base_model", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("trajectory_ids", Text, nullable=False),
    Column("rankings_json", Text),
    Column("rewards_json", Text, nullable=False),
    Column("training_loss", Double),
    Column("policy_improvement", Double),
    Column("status", Text, nullable=False, server_default="pending"),
    Column("error", Text),
    Column("created_at", _ts3, nullable=False, server_default=_now),
    Column("started_at", _ts3),
    Column("completed_at", _ts3),
)

trained_models = Table(
    "trained_models",
    game,
    Column("id", Text, primary_key=True),
    Column("model_id", Text, nullable=False, unique=True),
    Column("version", Text, nullable=False),
    Column("base_model", Text, nullable=False),
    Column("training_batch", Text),
    Column("status", Text, nullable=False, server_default="training"),
    Column("deployed_at", _ts3),
    Column("archived_at", _ts3),
    Column("storage_path", Text, nullable=False),
    Column("benchmark_score", Double),
    Column("accuracy", Double),
    Column("avg_reward", Double),
    Column("eval_metrics", JSON),
    Column("wandb_run_id", Text),
    Column("wandb_artifact_id", Text),
    Column("agents_using", Integer, nullable=False, server_default="0"),
    Column("total_inferences", Integer, nullable=False, server_default="0"),
    Column("created_at", _ts3, nullable=False, server_default=_now),
    Column("updated_at", _ts3, nullable=False),
)

reward_judgments = Table(
    "reward_judgments",
    game,
    Column("id", Text, primary_key=True),
    Column("trajectory_id", Text, nullable=False, unique=True),
    Column("judge_model", Text, nullable=False),
    Column("judge_version", Text, nullable=False),
    Column("overall_score", Double, nullable=False),
    Column("component_scores_json", Text),
    Column("rank", Integer),
    Column("normalized_score", Double),
    Column("group_id", Text),
    Column("reasoning", Text, nullable=False),
    Column("strengths_json", Text),
    Column("weaknesses_json", Text),
    Column("criteria_json", Text, nullable=False),
    Column("judged_at", _ts3, nullable=False, server_default=_now),
)

# ── our own ────────────────────────────────────────────────────────────────────────────────────────
# The facts of the world that outcomes are computed from. The embedded game writes them as it plays;
# over a real game they stay empty and `market_outcomes` is read as it stands.

_at = DateTime(timezone=True)

price_facts = Table(
    "price_facts",
    platform,
    Column("ticker", Text, primary_key=True),
    Column("at", _at, primary_key=True),
    Column("price", Double, nullable=False),
)

prediction_facts = Table(
    "prediction_facts",
    platform,
    Column("market_id", Text, primary_key=True),
    Column("window_id", Text, nullable=False, index=True),
    Column("question", Text, nullable=False),
    Column("outcome", Text),  # YES, NO, or null while unresolved
    Column("final_probability", Double),
)

news_facts = Table(
    "news_facts",
    platform,
    Column("at", _at, primary_key=True),
    Column("headline", Text, primary_key=True),
    Column("ticker", Text),
)

windows = Table(  # one row per window that was ingested: its data version and how it stands
    "windows",
    platform,
    Column("window_id", Text, primary_key=True),
    Column("data_version", Text, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("agents", Integer, nullable=False),
    Column("turns", Integer, nullable=False),
    Column("changes_seen", BigInteger),  # of window_summary.changes, before its rows were read
)

window_trajectories = Table(
    "window_trajectories",
    platform,
    Column("trajectory_id", Text, primary_key=True),
    Column("window_id", Text, nullable=False, index=True),
    Column("agent_id", Text, nullable=False),
    Column("turns", Integer, nullable=False),
    Column("pnl_usd", Double),
    Column("body", LargeBinary, nullable=False),  # canonical JSON of types.Trajectory, zstd
)

row_dispositions = Table(
    "row_dispositions",
    platform,
    Column("source_id", Text, primary_key=True),
    Column("window_id", Text, nullable=False, index=True),
    Column("trajectory_id", Text, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("disposition", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("group_id", Text),
)

window_outcomes = Table(
    "window_outcomes",
    platform,
    Column("window_id", Text, primary_key=True),
    Column("data_version", Text, nullable=False),
    Column("stocks", Integer, nullable=False),
    Column("predictions", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),  # types.WindowOutcomes
)

trajectory_groups = Table(
    "trajectory_groups",
    platform,
    Column("group_id", Text, primary_key=True),
    Column("window_id", Text, nullable=False, unique=True),
    Column("data_version", Text, nullable=False),
    Column("members", Integer, nullable=False),
    Column("turns", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),  # types.TrajectoryGroup: what agents saw and said
    Column("hindsight", LargeBinary, nullable=False),  # types.Hindsight: the judge's eyes only
    Column("made_from", Text),  # "<data version of windows>|<of window_outcomes>"; differs now: view stale_windows
)

judgments = Table(
    "judgments",
    platform,
    Column("judgment_key", Text, primary_key=True),
    Column("trajectory_id", Text, primary_key=True),
    Column("group_id", Text, nullable=False),
    Column("window_id", Text, nullable=False, index=True),
    Column("score", Double, nullable=False),
    Column("explanation", Text, nullable=False),
    Column("judge_model", Text, nullable=False),
    Column("judge_version", Text, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("cost_usd", Double, nullable=False),
    Column("judged_at", _at, nullable=False, server_default=func.now()),
    Column("details", Text),  # of the whole judgment, in the first row like its price: canonical JSON
    Column("tokens", Integer, Computed("prompt_tokens + completion_tokens", persisted=True)),
)

judge_calls = Table(  # every request to a judge, written down before it is sent; view judge_costs sums it up
    "judge_calls",
    platform,
    Column("call_id", Text, primary_key=True),
    Column("serial", BigInteger, Identity(), nullable=False),
    Column("judgment_key", Text, nullable=False, index=True),
    Column("slot", Text, nullable=False),  # which question of the judgment: a pass, or a heat of a pass
    Column("window_id", Text, nullable=False, index=True),
    Column("group_id", Text, nullable=False),
    Column("judge_model", Text, nullable=False),
    Column("judge_version", Text, nullable=False),
    Column("day", Date, nullable=False, index=True),  # UTC
    Column(
        "state", Text, nullable=False
    ),  # asked, replied, refused (not owed), lost (may be owed), denied (never sent)
    Column("expected_tokens", Integer, nullable=False),
    Column("reserved_usd", Double, nullable=False),  # the most it can cost
    Column("reply", Text),
    Column("finish_reason", Text),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("cost_usd", Double),
    Column("asked_at", _at, nullable=False, server_default=func.now()),
    Column("ended_at", _at),
)

judge_audits = Table(  # the newest row of a judge version says whether its scores may train
    "judge_audits",
    platform,
    Column("judge_model", Text, primary_key=True),
    Column("judge_version", Text, primary_key=True),
    Column("audited_at", _at, primary_key=True, server_default=func.now()),
    Column("groups", Integer, nullable=False),
    Column("fit", Boolean, nullable=False),
    Column("false_positive_rate", Double, nullable=False),
    Column("length_bias", Double, nullable=False),
    Column("position_bias", Double, nullable=False),
    Column("retest_noise", Double, nullable=False),
    Column("truth_agreement", Double, nullable=False),
    Column("figures", Text, nullable=False),
)

window_judgments = Table(  # which judgment is the current one of a window
    "window_judgments",
    platform,
    Column("window_id", Text, primary_key=True),
    Column("group_id", Text, nullable=False),
    Column("judgment_key", Text, nullable=False),
)

window_verdicts = Table(  # asset checks as data: training leaves out a window with a failed verdict
    "window_verdicts",
    platform,
    Column("window_id", Text, primary_key=True),
    Column("check_name", Text, primary_key=True),
    Column("passed", Boolean, nullable=False),
    Column("facts", Text, nullable=False),
    Index("ix_window_verdicts_failed", "window_id", postgresql_where=text("NOT passed")),
)

training_plans = Table(  # written before a training starts: a restart trains the same batch
    "training_plans",
    platform,
    Column("lineage", Text, primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("window_id", Text, nullable=False),
    Column("windows", ARRAY(Text), nullable=False),
    Column("judgment_keys", ARRAY(Text), nullable=False),
    Column("learning_rate", Double),
    Column("planned_at", _at, nullable=False, server_default=func.now()),
)

checkpoints = Table(
    "checkpoints",
    platform,
    Column("lineage", Text, primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("window_id", Text, nullable=False),  # the partition whose materialization trained it
    Column("trainer", Text, nullable=False),
    Column("base_model", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("manifest", Text, nullable=False),  # sha256 of each file, canonical JSON
    Column("judgment_keys", ARRAY(Text), nullable=False),
    Column("metrics", Text, nullable=False),
    Column("trained_at", _at, nullable=False, server_default=func.now()),
    UniqueConstraint("lineage", "window_id", name="one_checkpoint_per_partition"),
)

consumed_windows = Table(  # the primary key is what makes "trained once per lineage" true
    "consumed_windows",
    platform,
    Column("lineage", Text, primary_key=True),
    Column("window_id", Text, primary_key=True),
    Column("step", Integer, nullable=False),
    Column("judgment_key", Text, nullable=False),
    Column("data_version", Text),  # of the group that trained; another one now: trained on older rows
)

dropped_windows = Table(  # left out of judging and training by dropout, for good in this lineage
    "dropped_windows",
    platform,
    Column("lineage", Text, primary_key=True),
    Column("window_id", Text, primary_key=True),
)

# Kept up to date by source/summary.py, so that readiness costs the same at a million rows as at a thousand.
window_summary = Table(
    "window_summary",
    platform,
    Column("window_id", Text, primary_key=True),
    Column("rows", Integer, nullable=False),  # that may train
    Column("agents", Integer, nullable=False),  # distinct, of those rows
    Column("avg_pnl_usd", Double),
    Column("outcomes", Boolean, nullable=False),
    Column("fingerprint", Text, nullable=False),  # of all its rows, without reading their steps
    Column("changes", BigInteger, nullable=False),  # how often its rows were seen to change
    Index("ix_window_summary_blind", "window_id", postgresql_where=text("NOT outcomes")),
)

window_counts = Table(  # how many windows of window_summary have so many agents
    "window_counts",
    platform,
    Column("agents", Integer, primary_key=True, autoincrement=False),
    Column("outcomes", Boolean, primary_key=True),
    Column("windows", Integer, nullable=False),
)

row_changes = Table(  # windows whose rows a statement touched; whoever counts them takes them out
    "row_changes",
    platform,
    Column("seq", BigInteger, Identity(always=True), primary_key=True),
    Column("window_id", Text, nullable=False),
)

outcome_changes = Table(  # the same for market_outcomes
    "outcome_changes",
    platform,
    Column("seq", BigInteger, Identity(always=True), primary_key=True),
    Column("window_id", Text, nullable=False),
)

evaluations = Table(
    "evaluations",
    platform,
    Column("lineage", Text, primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("suite", Text, primary_key=True),  # names the held-out windows, agents and temperature
    Column("base_mean_pnl_usd", Double, nullable=False),
    Column("mean_pnl_usd", Double, nullable=False),
    Column("lift_usd", Double, nullable=False),
    Column("lift_lo_usd", Double, nullable=False),
    Column("lift_hi_usd", Double, nullable=False),
    Column("body", LargeBinary, nullable=False),  # per-window P&L and rates, canonical JSON, zstd
    Column("evaluated_at", _at, nullable=False, server_default=func.now()),
)
