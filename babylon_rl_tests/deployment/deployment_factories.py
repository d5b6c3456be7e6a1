"""Hours of a rollout, from lists of P&L."""

from collections.abc import Mapping, Sequence

from babylon_rl.deployment.evidence import AgentResult, ArmCalls, WindowEvidence
from babylon_rl.deployment.rules import Look, decide
from babylon_rl.deployment.stages import Arm, Deployment, Stage
from babylon_rl.settings.live import DeploymentSettings


def some_agents(arm: Arm, pnl: Sequence[float], *, name: str = "", **rest: float | bool | None) -> list[AgentResult]:
    """Agents of one arm, by P&L: `candidate-0`, `candidate-1`, …"""
    return [AgentResult(agent_id=f"{name or arm}-{i}", arm=arm, pnl_usd=p, **rest) for i, p in enumerate(pnl)]  # type: ignore[arg-type]


def an_hour(
    index: int,
    candidate: Sequence[float] = (),
    incumbent: Sequence[float] = (),
    *,
    stage: Stage = Stage.HALF,
    number: int = 1,
    calls: Mapping[Arm, ArmCalls] | None = None,
    agents: Sequence[AgentResult] = (),
) -> WindowEvidence:
    """Hour `index` of a rollout."""
    return WindowEvidence(
        window_id=f"2026-01-{1 + index // 24:02}T{index % 24:02}:00",
        stage=stage,
        number=number,
        agents=(*some_agents(Arm.CANDIDATE, candidate), *some_agents(Arm.INCUMBENT, incumbent), *agents),
        calls=calls or {},
    )


def a_rollout(stage: Stage = Stage.HALF, *, number: int = 1, paused: bool = False) -> Deployment:
    return Deployment(
        lineage="babylon-mmo",
        number=number,
        stage=stage,
        candidate=1,
        rollout="babylon-mmo@1#1",
        threshold=0.5,
        paused=paused,
    )


def the_settings(**values: float) -> DeploymentSettings:
    return DeploymentSettings.model_validate({f"BABYLON_{name.upper()}": value for name, value in values.items()})


def decide_at(stage: Stage, hours: Sequence[WindowEvidence], **values: float) -> Look:
    return decide(a_rollout(stage), hours, the_settings(**values))
