"""One state per window and lineage, with the time before which nothing is tried again.

Check results say what they are about, so that a new group or judgment does not inherit them. A planned batch keeps the
versions of the groups that it was planned from, and the remote job that may have been paid for it. A partition may
train several checkpoints. Outcomes have a count of changes of their own, as rows have. A database has an id, which its
checkpoints carry.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

_GROUP_CHECKS = (
    "groups_have_enough_agents",
    "groups_hold_only_what_was_logged",
    "groups_have_trainable_tokens",
    "every_row_is_accounted_for",
)

# The same for every lineage. Known are the windows that were read and those that rows were recorded in. Of several
# reasons the first counts. `version` rises with every change of rows or outcomes.
_TRAINABLE_WINDOWS = """
CREATE VIEW babylon_rl.trainable_windows AS
SELECT k.window_id, coalesce(w.agents, s.agents) AS agents, g.group_id, g.data_version AS group_version, j.judgment_key,
       c.failed AS failed_checks, c.missing AS missing_checks, r.reason, r.reason IS NULL AS trainable, n.version,
       CASE WHEN r.reason = y.kind THEN y.stage END AS stage,
       CASE WHEN r.reason = y.kind THEN y.reason END AS explanation,
       CASE WHEN r.reason = y.kind THEN y.failures ELSE 0 END AS failures,
       CASE WHEN r.reason = y.kind THEN y.not_before END AS not_before
FROM (SELECT x.window_id FROM babylon_rl.windows x
      UNION SELECT y.window_id FROM babylon_rl.window_summary y) k
LEFT JOIN babylon_rl.windows w ON w.window_id = k.window_id
LEFT JOIN babylon_rl.window_outcomes o ON o.window_id = k.window_id
LEFT JOIN babylon_rl.window_summary s ON s.window_id = k.window_id
LEFT JOIN babylon_rl.contextualized_groups g ON g.window_id = k.window_id
LEFT JOIN babylon_rl.window_judgments j ON j.window_id = k.window_id AND j.group_id = g.group_id
CROSS JOIN LATERAL (SELECT coalesce(s.changes, 0) || '.' || coalesce(s.outcome_changes, 0) AS version) n
LEFT JOIN babylon_rl.window_retries y ON y.window_id = k.window_id
      AND y.version = CASE WHEN y.kind = 'error' THEN n.version ELSE g.data_version END
CROSS JOIN LATERAL (
    SELECT ARRAY(SELECT v.check_name FROM babylon_rl.check_results v
                 JOIN babylon_rl.required_checks q ON q.check_name = v.check_name
                 WHERE v.window_id = k.window_id AND NOT v.passed AND v.about = CASE
                     WHEN q.asset = 'ruler_scores' THEN j.judgment_key ELSE coalesce(g.data_version, w.data_version) END
                 ORDER BY v.check_name) AS failed,
           ARRAY(SELECT q.check_name FROM babylon_rl.required_checks q
                 WHERE NOT EXISTS (SELECT FROM babylon_rl.check_results v
                                   WHERE v.window_id = k.window_id AND v.check_name = q.check_name AND v.about = CASE
                     WHEN q.asset = 'ruler_scores' THEN j.judgment_key ELSE coalesce(g.data_version, w.data_version) END)
                 ORDER BY q.check_name) AS missing
) c
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN y.kind = 'error' THEN 'error'
        WHEN w.window_id IS NULL THEN 'not_read'
        WHEN s.changes > w.changes_seen THEN 'changed'
        WHEN s.outcome_changes > coalesce(o.changes_seen, CASE WHEN o.window_id IS NULL THEN 0 ELSE s.outcome_changes END)
            THEN 'changed'
        WHEN EXISTS (SELECT FROM babylon_rl.stale_windows x WHERE x.window_id = k.window_id) THEN 'stale'
        WHEN cardinality(c.failed) > 0 THEN 'check_failed'
        WHEN g.group_id IS NULL AND w.agents < w.min_agents THEN 'too_few_agents'
        WHEN g.group_id IS NULL THEN 'not_grouped'
        WHEN j.judgment_key IS NULL THEN coalesce(y.kind, 'not_judged')
        WHEN cardinality(c.missing) > 0 THEN 'checks_missing'
    END AS reason
) r"""

# A checkpoint learned from rows or outcomes that are no longer what is stored, or is recorded.
_STALE_TRAININGS = """
CREATE VIEW babylon_rl.stale_trainings AS
SELECT c.lineage, c.window_id, c.step
FROM babylon_rl.consumed_windows c
LEFT JOIN LATERAL (SELECT data_version FROM babylon_rl.contextualized_groups
                   WHERE window_id = c.window_id OFFSET 0) g ON true
LEFT JOIN LATERAL (SELECT changes_seen FROM babylon_rl.windows WHERE window_id = c.window_id OFFSET 0) w ON true
LEFT JOIN LATERAL (SELECT changes_seen FROM babylon_rl.window_outcomes WHERE window_id = c.window_id OFFSET 0) o ON true
LEFT JOIN LATERAL (SELECT changes, outcome_changes FROM babylon_rl.window_summary
                   WHERE window_id = c.window_id OFFSET 0) s ON true
WHERE c.data_version <> coalesce(g.data_version, '') OR s.changes > w.changes_seen OR s.outcome_changes > o.changes_seen
   OR EXISTS (SELECT 1 FROM babylon_rl.stale_windows x WHERE x.window_id = c.window_id)"""

# One state per window of a lineage. A plain SQL function, so that the planner sees through it.
_WINDOW_STATES = """
CREATE FUNCTION babylon_rl.window_states(of_lineage text) RETURNS TABLE (
    window_id text, state text, reason text, stage text, explanation text, version text, failures integer, not_before timestamptz,
    agents integer, group_id text, judgment_key text, failed_checks text[], missing_checks text[],
    consumed_step integer, planned_step integer, dropped boolean
) LANGUAGE sql STABLE AS $$
SELECT x.window_id,
       CASE WHEN c.step IS NOT NULL AND EXISTS (SELECT FROM babylon_rl.stale_trainings t
                                               WHERE t.lineage = of_lineage AND t.window_id = x.window_id) THEN 'stale'
            WHEN c.step IS NOT NULL THEN 'trained'
            WHEN d.window_id IS NOT NULL THEN 'dropped_out'
            WHEN p.step IS NOT NULL THEN 'planned'
            WHEN x.reason IN ('error', 'check_failed') THEN 'kept_out'
            WHEN x.reason IN ('not_read', 'changed', 'stale', 'not_grouped') THEN 'recorded'
            WHEN x.reason = 'not_judged' THEN 'grouped'
            WHEN x.reason = 'judge_down' THEN 'judge_failed'
            WHEN x.reason IN ('too_few_agents', 'waiting_for_outcomes', 'judge_failed', 'over_budget') THEN x.reason
            ELSE 'judged' END,
       x.reason, x.stage, x.explanation, x.version, x.failures, x.not_before, x.agents, x.group_id, x.judgment_key,
       x.failed_checks, x.missing_checks, c.step, p.step, d.window_id IS NOT NULL
FROM babylon_rl.trainable_windows x
LEFT JOIN babylon_rl.consumed_windows c ON c.lineage = of_lineage AND c.window_id = x.window_id
LEFT JOIN babylon_rl.dropped_windows d ON d.lineage = of_lineage AND d.window_id = x.window_id
LEFT JOIN (SELECT b.step, unnest(b.windows) AS window_id FROM babylon_rl.planned_batches b
           WHERE b.lineage = of_lineage
             AND NOT EXISTS (SELECT FROM babylon_rl.checkpoints m WHERE m.lineage = b.lineage AND m.step = b.step)
          ) p ON p.window_id = x.window_id
$$"""

_TRAINABLE_WINDOWS_0009 = """
CREATE VIEW babylon_rl.trainable_windows AS
SELECT k.window_id, coalesce(w.agents, s.agents) AS agents, g.group_id, j.judgment_key,
       c.failed AS failed_checks, c.missing AS missing_checks, r.reason, r.reason IS NULL AS trainable
FROM (SELECT x.window_id FROM babylon_rl.windows x
      UNION SELECT y.window_id FROM babylon_rl.window_summary y) k
LEFT JOIN babylon_rl.windows w ON w.window_id = k.window_id
LEFT JOIN babylon_rl.window_summary s ON s.window_id = k.window_id
LEFT JOIN babylon_rl.contextualized_groups g ON g.window_id = k.window_id
LEFT JOIN babylon_rl.window_judgments j ON j.window_id = k.window_id AND j.group_id = g.group_id
CROSS JOIN LATERAL (
    SELECT ARRAY(SELECT v.check_name FROM babylon_rl.check_results v
                 WHERE v.window_id = k.window_id AND NOT v.passed
                   AND v.check_name IN (SELECT n.check_name FROM babylon_rl.required_checks n)
                 ORDER BY v.check_name) AS failed,
           ARRAY(SELECT n.check_name FROM babylon_rl.required_checks n
                 WHERE NOT EXISTS (SELECT FROM babylon_rl.check_results v
                                   WHERE v.window_id = k.window_id AND v.check_name = n.check_name)
                 ORDER BY n.check_name) AS missing
) c
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN w.window_id IS NULL THEN 'not_read'
        WHEN s.changes > w.changes_seen THEN 'changed'
        WHEN EXISTS (SELECT FROM babylon_rl.stale_windows x WHERE x.window_id = k.window_id) THEN 'stale'
        WHEN cardinality(c.failed) > 0 THEN 'check_failed'
        WHEN g.group_id IS NULL AND w.agents < w.min_agents THEN 'too_few_agents'
        WHEN g.group_id IS NULL THEN 'not_grouped'
        WHEN j.judgment_key IS NULL THEN 'not_judged'
        WHEN cardinality(c.missing) > 0 THEN 'checks_missing'
    END AS reason
) r"""


def upgrade() -> None:
    _add("window_summary", sa.Column("outcome_fingerprint", sa.Text()))
    _add("window_summary", sa.Column("outcome_changes", sa.BigInteger(), nullable=False, server_default="0"))
    _add("window_outcomes", sa.Column("changes_seen", sa.BigInteger()))
    _add("required_checks", sa.Column("asset", sa.Text(), nullable=False, server_default="ruler_scores"))
    op.get_bind().execute(
        sa.text("UPDATE babylon_rl.required_checks SET asset = 'contextualized_groups' WHERE check_name = ANY(:names)"),
        {"names": list(_GROUP_CHECKS)},
    )
    _add("check_results", sa.Column("about", sa.Text(), nullable=False, server_default=""))
    op.execute("""
        UPDATE babylon_rl.check_results v SET about = coalesce(CASE
            WHEN (SELECT asset FROM babylon_rl.required_checks q WHERE q.check_name = v.check_name)
                 = 'contextualized_groups'
            THEN coalesce((SELECT data_version FROM babylon_rl.contextualized_groups g WHERE g.window_id = v.window_id),
                          (SELECT data_version FROM babylon_rl.windows w WHERE w.window_id = v.window_id))
            ELSE (SELECT judgment_key FROM babylon_rl.window_judgments j WHERE j.window_id = v.window_id) END, '')""")
    _add("planned_batches", sa.Column("group_versions", sa.ARRAY(sa.Text()), nullable=False, server_default="{}"))
    op.execute("""
        UPDATE babylon_rl.planned_batches p SET group_versions = ARRAY(
            SELECT coalesce(g.data_version, '') FROM unnest(p.windows) WITH ORDINALITY AS u(window_id, n)
            LEFT JOIN babylon_rl.contextualized_groups g ON g.window_id = u.window_id ORDER BY u.n)""")
    _add("planned_batches", sa.Column("submitted_at", sa.DateTime(timezone=True)))
    _add("planned_batches", sa.Column("job_id", sa.Text()))
    for table, column in (
        ("required_checks", "asset"),
        ("check_results", "about"),
        ("planned_batches", "group_versions"),
    ):
        op.alter_column(table, column, server_default=None, schema="babylon_rl")
    op.drop_constraint("one_checkpoint_per_partition", "checkpoints", schema="babylon_rl")
    op.create_table(
        "window_retries",
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("tried_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("window_id"),
        schema="babylon_rl",
    )
    op.create_table(
        "ledger_identity",
        sa.Column("ledger_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("ledger_id"),
        schema="babylon_rl",
    )
    op.execute("INSERT INTO babylon_rl.ledger_identity VALUES (gen_random_uuid()::text)")
    op.execute("DROP VIEW babylon_rl.trainable_windows")
    for statement in (_TRAINABLE_WINDOWS, _STALE_TRAININGS, _WINDOW_STATES):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP FUNCTION babylon_rl.window_states(text)")
    op.execute("DROP VIEW babylon_rl.stale_trainings")
    op.execute("DROP VIEW babylon_rl.trainable_windows")
    for table in ("ledger_identity", "window_retries"):
        op.drop_table(table, schema="babylon_rl")
    # Fails, and changes nothing, where a partition has trained several checkpoints: 0009 cannot hold them.
    op.create_unique_constraint(
        "one_checkpoint_per_partition", "checkpoints", ["lineage", "window_id"], schema="babylon_rl"
    )
    for table, column in (
        ("planned_batches", "job_id"),
        ("planned_batches", "submitted_at"),
        ("planned_batches", "group_versions"),
        ("check_results", "about"),
        ("required_checks", "asset"),
        ("window_outcomes", "changes_seen"),
        ("window_summary", "outcome_changes"),
        ("window_summary", "outcome_fingerprint"),
    ):
        op.drop_column(table, column, schema="babylon_rl")
    op.execute(_TRAINABLE_WINDOWS_0009)


def _add(table: str, column: "sa.Column[Any]") -> None:
    op.add_column(table, column, schema="babylon_rl")
