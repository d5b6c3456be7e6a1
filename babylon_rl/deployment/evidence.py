"""What one closed hour shows of the two arms of a rollout. Numbers only; `pipeline/` collects them, `rules.py` reads them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from babylon_rl.deployment.stages import Arm, Stage

MOST_USD = 1e15
"""From here on a number is no money; the squares of greater ones overflow, and one row would end every look."""


def is_money(usd: float | None) -> TypeGuard[float]:
    """Whether an amount is known, and one that may enter a sum."""
    return usd is not None and math.isfinite(usd) and abs(usd) < MOST_USD


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentResult:
    """One agent's hour, answered by one policy from beginning to end.

    Attributes:
        arm: `INCUMBENT` or `CANDIDATE`.
        is_test: Compared with other test agents only: they are not drawn like the rest.
        pnl_usd: Inside the hour.
        earlier_pnl_usd: The agent's mean P&L of an hour before the rollout began, by which CUPED makes the comparison
            sharper; None: it has not played before.
        decisions: Actions that it took, or tried to.
        invalid: Those of them that were no legal action.
        timed: Those whose later move is known: trades at a known price of a market whose closing price is known.
        timed_right: Those of them that the market then moved with.
        volume_usd: What it traded; None: unknown.
    """

    agent_id: str
    arm: Arm
    is_test: bool = False
    pnl_usd: float
    earlier_pnl_usd: float | None = None
    decisions: int = 0
    invalid: int = 0
    timed: int = 0
    timed_right: int = 0
    volume_usd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmCalls:
    """The gateway's calls of one arm in one hour.

    Attributes:
        calls: All that the arm should have answered.
        errors: Those of them that it could not: the incumbent answered instead, or nobody did.
        latency_ms: Of the answered ones, in ascending order.
    """

    calls: int = 0
    errors: int = 0
    latency_ms: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowEvidence:
    """One closed hour of a rollout.

    Attributes:
        stage: The rollout's when the hour closed.
        number: Of the deployment then (`Deployment.number`); a widened threshold gives a new one.
        agents: Those whose hour counts, by id.
        calls: `INCUMBENT` and `CANDIDATE`; in the stage of a shadow, `SHADOW` in the candidate's place.
        excluded: Agent → why its hour does not count: answered by both arms, bypassed the gateway, unknown P&L, …
    """

    window_id: str
    stage: Stage
    number: int
    agents: tuple[AgentResult, ...]
    calls: Mapping[Arm, ArmCalls] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)
