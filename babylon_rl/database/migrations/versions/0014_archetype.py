"""`trajectories.archetype`, as the game's second generation has it; only where the table is ours."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

_OURS = "SELECT schema_name FROM babylon_rl.created_game_tables WHERE table_name = 'trajectories'"


def upgrade() -> None:
    for schema in op.get_bind().scalars(sa.text(_OURS)).all():
        op.add_column("trajectories", sa.Column("archetype", sa.String(50)), schema=schema)


def downgrade() -> None:
    for schema in op.get_bind().scalars(sa.text(_OURS)).all():
        op.drop_column("trajectories", "archetype", schema=schema)
