"""What each column of the game's tables means that we publish: values made from the ledger, judgments and evaluations.

`docs/publish.md` has the same as a table. How they are written is `pipeline/publish.py`. No number is said of a game that
it was not measured in.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from babylon_rl.common.canonical import to_json
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.call_traces import count_answers, read_answered_agents
from babylon_rl.store.deployments import read_moves
from babylon_rl.store.log_evaluations import LogEvaluation, read_log_rows
from babylon_rl.store.publishable import (
    HeldOutResult,
    JudgedRows,
    LiveResult,
    RankedRow,
    TrainedBatch,
    read_held_out_results,
    read_live_results,
    read_ranked,
)
from babylon_rl.store.service_times import Service, ServiceStatus, read_service
from babylon_rl.training.rewards import rewards_of
from babylon_rl.types import Json, Judgment, policy_name

ANSWERED_WITHIN: Final = timedelta(hours=24)
"""An agent is answered by the step of its newest answer, if that is no older."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known of each step of a lineage, measured in this very game only.

    Attributes:
        live: Of the newest rollout of a step: what it said, and the step that it was compared with.
        service: What is deployed.
        answers: Calls that a step answered.
        answered: The step of the newest answer of each agent.
        wandb_run_id: Of the lineage's metrics; None: they are not sent.
    """

    lineage: str
    held_out: Mapping[int, HeldOutResult]
    log: Mapping[int, LogEvaluation]
    live: Mapping[int, tuple[LiveResult, int]]
    service: Mapping[int, Service]
    answers: Mapping[int, int]
    answered: tuple[int, ...]
    wandb_run_id: str | None

    def improvement_of(self, step: int) -> float | None:
        """Mean P&L of a step less its parent's, in US dollars an agent and window on the same windows; None: not measured."""
        live = self.live.get(step)
        if live is not None and live[1] == step - 1 and live[0].mean_usd is not None:
            return live[0].mean_usd
        played = self.held_out.get(step)
        if played is None or played.parent is None:
            return None
        return played.policy.mean_pnl_usd - played.parent.mean_pnl_usd

    def metrics_of(self, step: int) -> Json | None:
        """`trained_models.eval_metrics`: what was measured, each with where."""
        metrics: Json = {}
        if (live := self.live.get(step)) is not None:
            result, against = live
            metrics["live"] = {
                "against": policy_name(self.lineage, against),
                "usd_an_agent_and_window": _finite(result.mean_usd),
                "interval_usd": [_finite(result.lo_usd), _finite(result.hi_usd)],
                "windows": result.windows,
                "last_window": result.window_id,
                "stage": result.stage,
                "decision": result.decision,
            }
        if (played := self.held_out.get(step)) is not None:
            lift, lo, hi = played.lift
            metrics["simulator"] = {
                "suite": played.suite,
                "windows": len(played.policy.pnl_usd),
                "mean_pnl_usd": played.policy.mean_pnl_usd,
                "base_mean_pnl_usd": played.base_mean_pnl_usd,
                "lift_usd": lift,
                "lift_interval_usd": [lo, hi],
                "win_rate": played.policy.win_rate,
                "invalid_rate": played.policy.invalid_rate,
            }
        if (log := self.log.get(step)) is not None:
            metrics["held_out_log"] = log.facts()
        return metrics or None


def read_measured(workspace: Workspace, *, is_ours: bool) -> Measured:
    """What is known of the workspace's lineage; what our simulator measured only where the game `is_ours`, the simulator's."""
    engine, lineage = workspace.store.engine, workspace.settings.lineage
    moves = read_moves(engine, lineage)
    looks = read_live_results(engine, lineage)
    live: dict[int, tuple[LiveResult, int]] = {}
    for move in moves:
        d = move.after
        if d.candidate is not None and d.rollout in looks:
            live[d.candidate] = (looks[d.rollout], d.incumbent)
    return Measured(
        lineage=lineage,
        held_out=read_held_out_results(engine, lineage) if is_ours else {},
        log={r.step: r.result for r in read_log_rows(engine, lineage) if isinstance(r.result, LogEvaluation)},
        live=live,
        service=read_service(moves),
        answers=count_answers(engine, lineage),
        answered=tuple(a.step for a in read_answered_agents(engine, lineage, workspace.now() - ANSWERED_WITHIN)),
        wandb_run_id=lineage if workspace.settings.training.wandb_logging == "on" else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """A row of `training_batches`, and what its model's row needs of it.

    Attributes:
        mean_score: The judge's, of the trajectories that trained.
        changed_windows: Windows that were grouped anew since they trained: their rows are not in the lists.
    """

    row: Json
    mean_score: float | None
    changed_windows: int


def make_batch_row(workspace: Workspace, batch: TrainedBatch, measured: Measured, *, batch_id: str) -> BatchRow:
    """The row of one checkpoint; its three lists have an entry per source row, in the same order."""
    rows: list[RankedRow] = []
    rewards: list[float] = []
    ranks: list[int] = []
    scores: list[float] = []
    changed = 0
    for judgment, ranked in read_ranked(workspace.store.engine, batch.judgment_keys):
        scores += [s.value for s in judgment.scores] if judgment is not None else []
        if judgment is None or not ranked:
            changed += 1
            continue
        reward_of, rank_of = _rank(judgment)
        rows += ranked
        rewards += [reward_of[r.own] for r in ranked]
        ranks += [rank_of[r.own] for r in ranked]
    row = {
        "id": batch_id,
        "batch_id": batch_id,
        "scenario_id": batch.window_id,
        "base_model": batch.base_model,
        "model_version": _version_of(batch.step),
        "trajectory_ids": to_json([r.trajectory_id for r in rows]).decode(),
        "rankings_json": to_json(ranks).decode(),
        "rewards_json": to_json(rewards).decode(),
        "training_loss": _finite(batch.metrics.get("loss/train")),
        "policy_improvement": _finite(measured.improvement_of(batch.step)),
        "status": "completed",
        "error": None,
        "created_at": batch.planned_at or batch.trained_at,
        "started_at": batch.planned_at,
        "completed_at": batch.trained_at,
    }
    mean = _finite(math.fsum(scores) / len(scores)) if scores else None
    return BatchRow(row=row, mean_score=mean, changed_windows=changed)


def make_model_row(batch: TrainedBatch, made: BatchRow, measured: Measured, *, now: datetime) -> Json:
    """A row of `trained_models`."""
    step = batch.step
    own = measured.service.get(step, Service())
    is_answering = own.status in (ServiceStatus.DEPLOYED, ServiceStatus.TESTING)
    return {
        "id": made.row["id"],
        "model_id": policy_name(measured.lineage, step),
        "version": _version_of(step),
        "base_model": batch.base_model,
        "training_batch": made.row["batch_id"],
        "status": own.status.value,
        "deployed_at": own.deployed_at,
        "archived_at": own.archived_at,
        "storage_path": batch.path,
        "avg_reward": made.mean_score,
        "eval_metrics": measured.metrics_of(step),
        "wandb_run_id": measured.wandb_run_id,
        "wandb_artifact_id": batch.wandb_artifact,
        "agents_using": measured.answered.count(step) if is_answering else 0,
        "total_inferences": measured.answers.get(step, 0),
        "created_at": batch.trained_at,
        "updated_at": now,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class RowJudgment:
    """What one source row of the game got: the score, reward and place of the trajectory that it is part of.

    Attributes:
        trained: Step that trained on it; None: none did, or it is not known.
    """

    row: RankedRow
    judgment: Judgment
    score: float
    explanation: str
    reward: float
    rank: int
    judged_at: datetime
    trained: int | None

    def reward_columns(self, batch_id: str | None) -> Json:
        """The columns of `trajectories`; `ai_judge_reward` is the judge's score, as the game's own scorer has it."""
        return {
            "id": self.row.source_id,
            "ai_judge_reward": self.score,
            "ai_judge_reasoning": self.explanation,
            "judged_at": self.judged_at,
            "used_in_training": batch_id is not None,
            "trained_in_batch": batch_id,
        }

    def judgment_row(self, id_: str) -> Json:
        """A row of `reward_judgments`."""
        j = self.judgment
        criteria = {"judgment": j.key, "compared": len(j.scores), "outcomes": j.outcomes}
        return {
            "id": id_,
            "trajectory_id": self.row.trajectory_id,
            "judge_model": j.judge_model,
            "judge_version": j.judge_version,
            "overall_score": self.score,
            "rank": self.rank,
            "normalized_score": self.reward,
            "group_id": j.group_id,
            "reasoning": self.explanation,
            "criteria_json": to_json(criteria).decode(),
            "judged_at": self.judged_at,
        }


def make_row_judgments(windows: Iterable[JudgedRows]) -> Iterator[RowJudgment]:
    """What each row of judged windows got."""
    for w in windows:
        reward_of, rank_of = _rank(w.judgment)
        score_of = {s.trajectory_id: s for s in w.judgment.scores}
        for row in w.rows:
            score = score_of[row.own]
            yield RowJudgment(
                row=row,
                judgment=w.judgment,
                score=score.value,
                explanation=score.explanation,
                reward=reward_of[row.own],
                rank=rank_of[row.own],
                judged_at=w.judged_at[row.own],
                trained=w.trained if row.own in w.learned else None,
            )


def _rank(judgment: Judgment) -> tuple[dict[str, float], dict[str, int]]:
    """Reward and place of each ranked member: 1 is the best, and members that tie share a place."""
    rewards = rewards_of(judgment)
    return rewards, {t: 1 + sum(other > r for other in rewards.values()) for t, r in rewards.items()}


def _version_of(step: int) -> str:
    """The game's own form, which it counts on from: `v1.0.3`."""
    return f"v1.0.{step}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
