"""A group records the minimum of agents it was made with. Unknown for older groups until they are made again."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("contextualized_groups", sa.Column("min_agents", sa.Integer), schema="babylon_rl")


def downgrade() -> None:
    op.drop_column("contextualized_groups", "min_agents", schema="babylon_rl")
