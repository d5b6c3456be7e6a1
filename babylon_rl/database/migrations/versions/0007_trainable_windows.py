"""One answer to "may this window train?", and a planned batch by its name: `planned_batches`. No row changes."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

# A view with parameters: which checks are required is the code's to say. It is inlined as a view is.
# Known are the windows that were read and those that rows were recorded in.
_TRAINABLE_WINDOWS = """
CREATE FUNCTION babylon_rl.trainable_windows(required_checks text[], min_agents integer DEFAULT 0)
RETURNS TABLE (
    window_id text, agents integer, group_id text, judgment_key text,
    failed_checks text[], missing_checks text[], reason text, trainable boolean
) LANGUAGE sql STABLE AS $$
SELECT k.window_id, coalesce(w.agents, s.agents), g.group_id, j.judgment_key,
       c.failed, c.missing, r.reason, r.reason IS NULL
FROM (SELECT x.window_id FROM babylon_rl.windows x
      UNION SELECT y.window_id FROM babylon_rl.window_summary y) k
LEFT JOIN babylon_rl.windows w ON w.window_id = k.window_id
LEFT JOIN babylon_rl.window_summary s ON s.window_id = k.window_id
LEFT JOIN babylon_rl.contextualized_groups g ON g.window_id = k.window_id
LEFT JOIN babylon_rl.window_judgments j ON j.window_id = k.window_id AND j.group_id = g.group_id
CROSS JOIN LATERAL (
    SELECT ARRAY(SELECT v.check_name FROM babylon_rl.check_results v
                 WHERE v.window_id = k.window_id AND v.check_name = ANY(required_checks) AND NOT v.passed
                 ORDER BY v.check_name) AS failed,
           ARRAY(SELECT n.name FROM unnest(required_checks) AS n(name)
                 WHERE NOT EXISTS (SELECT FROM babylon_rl.check_results v
                                   WHERE v.window_id = k.window_id AND v.check_name = n.name)
                 ORDER BY n.name) AS missing
) c
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN w.window_id IS NULL THEN 'not_read'
        WHEN s.changes > w.changes_seen THEN 'changed'
        WHEN EXISTS (SELECT FROM babylon_rl.stale_windows x WHERE x.window_id = k.window_id) THEN 'stale'
        WHEN cardinality(c.failed) > 0 THEN 'check_failed'
        WHEN g.group_id IS NULL AND w.agents < min_agents THEN 'too_few_agents'
        WHEN g.group_id IS NULL THEN 'not_grouped'
        WHEN j.judgment_key IS NULL THEN 'not_judged'
        WHEN cardinality(c.missing) > 0 THEN 'checks_missing'
    END AS reason
) r
$$"""


def upgrade() -> None:
    _rename_table("training_plans", "planned_batches")
    op.get_bind().exec_driver_sql(_TRAINABLE_WINDOWS)


def downgrade() -> None:
    op.execute("DROP FUNCTION babylon_rl.trainable_windows(text[], integer)")
    _rename_table("planned_batches", "training_plans")


def _rename_table(old: str, new: str) -> None:
    """A table, and its primary key with it."""
    op.rename_table(old, new, schema="babylon_rl")
    named = sa.text("SELECT conname FROM pg_constraint WHERE conrelid = to_regclass(:t) AND contype = 'p'")
    name = op.get_bind().scalar(named, {"t": f"babylon_rl.{new}"})
    op.execute(f'ALTER TABLE babylon_rl.{new} RENAME CONSTRAINT "{name}" TO {new}_pkey')
