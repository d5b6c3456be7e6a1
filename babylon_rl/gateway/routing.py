"""A request → the step that answers it, and why: from the state alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from babylon_rl.deployment.stages import Arm, is_test_agent
from babylon_rl.gateway.state import ServedState
from babylon_rl.policy.wire import RequestError
from babylon_rl.types import policy_name

_PINNED: Final = re.compile(r"(?P<lineage>[^@]+)@(?P<step>\d{1,9})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Who answers.

    Attributes:
        fallback: Step that answers where `step` cannot; None: nobody else may.
    """

    step: int
    arm: Arm
    fallback: int | None = None


def choose_route(state: ServedState, model: str, agent_id: str | None, test_agents: Sequence[str]) -> Route:
    """Find who answers.

    Args:
        state: What is deployed.
        model: As the caller asked: the lineage's name, or a step of it.
        agent_id: Who asks, if known.
        test_agents: Patterns of test agents' ids.

    Raises:
        RequestError: 404: nothing of that name may be answered with.
    """
    d = state.deployment
    if model == d.lineage:
        arm = d.arm_of(agent_id, is_test=agent_id is not None and is_test_agent(agent_id, test_agents))
        return Route(step=d.step_of(arm), arm=arm, fallback=d.incumbent if arm is Arm.CANDIDATE else None)
    named = _PINNED.fullmatch(model)
    if named is None or named["lineage"] != d.lineage:
        raise _refuse(state, model, "no policy of this gateway has that name")
    step = int(named["step"])
    if step not in state.servable:
        known = step in state.policies
        reason = "it was recorded, but it was never deployed or was rolled back" if known else "it was never recorded"
        raise _refuse(state, model, reason)
    return Route(step=step, arm=Arm.PINNED)


def names_of(state: ServedState) -> list[str]:
    """Every name that may be asked for, the lineage's own first."""
    lineage = state.deployment.lineage
    return [lineage, *(policy_name(lineage, s) for s in sorted(state.servable))]


def _refuse(state: ServedState, model: str, reason: str) -> RequestError:
    return RequestError(
        404,
        f"model {model[:100]!r} is not served: {reason}; ask for one of {', '.join(names_of(state)[:20])}",
        param="model",
        code="model_not_found",
    )
