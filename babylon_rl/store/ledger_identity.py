"""Which checkpoints are this database's: the id that they carry, and what the ledger has recorded of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from babylon_rl.common.canonical import from_json
from babylon_rl.database import tables as t


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCheckpoint:
    """One checkpoint of any lineage, as it was recorded.

    Attributes:
        trainer: That made it, which need not be the one that the settings choose now.
        path: Its folder, or the trainer's own name for it.
        manifest: File → SHA-256; empty where the weights are remote.
    """

    lineage: str
    step: int
    trainer: str
    path: str
    manifest: Mapping[str, str]
    trained_at: datetime


def read_ledger_id(engine: sa.Engine) -> str:
    """The id of this database, made once with its tables; no other database has the same."""
    with engine.connect() as conn:
        return str(conn.scalars(sa.select(t.ledger_identity.c.ledger_id)).one())


def read_recorded(engine: sa.Engine) -> list[RecordedCheckpoint]:
    """Every recorded checkpoint, by lineage and step."""
    with engine.connect() as conn:
        return read_recorded_in(conn)


def read_recorded_in(conn: sa.Connection) -> list[RecordedCheckpoint]:
    """`read_recorded` within a transaction."""
    c = t.checkpoints.c
    query = sa.select(c.lineage, c.step, c.trainer, c.path, c.manifest, c.trained_at).order_by(c.lineage, c.step)
    return [
        RecordedCheckpoint(**{**r, "manifest": from_json(r["manifest"], dict[str, str])})
        for r in conn.execute(query).mappings()
    ]


def read_manifests(engine: sa.Engine) -> dict[tuple[str, int], Mapping[str, str]]:
    """(Lineage, step) → file → SHA-256 of each recorded checkpoint; empty where the weights are remote."""
    return {(r.lineage, r.step): r.manifest for r in read_recorded(engine)}
