"""Our own tables, in schema `babylon_rl`. The game's are `game_tables.py`.

Alembic migrations create them; a test compares the two. Nothing here reads or writes. Those of a live game are defined in
`live_tables.py` and used from here.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Computed,
    Date,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from babylon_rl.database.live_tables import deployment_events as deployment_events
from babylon_rl.database.live_tables import deployment_looks as deployment_looks
from babylon_rl.database.live_tables import served_calls as served_calls
from babylon_rl.database.schema import OUR_SCHEMA as OUR_SCHEMA
from babylon_rl.database.schema import instant as _at
from babylon_rl.database.schema import platform as platform

CREATED_GAME_TABLES = "created_game_tables"  # which of the game's tables our migrations made: those are ours to write


def _hour_id() -> "Column[str]":
    """Of `2025-01-15T10:00~trust-attack-01` the hour."""
    return Column("hour_id", Text, Computed("left(window_id, 16)", persisted=True), nullable=False)


# The facts of the world that outcomes are computed from. The embedded game writes them as it plays;
# a real game keeps its own (`ingest/fact_tables.py`), and these stay empty.
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

computed_outcomes = Table(  # of closed windows, from the facts of a game whose tables are not ours to write
    "computed_outcomes",
    platform,
    Column("window_id", Text, primary_key=True),
    Column("stocks", Integer, nullable=False),
    Column("predictions", Integer, nullable=False),
    Column("body", Text, nullable=False),  # types.WindowOutcomes, canonical JSON
    Column("fingerprint", Text, nullable=False),  # of the body
    Column("computed_at", _at, nullable=False),
)

windows = Table(  # one row per window that was ingested: its data version and counts
    "windows",
    platform,
    Column("window_id", Text, primary_key=True),
    Column("data_version", Text, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("agents", Integer, nullable=False),
    Column("turns", Integer, nullable=False),
    Column("changes_seen", BigInteger),  # of window_summary.changes, before its rows were read
    Column("min_agents", Integer),  # distinct agents that grouping asked for; null: not grouped since it was read
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

row_outcomes = Table(
    "row_outcomes",
    platform,
    Column("source_id", Text, primary_key=True),
    Column("window_id", Text, nullable=False, index=True),
    Column("trajectory_id", Text, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("status", Text, nullable=False),  # types.RowStatus
    Column("reason", Text, nullable=False),  # types.RowReason
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
    Column("changes_seen", BigInteger),  # of window_summary.outcome_changes, before they were read
)

contextualized_groups = Table(
    "contextualized_groups",
    platform,
    Column("group_id", Text, primary_key=True),
    Column("window_id", Text, nullable=False, unique=True),  # the hour, and its scenario where the rows name one
    _hour_id(),
    Column("data_version", Text, nullable=False),
    Column("members", Integer, nullable=False),
    Column("turns", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),  # types.TrajectoryGroup: what agents were shown and answered
    Column("hindsight", LargeBinary, nullable=False),  # types.Hindsight: for judges only
    Column(
        "made_from", Text
    ),  # "<data version of windows>|<of window_outcomes>", which view stale_windows compares with today's
    Index("ix_contextualized_groups_hour", "hour_id"),
    Index("ix_contextualized_groups_scenarios", "hour_id", postgresql_where=text("window_id <> hour_id")),
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

judge_calls = Table(  # every request to a judge, written before it is sent; view judge_costs sums it up
    "judge_calls",
    platform,
    Column("call_id", Text, primary_key=True),
    Column("serial", BigInteger, Identity(), nullable=False),
    Column("judgment_key", Text, nullable=False, index=True),
    Column("slot", Text, nullable=False),  # which request of the judgment: a pass, or a sub-batch of a pass
    Column("window_id", Text, nullable=False, index=True),
    Column("group_id", Text, nullable=False),
    Column("judge_model", Text, nullable=False),
    Column("judge_version", Text, nullable=False),
    Column("day", Date, nullable=False, index=True),  # UTC
    # judging's CallStatus: asked, replied, refused (not owed), lost (may be owed), denied (never sent)
    Column("state", Text, nullable=False),
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

judge_audits = Table(  # the newest row of a judge version decides whether its scores may train
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

check_results = Table(  # results of asset checks: a window with a failed required check does not train
    "check_results",
    platform,
    Column("window_id", Text, primary_key=True),
    Column("check_name", Text, primary_key=True),
    Column("passed", Boolean, nullable=False),
    Column("facts", Text, nullable=False),
    Column("about", Text, nullable=False),  # version of the group, or key of the judgment; another one's result is none
    Index("ix_check_results_failed", "window_id", postgresql_where=text("NOT passed")),
)

required_checks = Table(  # the checks that a window must have passed to train, as `pipeline/checks.py` declares them
    "required_checks",
    platform,
    Column("check_name", Text, primary_key=True),
    Column("asset", Text, nullable=False),  # whose version its results are about
)

window_retries = Table(  # why a window could not be prepared, and when it is tried again; of another version: over
    "window_retries",
    platform,
    Column("window_id", Text, primary_key=True),
    Column("stage", Text, nullable=False),  # the asset or check that could not
    Column("kind", Text, nullable=False),  # types.RetryKind
    Column("reason", Text, nullable=False),  # a sentence
    Column("version", Text, nullable=False),  # of the group; of an error: of the window, as trainable_windows gives it
    Column("failures", Integer, nullable=False),
    Column("tried_at", _at, nullable=False),
    Column("not_before", _at, nullable=False),
)

planned_batches = Table(  # written before a training starts: a restart trains the same batch
    "planned_batches",
    platform,
    Column("lineage", Text, primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("window_id", Text, nullable=False),
    Column("windows", ARRAY(Text), nullable=False),
    Column("judgment_keys", ARRAY(Text), nullable=False),
    Column("learning_rate", Double),
    Column("planned_at", _at, nullable=False, server_default=func.now()),
    Column("group_versions", ARRAY(Text), nullable=False),  # of each window's group, as it was when planned
    Column("submitted_at", _at),  # written before a paid job is sent: from then on it may exist
    Column("job_id", Text),  # the remote job's, as soon as it is known
)

checkpoints = Table(
    "checkpoints",
    platform,
    Column("lineage", Text, primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("window_id", Text, nullable=False),  # the partition whose materialization trained it; it may train several
    Column("trainer", Text, nullable=False),
    Column("base_model", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("manifest", Text, nullable=False),  # sha256 of each file, canonical JSON
    Column("judgment_keys", ARRAY(Text), nullable=False),
    Column("metrics", Text, nullable=False),
    Column("trained_at", _at, nullable=False, server_default=func.now()),
)

consumed_windows = Table(  # the primary key is what makes "trained once per lineage" true
    "consumed_windows",
    platform,
    Column("lineage", Text, primary_key=True),
    Column("window_id", Text, primary_key=True),
    Column("step", Integer, nullable=False),
    Column("judgment_key", Text, nullable=False),
    Column("data_version", Text),  # of the group that trained; another one now: trained on older rows
    _hour_id(),
    # Trained before an hour was split into its scenarios: none of them trains again.
    Column("whole_hour", Boolean, nullable=False, server_default=text("false")),
    Index("ix_consumed_windows_hour", "lineage", "hour_id"),
)

ledger_identity = Table(  # one row: the id that this database's checkpoints carry, so that another's are told apart
    "ledger_identity",
    platform,
    Column("ledger_id", Text, primary_key=True),
)

dropped_windows = Table(  # left out of judging and training by dropout, for good in this lineage
    "dropped_windows",
    platform,
    Column("lineage", Text, primary_key=True),
    Column("window_id", Text, primary_key=True),
    _hour_id(),
    Index("ix_dropped_windows_hour", "lineage", "hour_id"),
)

# Kept up to date by ingest/window_summary.py, so that readiness costs the same with a million rows as with a thousand.
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
    Column("outcome_fingerprint", Text),  # of its market outcomes; null: counted before there was one
    Column("outcome_changes", BigInteger, nullable=False, server_default="0"),  # how often those were seen to change
    Index("ix_window_summary_blind", "window_id", postgresql_where=text("NOT outcomes")),
)

window_counts = Table(  # how many windows of window_summary have so many agents
    "window_counts",
    platform,
    Column("agents", Integer, primary_key=True, autoincrement=False),
    Column("outcomes", Boolean, primary_key=True),
    Column("windows", Integer, nullable=False),
)

row_changes = Table(  # windows whose rows a statement touched; counting one again deletes its entries
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

log_evaluations = Table(  # what held-out windows of the log say of a checkpoint, or why nothing was said
    "log_evaluations",
    platform,
    Column("lineage", Text, primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("suite", Text, primary_key=True),  # names the windows, their judgments, the base and the temperature
    Column("kind", Text, nullable=False),  # store.log_evaluations.LogKind
    Column("windows", Integer, nullable=False),  # held out
    Column("reason", Text),  # why nothing was said
    Column("try_again", Boolean, nullable=False),  # whether it may be said later without anybody's help
    Column("ranks_best_first", Double),
    Column("better_over_worse_nats", Double),
    Column("same_action_rate", Double),
    Column("invalid_rate", Double),
    Column("body", LargeBinary),  # LogEvaluation, canonical JSON, zstd
    Column("evaluated_at", _at, nullable=False, server_default=func.now()),
)
