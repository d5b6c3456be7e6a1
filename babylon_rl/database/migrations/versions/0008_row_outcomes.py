"""`row_dispositions` becomes `row_outcomes`, and its words are those of `types.RowStatus` and `types.RowReason`.

A row of a window that was read and not grouped yet stays `ineligible` until its window is grouped: what was stored does
not tell the two apart.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_NEW_WORDS = (
    (("grouped", "stitched"), ("grouped", "has_turn")),
    (("stitched", "no_turns"), ("grouped", "no_turn")),
)
_ONLY_NEW = (
    (("ineligible", "too_few_agents"), ("read", "has_turn")),
    (("ineligible", "no_turns"), ("read", "no_turn")),
)


def upgrade() -> None:
    _rename("row_dispositions", "row_outcomes")
    op.alter_column("row_outcomes", "disposition", new_column_name="status", schema="babylon_rl")
    for old, new in _NEW_WORDS:
        _reword(old, new)


def downgrade() -> None:
    for old, new in (*_NEW_WORDS, *_ONLY_NEW):
        _reword(new, old)
    op.alter_column("row_outcomes", "status", new_column_name="disposition", schema="babylon_rl")
    _rename("row_outcomes", "row_dispositions")


def _reword(was: tuple[str, str], now: tuple[str, str]) -> None:
    words = sa.text(
        "UPDATE babylon_rl.row_outcomes SET status = :status, reason = :reason WHERE status = :was AND reason = :why"
    )
    op.get_bind().execute(words, {"was": was[0], "why": was[1], "status": now[0], "reason": now[1]})


def _rename(old: str, new: str) -> None:
    """The table, and its key and index, which are named after it."""
    op.rename_table(old, new, schema="babylon_rl")
    op.execute(f'ALTER INDEX babylon_rl."ix_babylon_rl_{old}_window_id" RENAME TO "ix_babylon_rl_{new}_window_id"')
    op.execute(f'ALTER INDEX babylon_rl."{old}_pkey" RENAME TO "{new}_pkey"')
