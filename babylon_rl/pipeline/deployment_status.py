"""What is deployed now and how it came to be: the state, the rollout's newest look, the last moves."""

from collections.abc import Sequence
from dataclasses import dataclass

from babylon_rl.deployment.stages import Deployment
from babylon_rl.pipeline.deploy import find_due_hours, find_problem
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.deployments import Move, read_moves
from babylon_rl.store.looks import Look, read_looks
from babylon_rl.types import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentStatus:
    """One screen's worth.

    Attributes:
        looks: Every look at the rollout or, without one, at the last.
        moves: The newest, newest first.
        due: Hours that are to be looked at now.
        next: What the platform does next by itself, or waits for; a sentence.
        problem: What is wrong with the incumbent's checkpoint; None: nothing.
    """

    deployment: Deployment
    looks: Sequence[Look]
    moves: Sequence[Move]
    due: int
    next: str
    problem: str | None

    @property
    def newest_look(self) -> Look | None:
        return self.looks[-1] if self.looks else None

    def facts(self) -> Json:
        """The same as JSON."""
        d, look = self.deployment, self.newest_look
        return {
            "lineage": d.lineage,
            "number": d.number,
            "stage": d.stage.value,
            "incumbent": d.incumbent_name,
            "candidate": d.candidate_name,
            "rollout": d.rollout,
            "threshold": d.threshold,
            "test_threshold": d.test_threshold,
            "paused": d.paused,
            "due_hours": self.due,
            "next": self.next,
            "incumbent_problem": self.problem,
            "look": None
            if look is None
            else {
                "rollout": look.rollout,
                "window_id": look.window_id,
                "stage": look.stage.value,
                "decision": look.decision,
                "reason": look.reason,
                "windows": look.windows,
                "difference_usd": look.mean_usd,
                "difference_lo_usd": look.lo_usd,
                "difference_hi_usd": look.hi_usd,
                "facts": look.facts,
            },
            "moves": [
                {
                    "number": m.after.number,
                    "move": m.kind.value,
                    "subject": m.subject,
                    "reason": m.reason,
                    "made_by": m.made_by,
                    "window_id": m.window_id,
                    "at": None if m.at is None else m.at.isoformat(timespec="seconds"),
                }
                for m in self.moves
            ],
        }


def read_status(workspace: Workspace, *, last: int = 8) -> DeploymentStatus:
    """Read what is deployed of the workspace's lineage, with its last moves."""
    engine, lineage = workspace.store.engine, workspace.settings.lineage
    moves = read_moves(engine, lineage)
    deployment = moves[-1].after if moves else Deployment(lineage=lineage)
    rollout = next((m.after.rollout for m in reversed(moves) if m.after.rollout is not None), None)
    due, why = find_due_hours(workspace, limit=1000)
    return DeploymentStatus(
        deployment=deployment,
        looks=read_looks(engine, lineage, rollout) if rollout is not None else (),
        moves=moves[::-1][:last],
        due=len(due),
        next=why,
        problem=find_problem(workspace, deployment.incumbent),
    )
