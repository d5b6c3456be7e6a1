"""Late and changed rows: what a group was made from, which windows changed since, and readiness at constant cost.

Where the game's tables are ours, triggers note which windows a statement touched. A database that is not ours gets
none: there `ingest/window_summary.py` polls.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# The rule of `ingest/queries.py`, as it stood when this version was written; a test compares the two.
_DAY = (
    "([0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|[0-9]{4}-(0[13-9]|1[0-2])-(29|30)"
    "|[0-9]{4}-(0[13578]|1[02])-31"
    "|([0-9][0-9](0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
)
_VALID = f"^(?!0){_DAY}(T([01][0-9]|2[0-3]):00|-([01][0-9]|2[0-3]))$"
_WINDOW_OF = f"""
CREATE FUNCTION babylon_rl.window_of(window_id text, start_time timestamp) RETURNS text LANGUAGE sql STABLE AS $$
SELECT CASE WHEN window_id ~ '{_VALID}' THEN left(window_id, 10) || 'T' || substr(window_id, 12, 2) || ':00'
            ELSE to_char(start_time, 'YYYY-MM-DD"T"HH24":00"') END
$$"""  # a constant
# An update that leaves alone what is read (a reward written back) is no change.
_READ = "agent_id, window_id, start_time, end_time, scenario_id, steps_json, metadata_json, final_balance, final_pnl, is_training_data, is_evaluation"
_NOTE_ROWS = f"""
CREATE FUNCTION babylon_rl.note_rows() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, babylon_rl AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO babylon_rl.row_changes (window_id)
        SELECT DISTINCT babylon_rl.window_of(n.window_id, n.start_time) FROM new_rows n
        WHERE babylon_rl.window_of(n.window_id, n.start_time) IS NOT NULL;  -- 'infinity' is in no hour
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO babylon_rl.row_changes (window_id)
        WITH changed AS (
            SELECT o.id FROM old_rows o JOIN new_rows n USING (id)
            WHERE ROW({", ".join("o." + c for c in _READ.split(", "))})
                  IS DISTINCT FROM ROW({", ".join("n." + c for c in _READ.split(", "))})
        )
        SELECT babylon_rl.window_of(o.window_id, o.start_time) FROM old_rows o
        WHERE (o.id IN (SELECT id FROM changed) OR o.id NOT IN (SELECT id FROM new_rows))
          AND babylon_rl.window_of(o.window_id, o.start_time) IS NOT NULL
        UNION
        SELECT babylon_rl.window_of(n.window_id, n.start_time) FROM new_rows n
        WHERE (n.id IN (SELECT id FROM changed) OR n.id NOT IN (SELECT id FROM old_rows))
          AND babylon_rl.window_of(n.window_id, n.start_time) IS NOT NULL;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO babylon_rl.row_changes (window_id)
        SELECT DISTINCT babylon_rl.window_of(o.window_id, o.start_time) FROM old_rows o
        WHERE babylon_rl.window_of(o.window_id, o.start_time) IS NOT NULL;
    ELSE
        INSERT INTO babylon_rl.row_changes (window_id) SELECT window_id FROM babylon_rl.window_summary;
    END IF;
    RETURN NULL;
END $$"""  # noqa: S608  # constants
_NOTE_OUTCOMES = """
CREATE FUNCTION babylon_rl.note_outcomes() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, babylon_rl AS $$
BEGIN
    -- An id that is no hour belongs to no window: the year 1 stands for it and is left out.
    IF TG_OP = 'INSERT' THEN
        INSERT INTO babylon_rl.outcome_changes (window_id)
        SELECT DISTINCT babylon_rl.window_of(n.window_id, '0001-01-01') FROM new_rows n;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO babylon_rl.outcome_changes (window_id)
        SELECT babylon_rl.window_of(o.window_id, '0001-01-01') FROM old_rows o
        UNION SELECT babylon_rl.window_of(n.window_id, '0001-01-01') FROM new_rows n;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO babylon_rl.outcome_changes (window_id)
        SELECT DISTINCT babylon_rl.window_of(o.window_id, '0001-01-01') FROM old_rows o;
    ELSE
        INSERT INTO babylon_rl.outcome_changes (window_id) SELECT window_id FROM babylon_rl.window_summary;
    END IF;
    RETURN NULL;
END $$"""
_TRANSITIONS = {
    "INSERT": "REFERENCING NEW TABLE AS new_rows",
    "UPDATE": "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "DELETE": "REFERENCING OLD TABLE AS old_rows",
    "TRUNCATE": "",
}
_STALE = """
CREATE VIEW babylon_rl.stale_windows AS
SELECT g.window_id, g.group_id
FROM babylon_rl.trajectory_groups g
LEFT JOIN babylon_rl.windows w USING (window_id)
LEFT JOIN babylon_rl.window_outcomes o USING (window_id)
WHERE g.made_from <> coalesce(w.data_version, '') || '|' || coalesce(o.data_version, '')"""


def upgrade() -> None:
    op.add_column("windows", sa.Column("changes_seen", sa.BigInteger(), nullable=True), schema="babylon_rl")
    op.add_column("trajectory_groups", sa.Column("made_from", sa.Text(), nullable=True), schema="babylon_rl")
    op.add_column("consumed_windows", sa.Column("data_version", sa.Text(), nullable=True), schema="babylon_rl")
    op.create_table(
        "window_summary",
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("agents", sa.Integer(), nullable=False),
        sa.Column("avg_pnl_usd", sa.Double(), nullable=True),
        sa.Column("outcomes", sa.Boolean(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("changes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("window_id"),
        schema="babylon_rl",
    )
    op.create_table(
        "window_counts",
        sa.Column("agents", sa.Integer(), nullable=False),
        sa.Column("outcomes", sa.Boolean(), nullable=False),
        sa.Column("windows", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("agents", "outcomes"),
        schema="babylon_rl",
    )
    for queue in ("row_changes", "outcome_changes"):
        op.create_table(
            queue,
            sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
            sa.Column("window_id", sa.Text(), nullable=False),
            sa.PrimaryKeyConstraint("seq"),
            schema="babylon_rl",
        )
    op.create_table(
        "dropped_windows",
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("lineage", "window_id"),
        schema="babylon_rl",
    )
    op.create_index(
        "ix_window_verdicts_failed",
        "window_verdicts",
        ["window_id"],
        unique=False,
        schema="babylon_rl",
        postgresql_where=sa.text("NOT passed"),
    )
    op.create_index(
        "ix_window_summary_blind",
        "window_summary",
        ["window_id"],
        unique=False,
        schema="babylon_rl",
        postgresql_where=sa.text("NOT outcomes"),
    )
    for statement in (_STALE, _WINDOW_OF, _NOTE_ROWS, _NOTE_OUTCOMES):
        op.get_bind().exec_driver_sql(statement)  # their colons are no parameters
    for schema, table in _ours():
        function = {"trajectories": "note_rows", "market_outcomes": "note_outcomes"}.get(table)
        if function is None:
            continue
        for event, transition in _TRANSITIONS.items():
            op.execute(
                f'CREATE TRIGGER babylon_rl_{event.lower()} AFTER {event} ON "{schema}".{table} {transition} '
                f"FOR EACH STATEMENT EXECUTE FUNCTION babylon_rl.{function}()"
            )
        if table == "trajectories":
            # pglz misses what repeats in 71 KB of steps and makes a write cost several times as much: lz4 where the
            # server has it, else none. Rows that are there stay as they are.
            lz4 = op.get_bind().scalar(
                sa.text("SELECT 'lz4' = ANY(enumvals) FROM pg_settings WHERE name = 'default_toast_compression'")
            )
            op.execute(
                f'ALTER TABLE "{schema}".trajectories ALTER COLUMN steps_json '
                + ("SET COMPRESSION lz4" if lz4 else "SET STORAGE EXTERNAL")
            )
            op.execute(
                "INSERT INTO babylon_rl.row_changes (window_id) "  # noqa: S608  # our own names
                f'SELECT DISTINCT babylon_rl.window_of(window_id, start_time) FROM "{schema}".trajectories '
                "WHERE babylon_rl.window_of(window_id, start_time) IS NOT NULL"
            )


def downgrade() -> None:
    for schema, table in _ours():
        if table in ("trajectories", "market_outcomes"):
            for event in _TRANSITIONS:
                op.execute(f'DROP TRIGGER IF EXISTS babylon_rl_{event.lower()} ON "{schema}".{table}')
        if table == "trajectories":
            op.execute(f'ALTER TABLE "{schema}".trajectories ALTER COLUMN steps_json SET STORAGE EXTENDED')
            op.execute(f'ALTER TABLE "{schema}".trajectories ALTER COLUMN steps_json SET COMPRESSION default')
    op.execute("DROP FUNCTION babylon_rl.note_outcomes()")
    op.execute("DROP FUNCTION babylon_rl.note_rows()")
    op.execute("DROP FUNCTION babylon_rl.window_of(text, timestamp)")
    op.execute("DROP VIEW babylon_rl.stale_windows")
    op.drop_index("ix_window_verdicts_failed", table_name="window_verdicts", schema="babylon_rl")
    for table in ("dropped_windows", "outcome_changes", "row_changes", "window_counts", "window_summary"):
        op.drop_table(table, schema="babylon_rl")
    op.drop_column("consumed_windows", "data_version", schema="babylon_rl")
    op.drop_column("trajectory_groups", "made_from", schema="babylon_rl")
    op.drop_column("windows", "changes_seen", schema="babylon_rl")


def _ours() -> list[tuple[str, str]]:
    """The game's tables that we created and that still stand."""
    query = """
        SELECT schema_name, table_name FROM babylon_rl.created_game_tables
        WHERE to_regclass(format('%I.%I', schema_name, table_name)) IS NOT NULL ORDER BY table_name"""
    return [(s, t) for s, t in op.get_bind().execute(sa.text(query))]
