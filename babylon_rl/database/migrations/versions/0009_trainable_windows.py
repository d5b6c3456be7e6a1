"""One answer to "may this window train?", with the reason why not; and the minimum of agents that a window was asked for.

The minimum is unknown for windows that were grouped before, until they are grouped again.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

# Known are the windows that were read and those that rows were recorded in. Of several reasons the first counts.
_TRAINABLE_WINDOWS = """
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
    op.add_column("windows", sa.Column("min_agents", sa.Integer), schema="babylon_rl")
    op.execute(_TRAINABLE_WINDOWS)


def downgrade() -> None:
    op.execute("DROP VIEW babylon_rl.trainable_windows")
    op.drop_column("windows", "min_agents", schema="babylon_rl")
