"""Tables take the names of what they hold: `contextualized_groups` and `check_results`. No row changes."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_TABLES = {"trajectory_groups": "contextualized_groups", "window_verdicts": "check_results"}


def upgrade() -> None:
    for old, new in _TABLES.items():
        _rename(old, new)


def downgrade() -> None:
    for old, new in reversed(_TABLES.items()):
        _rename(new, old)


def _rename(old: str, new: str) -> None:
    """A table, and the keys and indexes that are named after it; views follow by themselves."""
    op.rename_table(old, new, schema="babylon_rl")
    bind = op.get_bind()
    named = sa.text(
        "SELECT conname, false AS index FROM pg_constraint WHERE conrelid = to_regclass(:t) AND conname LIKE :like "
        "UNION ALL SELECT i.relname, true FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid "
        "WHERE x.indrelid = to_regclass(:t) AND i.relname LIKE :like "
        "AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = x.indexrelid) ORDER BY 1"
    )
    for name, index in bind.execute(named, {"t": f"babylon_rl.{new}", "like": f"%{old}%"}).all():
        renamed = name.replace(old, new)
        if index:
            op.execute(f'ALTER INDEX babylon_rl."{name}" RENAME TO "{renamed}"')
        else:
            op.execute(f'ALTER TABLE babylon_rl.{new} RENAME CONSTRAINT "{name}" TO "{renamed}"')
