"""Prompts and answers in the log of calls are stored as steps are: by lz4 where the server has it, else as they are."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_TEXTS = ("system_prompt", "user_prompt", "response")


def upgrade() -> None:
    # Compressing with pglz was most of what writing a call cost. Rows that are there stay as they are.
    lz4 = op.get_bind().scalar(
        sa.text("SELECT 'lz4' = ANY(enumvals) FROM pg_settings WHERE name = 'default_toast_compression'")
    )
    _alter("SET COMPRESSION lz4" if lz4 else "SET STORAGE EXTERNAL")


def downgrade() -> None:
    _alter("SET STORAGE EXTENDED")
    _alter("SET COMPRESSION default")


def _alter(how: str) -> None:
    for schema in _ours():
        for column in _TEXTS:
            op.execute(f'ALTER TABLE "{schema}".llm_call_logs ALTER COLUMN {column} {how}')


def _ours() -> list[str]:
    """Schemas in which we created the game's log of calls and it still stands."""
    query = """
        SELECT schema_name FROM babylon_rl.created_game_tables
        WHERE table_name = 'llm_call_logs' AND to_regclass(format('%I.%I', schema_name, table_name)) IS NOT NULL"""
    return list(op.get_bind().execute(sa.text(query)).scalars())
