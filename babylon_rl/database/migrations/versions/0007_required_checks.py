"""Which checks a window must have passed to train, as data; and a planned batch by its name: `planned_batches`."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

# As `pipeline/checks.py` declares them today: a test compares the two. Another required check is another migration.
_REQUIRED = (
    "groups_have_enough_agents",
    "groups_hold_only_what_was_logged",
    "groups_have_trainable_tokens",
    "every_row_is_accounted_for",
    "scores_are_in_unit_interval",
    "every_member_has_one_score",
    "scores_are_not_all_equal",
    "judge_is_fit",
    "judging_stays_within_budget",
)


def upgrade() -> None:
    _rename_table("training_plans", "planned_batches")
    table = op.create_table(
        "required_checks",
        sa.Column("check_name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("check_name"),
        schema="babylon_rl",
    )
    op.bulk_insert(table, [{"check_name": name} for name in _REQUIRED])


def downgrade() -> None:
    op.drop_table("required_checks", schema="babylon_rl")
    _rename_table("planned_batches", "training_plans")


def _rename_table(old: str, new: str) -> None:
    """A table, and its primary key with it."""
    op.rename_table(old, new, schema="babylon_rl")
    named = sa.text("SELECT conname FROM pg_constraint WHERE conrelid = to_regclass(:t) AND contype = 'p'")
    name = op.get_bind().scalar(named, {"t": f"babylon_rl.{new}"})
    op.execute(f'ALTER TABLE babylon_rl.{new} RENAME CONSTRAINT "{name}" TO {new}_pkey')
