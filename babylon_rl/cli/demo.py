"""The whole loop on one machine, through Dagster: play, judge, train, evaluate against the base, and deploy in the game.

Each step first looks in the database for what is already done, so an interrupted demo resumes.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa
from rich.console import Console

from babylon_rl.cli.demo_rollout import deploy_in_game
from babylon_rl.common.progress import Progress
from babylon_rl.common.statistics import paired_bootstrap, share_of_gap
from babylon_rl.database.migrate import upgrade
from babylon_rl.errors import ConfigError
from babylon_rl.judging.factory import open_judge
from babylon_rl.pipeline import evaluate
from babylon_rl.pipeline.workspace import Workspace, open_workspace, running_policy_server
from babylon_rl.report import formatting
from babylon_rl.report.data import (
    CurvePoint,
    DemoReport,
    Exploring,
    Leaderboard,
    LeaderRow,
    Lift,
    PolicyFigures,
    to_json,
)
from babylon_rl.report.page import render
from babylon_rl.report.screen import RunProgress, run_progress, show
from babylon_rl.settings import Settings
from babylon_rl.simulator.recording import recorded_windows
from babylon_rl.simulator.spawn import AgentLineup, spawn
from babylon_rl.simulator.strategies import GUIDE_KINDS
from babylon_rl.store.evaluations import PolicyResult
from babylon_rl.types import policy_name
from babylon_rl.windows import HourWindow

if TYPE_CHECKING:
    from babylon_rl.cli.runner import Runner

DEMO_START: Final = HourWindow.parse("2025-01-15T00:00")

NEXT_COMMANDS: Final = (  # a purpose longer than 22 characters is cut on a screen of 80 columns
    ("make ui", "this run in Dagster"),
    ("babylon-rl check-windows", "which windows train"),
    ("babylon-rl deployment", "who answers, and why"),
    ("babylon-rl spawn-test-agents --policy deployed", "play what is deployed"),
    ("babylon-rl train --iterations 1", "one more checkpoint"),
    ("babylon-rl psql", "all tables, in SQL"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """How much the demo plays and trains.

    Attributes:
        iterations: Checkpoints to train, one after the other.
        windows: Windows each of them trains on.
        learners: Agents of the current policy in every window; one scripted rival of each kind plays along, untrained.
    """

    iterations: int = 12
    windows: int = 64
    learners: int = 8

    def window_range(self, iteration: int) -> tuple[HourWindow, HourWindow]:
        """First and last window of iteration 1, 2, …."""
        first = DEMO_START.next((iteration - 1) * self.windows)
        return first, first.next(self.windows - 1)


def run_demo(
    settings: Settings, plan: DemoPlan, console: Console, *, out: Path, into_foreign_game: bool = False
) -> DemoReport:
    """Run the loop and write `report.html` and `report.json` into `out`.

    Raises:
        ConfigError: BABYLON_HOME holds a training of something else under this lineage, or the game's tables are not ours.
    """
    from babylon_rl.cli.runner import open_runner
    from babylon_rl.cli.services import prepare_dagster

    out.mkdir(parents=True, exist_ok=True)  # before minutes of play, not after
    with run_progress(console) as run:
        with run.phase("start", "database, Dagster, policy server"):
            upgrade(settings.database)
            prepare_dagster(settings)
            with open_workspace(settings) as workspace:
                workspace.refuse_foreign_game("demo", into_foreign_game=into_foreign_game)
            server = running_policy_server(settings)
            url = server.__enter__()
        try:
            with open_workspace(settings.changed(serving={"inference_url": url})) as workspace:
                _refuse_foreign_training(workspace, plan)
                with open_runner() as runner:
                    loop = _Loop(workspace, plan, run, runner, into_foreign_game=into_foreign_game)
                    loop.evaluate_base()
                    for iteration in range(1, plan.iterations + 1):
                        loop.iterate(iteration)
                    sampled = loop.evaluate_sampled()
                    first = plan.window_range(plan.iterations)[1].next()
                    in_the_game = deploy_in_game(
                        workspace, runner, run, first, serving=settings, into_foreign_game=into_foreign_game
                    )
                with run.phase("report"):
                    report = build_report(workspace, plan, seconds=run.seconds, sampled=sampled)
        finally:
            server.__exit__(None, None, None)
    report = replace(report, in_the_game=in_the_game, seconds={k: round(v, 2) for k, v in run.seconds.items()})
    html, numbers = out / "report.html", out / "report.json"
    html.write_text(render(report), encoding="utf-8")
    numbers.write_bytes(to_json(report))
    show(report, console, html_path=_shorten_path(html), json_path=_shorten_path(numbers))
    return report


class _Loop:
    """The steps of one demo; each skips what the database already holds."""

    def __init__(
        self, workspace: Workspace, plan: DemoPlan, run: RunProgress, runner: "Runner", *, into_foreign_game: bool
    ) -> None:
        self.workspace, self.plan, self.run, self.runner = workspace, plan, run, runner
        self.into_foreign_game = into_foreign_game

    def _resources(self, phase: Progress) -> dict[str, object]:
        return {"workspace": self.workspace, "progress": phase}

    def evaluate_base(self) -> None:
        """The base plays the held-out windows before anything is trained."""
        decisions = self.workspace.settings.serving.evaluation_windows * 3
        with self.run.phase("evaluate", "base policy", total=decisions) as phase:
            result = evaluate.evaluate_checkpoint(self.workspace, 0, progress=phase)
            phase(0, note=f"mean {formatting.money(result.base.mean_pnl_usd, digits=0)}")

    def evaluate_sampled(self) -> evaluate.Comparison | None:
        """Evaluate base and last checkpoint at the exploring temperature too; None where that is the serving temperature."""
        settings, latest = self.workspace.settings, self.workspace.ledger.latest()
        if latest is None or settings.serving.explore_temperature == settings.serving.serve_temperature:
            return None
        suite = replace(evaluate.suite_of(self.workspace), temperature=settings.serving.explore_temperature)
        with self.run.phase("evaluate", "as explored", total=2 * suite.windows * 3) as phase:
            result = evaluate.evaluate_checkpoint(self.workspace, latest.step, suite=suite, progress=phase)
            phase(0, note=f"lift {result.lift.mean:+,.0f} [{result.lift.lo:+,.0f}, {result.lift.hi:+,.0f}]")
        return result

    def iterate(self, iteration: int) -> None:
        """Play with checkpoint k − 1, judge, train checkpoint k, evaluate it."""
        plan, workspace = self.plan, self.workspace
        first, last = plan.window_range(iteration)
        of = f"iteration {iteration} of {plan.iterations}"
        self._play(iteration, of)
        if not workspace.ledger.trained_in(last):
            with self.run.phase("judge", of, total=plan.windows) as phase:
                self.runner.materialize("windows", first, last, resources=self._resources(phase))
            with self.run.phase("train", of) as phase:
                self.runner.materialize(
                    "policy",
                    last,
                    last,
                    assets=["trained_checkpoint"],
                    config={"trained_checkpoint": {"windows_per_iteration": plan.windows}},
                    resources=self._resources(phase),
                )
        decisions = workspace.settings.serving.evaluation_windows * 3
        with self.run.phase("evaluate", of, total=decisions) as phase:
            self.runner.materialize(
                "policy", last, last, assets=["policy_evaluation"], resources=self._resources(phase)
            )
            rows = evaluate.curve(workspace)
            lift = paired_bootstrap(rows[0].result.pnl_usd, rows[-1].result.pnl_usd)
            phase(
                0,
                note=f"{formatting.money(rows[-1].result.mean_pnl_usd, digits=0)}, lift {lift.mean:+,.0f} [{lift.lo:+,.0f}, {lift.hi:+,.0f}]",
            )

    def _play(self, iteration: int, of: str) -> None:
        plan, workspace = self.plan, self.workspace
        first, last = plan.window_range(iteration)
        windows = list(first.until(last))
        if len(recorded_windows(workspace.game, windows)) == len(windows):
            return
        lineup = AgentLineup(
            learners=plan.learners,
            policy=policy_name(workspace.settings.lineage, iteration - 1),
            rivals=True,
            temperature=workspace.settings.serving.explore_temperature,
        )
        decisions = len(windows) * (plan.learners + len(GUIDE_KINDS)) * 3
        with self.run.phase("play", of, total=decisions) as phase:
            spawned = spawn(
                workspace.game,
                windows,
                lineup,
                seed=workspace.settings.seed,
                inference_url=workspace.settings.serving.inference_url,
                windows_at_once=len(windows),
                into_foreign_game=self.into_foreign_game,
                progress=phase,
            )
            phase(0, note=f"{spawned.rows:,} rows, mean {formatting.money(spawned.mean_pnl_usd, digits=0)}")


def _refuse_foreign_training(workspace: Workspace, plan: DemoPlan) -> None:
    ours = {str(plan.window_range(i)[1]) for i in range(1, plan.iterations + 1)}
    for checkpoint in workspace.ledger.checkpoints():
        if checkpoint.window_id not in ours and checkpoint.window_id <= max(ours):
            raise ConfigError(
                f"lineage {checkpoint.lineage!r} in this BABYLON_HOME holds {checkpoint.name}, trained in window "
                f"{checkpoint.window_id}, which is not this demo's; set BABYLON_HOME or BABYLON_LINEAGE to a new one"
            )


def build_report(
    workspace: Workspace, plan: DemoPlan, *, seconds: Mapping[str, float], sampled: evaluate.Comparison | None
) -> DemoReport:
    """Collect the results from the database, so that a resumed demo reports the same numbers."""
    settings = workspace.settings
    rows = evaluate.curve(workspace)
    base, final = rows[0].result, rows[-1].result
    suite = evaluate.suite_of(workspace)
    oracle = evaluate.oracle_mean_pnl_usd(suite)
    checkpoints = {c.step: c for c in workspace.ledger.checkpoints()}
    curve = []
    for row in rows:
        r = row.result
        mean = paired_bootstrap([0.0] * len(r.pnl_usd), r.pnl_usd)
        checkpoint = checkpoints.get(row.step)
        following = checkpoints.get(row.step + 1)
        curve.append(
            CurvePoint(
                step=row.step,
                explored_mean_pnl=None if following is None else workspace.store.mean_pnl_usd(following.windows),
                mean_pnl=mean.mean,
                lo=mean.lo,
                hi=mean.hi,
                win_rate=r.win_rate,
                invalid_rate=r.invalid_rate,
                loss=None if checkpoint is None else checkpoint.metrics.get("loss/train"),
            )
        )
    return DemoReport(
        windows=suite.windows,
        training_windows=sum(len(c.windows) for c in checkpoints.values()),
        iterations=len(checkpoints),
        seed=settings.seed,
        temperature=settings.serving.serve_temperature,
        explore_temperature=settings.serving.explore_temperature,
        judge=open_judge(settings.judge).model,
        base=_report_figures(base),
        final=_report_figures(final),
        oracle_mean_pnl=oracle,
        lift=_lift(base, final, oracle),
        curve=tuple(curve),
        leaderboard=_leaderboard(workspace, plan.window_range(plan.iterations)[1]),
        seconds=dict(seconds),
        machine=f"{os.cpu_count()} cores",
        next_commands=tuple((_complete_path(c), what) for c, what in NEXT_COMMANDS),
        exploring=None
        if sampled is None
        else Exploring(
            temperature=settings.serving.explore_temperature,
            base_mean_pnl=sampled.base.mean_pnl_usd,
            final_mean_pnl=sampled.policy.mean_pnl_usd,
            lift=_lift(sampled.base, sampled.policy, oracle),
        ),
        paired=tuple(b - a for a, b in zip(base.pnl_usd, final.pnl_usd, strict=True)),
    )


def _report_figures(r: PolicyResult) -> PolicyFigures:
    return PolicyFigures(name=r.name, mean_pnl=r.mean_pnl_usd, win_rate=r.win_rate, invalid_rate=r.invalid_rate)


def _lift(base: PolicyResult, final: PolicyResult, oracle: float) -> Lift:
    interval = paired_bootstrap(base.pnl_usd, final.pnl_usd)
    share = share_of_gap(base.mean_pnl_usd, final.mean_pnl_usd, oracle)
    return Lift(mean=interval.mean, ci95=(interval.lo, interval.hi), share_of_oracle_gap=share)


def _leaderboard(workspace: Workspace, window: HourWindow) -> Leaderboard:
    """Every agent of one window, rivals included, by its final P&L."""
    query = sa.text("""
        SELECT DISTINCT ON (t.agent_id) t.agent_id, t.final_pnl, t.archetype, l.model
        FROM trajectories t JOIN llm_call_logs l USING (trajectory_id)
        WHERE t.window_id = :w ORDER BY t.agent_id, t.start_time DESC""")
    with workspace.game.connect() as conn:
        results = conn.execute(query, {"w": str(window)}).all()
    judgment = workspace.store.judgment(window)
    scores = {} if judgment is None else {s.trajectory_id: s for s in judgment.scores}
    ranked = sorted(results, key=lambda r: (-r.final_pnl, r.agent_id))
    rows = []
    for rank, r in enumerate(ranked, start=1):
        score = scores.get(f"{window}/{r.agent_id}")
        left_out = None if judgment is None else judgment.left_out.get(f"{window}/{r.agent_id}")
        unscored = f"left out of the ranking: {left_out}" if left_out else "plays along, is not judged or trained on"
        rows.append(
            LeaderRow(
                rank=rank,
                agent_id=r.agent_id,
                archetype=r.archetype,
                policy=r.model,
                pnl_usd=r.final_pnl,
                score=None if score is None else score.value,
                explanation=unscored if score is None else score.explanation,
            )
        )
    return Leaderboard(window_id=str(window), rows=tuple(rows))


def _complete_path(command: str) -> str:
    """The command with our path where the shell does not find it: `make demo` does not put the environment on the PATH."""
    program, _, rest = command.partition(" ")
    if program != "babylon-rl" or shutil.which(program):
        return command
    return f"{_shorten_path(Path(sys.executable).parent / program)} {rest}".strip()


def _shorten_path(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
