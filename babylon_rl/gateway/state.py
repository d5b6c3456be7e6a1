"""What the gateway answers by, as it was last read: one immutable value that a call keeps from its beginning to its end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from babylon_rl.deployment.stages import Deployment
from babylon_rl.store.ledger_identity import RecordedCheckpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedState:
    """What is deployed of one lineage, and what may be asked by name.

    Attributes:
        servable: Steps that a caller may name (`store.deployments.servable_steps`).
        policies: Step → how it was recorded, of this lineage; of the base, step 0, nothing is recorded.
        read_at: When the database last said so.
    """

    deployment: Deployment
    servable: frozenset[int]
    policies: Mapping[int, RecordedCheckpoint] = field(default_factory=dict)
    read_at: datetime


class StateSource(Protocol):
    """Knows the newest state; asked on every call, so it must be cheap."""

    def current(self) -> ServedState: ...
