"""Which checkpoints are this database's: the id that they carry, and what the ledger has recorded of each."""

import sqlalchemy as sa

from babylon_rl.common.canonical import from_json
from babylon_rl.database import tables as t


def read_ledger_id(engine: sa.Engine) -> str:
    """The id of this database, made once with its tables; no other database has the same."""
    with engine.connect() as conn:
        return str(conn.scalars(sa.select(t.ledger_identity.c.ledger_id)).one())


def read_manifests(engine: sa.Engine) -> dict[tuple[str, int], dict[str, str]]:
    """(Lineage, step) → file → SHA-256 of each recorded checkpoint; empty where the weights are remote."""
    c = t.checkpoints.c
    with engine.connect() as conn:
        rows = conn.execute(sa.select(c.lineage, c.step, c.manifest))
        return {(r.lineage, r.step): from_json(r.manifest, dict[str, str]) for r in rows}
