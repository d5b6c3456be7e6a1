"""An hour whose rows name scenarios has a window, so a group, of each.

Groups, judgments, check results, retries and trainings are keyed by the window's id: `2025-01-15T10:00`, or
`2025-01-15T10:00~trust-attack-01`. Its first 16 letters are the hour, which rows and outcomes are keyed by. An hour that
trained before this revision trained with all its scenarios in one group: none of them trains again.
"""

import runpy
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

_STALE_WINDOWS = """
CREATE VIEW babylon_rl.stale_windows AS
SELECT g.window_id, g.group_id, g.hour_id
FROM babylon_rl.contextualized_groups g
LEFT JOIN babylon_rl.windows w ON w.window_id = g.hour_id
LEFT JOIN babylon_rl.window_outcomes o ON o.window_id = g.hour_id
WHERE g.made_from <> coalesce(w.data_version, '') || '|' || coalesce(o.data_version, '')"""

# A row per window: of each hour that was read or that rows were recorded in, its groups; without one, the hour itself.
# The same for every lineage. Of several reasons the first counts. `version` rises with every change of rows or outcomes.
_TRAINABLE_WINDOWS = """
CREATE VIEW babylon_rl.trainable_windows AS
SELECT i.window_id, k.window_id AS hour_id,
       coalesce(CASE WHEN g.window_id <> k.window_id THEN g.members END, w.agents, s.agents) AS agents,
       g.group_id, g.data_version AS group_version, j.judgment_key,
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
LEFT JOIN babylon_rl.contextualized_groups g ON g.hour_id = k.window_id
CROSS JOIN LATERAL (SELECT coalesce(g.window_id, k.window_id) AS window_id) i
LEFT JOIN babylon_rl.window_judgments j ON j.window_id = i.window_id AND j.group_id = g.group_id
CROSS JOIN LATERAL (SELECT coalesce(s.changes, 0) || '.' || coalesce(s.outcome_changes, 0) AS version) n
LEFT JOIN LATERAL (
    SELECT e.* FROM babylon_rl.window_retries e
    WHERE e.window_id IN (i.window_id, k.window_id)
      AND e.version = CASE WHEN e.kind = 'error' THEN n.version ELSE g.data_version END
    ORDER BY e.kind <> 'error', e.window_id LIMIT 1) y ON true
CROSS JOIN LATERAL (
    SELECT ARRAY(SELECT v.check_name FROM babylon_rl.check_results v
                 JOIN babylon_rl.required_checks q ON q.check_name = v.check_name
                 WHERE v.window_id = i.window_id AND NOT v.passed AND v.about = CASE
                     WHEN q.asset = 'ruler_scores' THEN j.judgment_key ELSE coalesce(g.data_version, w.data_version) END
                 ORDER BY v.check_name) AS failed,
           ARRAY(SELECT q.check_name FROM babylon_rl.required_checks q
                 WHERE NOT EXISTS (SELECT FROM babylon_rl.check_results v
                                   WHERE v.window_id = i.window_id AND v.check_name = q.check_name AND v.about = CASE
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
        WHEN EXISTS (SELECT FROM babylon_rl.stale_windows x WHERE x.hour_id = k.window_id) THEN 'stale'
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
LEFT JOIN LATERAL (SELECT changes_seen FROM babylon_rl.windows WHERE window_id = c.hour_id OFFSET 0) w ON true
LEFT JOIN LATERAL (SELECT changes_seen FROM babylon_rl.window_outcomes WHERE window_id = c.hour_id OFFSET 0) o ON true
LEFT JOIN LATERAL (SELECT changes, outcome_changes FROM babylon_rl.window_summary
                   WHERE window_id = c.hour_id OFFSET 0) s ON true
WHERE c.data_version <> coalesce(g.data_version, '') OR s.changes > w.changes_seen OR s.outcome_changes > o.changes_seen
   OR EXISTS (SELECT 1 FROM babylon_rl.stale_windows x WHERE x.window_id = c.window_id)"""

# One state per window of a lineage. A plain SQL function, so that the planner sees through it.
_WINDOW_STATES = """
CREATE FUNCTION babylon_rl.window_states(of_lineage text) RETURNS TABLE (
    window_id text, hour_id text, state text, reason text, stage text, explanation text, version text, failures integer,
    not_before timestamptz, agents integer, group_id text, judgment_key text, failed_checks text[], missing_checks text[],
    consumed_step integer, planned_step integer, dropped boolean
) LANGUAGE sql STABLE AS $$
SELECT x.window_id, x.hour_id,
       CASE WHEN c.step IS NOT NULL AND EXISTS (SELECT FROM babylon_rl.stale_trainings t
                                               WHERE t.lineage = of_lineage AND t.window_id = c.window_id) THEN 'stale'
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
LEFT JOIN LATERAL (SELECT u.window_id, u.step FROM babylon_rl.consumed_windows u
                   WHERE u.lineage = of_lineage AND u.window_id IN (x.window_id, x.hour_id)
                     AND (u.window_id = x.window_id OR u.whole_hour)
                   ORDER BY u.window_id DESC LIMIT 1) c ON true
LEFT JOIN babylon_rl.dropped_windows d ON d.lineage = of_lineage AND d.window_id = x.window_id
LEFT JOIN (SELECT b.step, unnest(b.windows) AS window_id FROM babylon_rl.planned_batches b
           WHERE b.lineage = of_lineage
             AND NOT EXISTS (SELECT FROM babylon_rl.checkpoints m WHERE m.lineage = b.lineage AND m.step = b.step)
          ) p ON p.window_id = x.window_id
$$"""


def upgrade() -> None:
    _drop_views()
    for table in ("contextualized_groups", "consumed_windows", "dropped_windows"):
        hour = sa.Computed("left(window_id, 16)", persisted=True)
        op.add_column(table, sa.Column("hour_id", sa.Text(), hour, nullable=False), schema="babylon_rl")
    op.create_index("ix_contextualized_groups_hour", "contextualized_groups", ["hour_id"], schema="babylon_rl")
    op.create_index(
        "ix_contextualized_groups_scenarios",
        "contextualized_groups",
        ["hour_id"],
        schema="babylon_rl",
        postgresql_where=sa.text("window_id <> hour_id"),
    )
    for table in ("consumed_windows", "dropped_windows"):
        op.create_index(f"ix_{table}_hour", table, ["lineage", "hour_id"], schema="babylon_rl")
    op.add_column(
        "consumed_windows",
        sa.Column("whole_hour", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        schema="babylon_rl",
    )
    op.execute("UPDATE babylon_rl.consumed_windows SET whole_hour = true")
    for statement in (_STALE_WINDOWS, _TRAINABLE_WINDOWS, _STALE_TRAININGS, _WINDOW_STATES):
        op.execute(statement)


def downgrade() -> None:
    _drop_views()
    # What can be made again; the trainings of scenarios stay, beside the hours' own.
    for table in ("window_judgments", "check_results", "window_retries", "contextualized_groups"):
        op.execute(f"DELETE FROM babylon_rl.{table} WHERE length(window_id) > 16")  # noqa: S608  # constants
    op.drop_column("consumed_windows", "whole_hour", schema="babylon_rl")
    for table in ("contextualized_groups", "consumed_windows", "dropped_windows"):
        op.drop_column(table, "hour_id", schema="babylon_rl")
    versions = Path(__file__).parent
    # 0003's view, with the table's present name.
    stale_windows = runpy.run_path(str(versions / "0003_nothing_lost.py"))["_STALE"]
    op.execute(stale_windows.replace("trajectory_groups", "contextualized_groups"))
    before = runpy.run_path(str(versions / "0010_window_states.py"))
    for name in ("_TRAINABLE_WINDOWS", "_STALE_TRAININGS", "_WINDOW_STATES"):
        op.execute(before[name])


def _drop_views() -> None:
    op.execute("DROP FUNCTION babylon_rl.window_states(text)")
    for view in ("stale_trainings", "trainable_windows", "stale_windows"):
        op.execute(f"DROP VIEW babylon_rl.{view}")
