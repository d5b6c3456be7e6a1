"""Is a checkpoint better than its base? It depends on the game that it was trained in what can be said.

Where every window that it was trained on was played in our simulator, both play the same held-out windows of that, and
the result is a lift with an interval. In any other game it is asked about held-out windows of the log (`held_out_log.py`).
Which game it was is read from what trained: the simulator's system prompt, or another.

Held-out markets come from a world of their own (`HELD_OUT_WORLD`): no seed of a training window can draw them.
Every policy plays at the temperature it is served with, through the endpoint it is served from.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from babylon_rl.common.canonical import digest
from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.errors import ConfigError, TransientError
from babylon_rl.pipeline.held_out_log import MIN_WINDOWS, evaluate_on_log
from babylon_rl.pipeline.respondents import open_client
from babylon_rl.pipeline.workspace import Workspace, running_policy_server
from babylon_rl.policy.process import base_of
from babylon_rl.store.evaluations import CurveRow, PolicyResult, read_curve, read_evaluation, write_evaluation
from babylon_rl.store.log_evaluations import (
    LogEvaluation,
    NotEvaluated,
    held_out_windows,
    read_log_rows,
    read_system_prompts,
    write_log_evaluation,
)
from babylon_rl.training.checkpoint_store import base_digest
from babylon_rl.training.factory import locate_policy
from babylon_rl.training.trainer import ServedPolicy
from babylon_rl.types import Checkpoint, Json, policy_name
from babylon_rl.windows import HourWindow

if TYPE_CHECKING:  # playing needs numpy and an HTTP client; a code location that only lists assets does not
    from babylon_rl.common.statistics import Interval
    from babylon_rl.simulator.market import Market

logger = logging.getLogger(__name__)

HELD_OUT_WORLD: Final = 2**40  # BABYLON_SEED stays below 1e9
HELD_OUT_START: Final = HourWindow.parse("2000-01-01T00:00")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A checkpoint beside its base on the same windows."""

    step: int
    suite: str
    base: PolicyResult
    policy: PolicyResult
    lift: "Interval"

    def facts(self) -> Json:
        """Small numbers for the asset's metadata."""
        return {
            "evaluated": True,
            "evaluation": "simulator",
            "policy": self.policy.name,
            "suite": self.suite,
            "mean_pnl_usd": round(self.policy.mean_pnl_usd, 2),
            "base_mean_pnl_usd": round(self.base.mean_pnl_usd, 2),
            "lift_usd": round(self.lift.mean, 2),
            "lift_ci95_usd": f"[{self.lift.lo:.2f}, {self.lift.hi:.2f}]",
            "win_rate": round(self.policy.win_rate, 4),
            "invalid_rate": round(self.policy.invalid_rate, 4),
        }


@dataclass(frozen=True, slots=True)
class Suite:
    """Which windows are held out, how they are played, by what, and against which base; its name tells all four.

    Attributes:
        base_digest: Of the base's files, or of its name where the weights are elsewhere.
    """

    windows: int
    temperature: float
    base_digest: str

    @property
    def name(self) -> str:
        from babylon_rl.simulator import version

        played_by = f"simulator-{version.SIMULATOR_VERSION}-base-{self.base_digest[:12]}"
        return f"held-out-{self.windows}w-T{self.temperature:g}-{played_by}"

    def markets(self) -> "list[Market]":
        """The same markets for every policy of every lineage."""
        from babylon_rl.simulator.market import make_market

        return [make_market(HELD_OUT_START.next(i), HELD_OUT_WORLD) for i in range(self.windows)]


def suite_of(workspace: Workspace) -> Suite:
    """The suite that the settings describe."""
    s = workspace.settings
    return Suite(
        windows=s.serving.evaluation_windows,
        temperature=s.serving.serve_temperature,
        base_digest=_digest_base(workspace),
    )


def evaluate(
    workspace: Workspace, checkpoint: Checkpoint, *, progress: Progress = ignore_progress
) -> Comparison | LogEvaluation | NotEvaluated:
    """Say what can be said of a checkpoint, in the game that it was trained in.

    Args:
        workspace: Its ledger recorded the checkpoint.
        checkpoint: Of the workspace's lineage.
        progress: Called after each decision or answer.
    """
    if not was_trained_in_simulator(workspace, checkpoint):
        return evaluate_on_log(workspace, checkpoint, base_digest=_digest_base(workspace), progress=progress)
    if checkpoint.trainer == "cpu":
        return evaluate_checkpoint(workspace, checkpoint.step, progress=progress)
    try:
        return evaluate_checkpoint(workspace, checkpoint.step, progress=progress)
    except (ConfigError, TransientError) as e:  # a paid checkpoint exists, whether anything can be said of it or not
        result = NotEvaluated(reason=str(e), try_again=isinstance(e, TransientError))
        suite = suite_of(workspace).name
        write_log_evaluation(workspace.store.engine, checkpoint.lineage, checkpoint.step, suite, result)
        return result


def was_trained_in_simulator(workspace: Workspace, checkpoint: Checkpoint) -> bool:
    """Whether all that a checkpoint and its parents trained on shows the simulator's own system prompt."""
    from babylon_rl.simulator.observation import SYSTEM_PROMPT

    prompts = read_system_prompts(workspace.store.engine, checkpoint.lineage, checkpoint.step)
    return prompts == frozenset({SYSTEM_PROMPT})


def evaluate_checkpoint(
    workspace: Workspace,
    step: int,
    *,
    suite: Suite | None = None,
    progress: Progress = ignore_progress,
) -> Comparison:
    """Play the suite with a checkpoint and with its base; a result stored before is read back.

    Args:
        workspace: Its settings name the suite and the endpoint.
        step: Checkpoint of the workspace's lineage; 0 compares the base with itself.
        suite: None: the one that the settings describe.
        progress: Called after each decision.
    """
    from babylon_rl.common.statistics import paired_bootstrap

    suite = suite or suite_of(workspace)
    missing = [s for s in sorted({0, step}) if _read(workspace, s, suite) is None]
    if missing:
        with _served(workspace, step) as served:
            for s in missing:
                _write(workspace, s, suite, asyncio.run(_play(served, workspace, s, suite, progress)))
    base, policy = _read(workspace, 0, suite), _read(workspace, step, suite)
    if base is None or policy is None:
        raise AssertionError("an evaluation that was just written cannot be read")
    return Comparison(
        step=step, suite=suite.name, base=base, policy=policy, lift=paired_bootstrap(base.pnl_usd, policy.pnl_usd)
    )


def oracle_mean_pnl_usd(suite: Suite) -> float:
    """Mean P&L, in US dollars a window, of a player who knows the hidden state, on the same windows."""
    from babylon_rl.simulator.play import oracle_pnl_usd

    pnl = [oracle_pnl_usd(m) for m in suite.markets()]
    return sum(pnl) / len(pnl)


@contextmanager
def _served(workspace: Workspace, step: int) -> Iterator[ServedPolicy]:
    """Where a step and its base are asked. What we serve ourselves, the base alone (step 0) too, is served for the block."""
    settings = workspace.settings
    checkpoint = next((c for c in workspace.ledger.checkpoints() if c.step == step), None)
    if checkpoint is not None and checkpoint.trainer != "cpu":
        yield locate_policy(settings.training, checkpoint, inference_url=settings.serving.inference_url)
        return
    with running_policy_server(settings) as url:
        if checkpoint is None:
            base = policy_name(settings.lineage, 0)
            yield ServedPolicy(base_url=url, model=base, base_model=base)
        else:
            yield locate_policy(settings.training, checkpoint, inference_url=url)


async def _play(
    served: ServedPolicy, workspace: Workspace, step: int, suite: Suite, progress: Progress
) -> PolicyResult:
    from babylon_rl.simulator.play import AgentSlot, play
    from babylon_rl.simulator.players import PolicyPlayer

    name = policy_name(workspace.settings.lineage, step)
    async with open_client(workspace.settings, served) as client:
        asked = served.model if step else served.base_model
        slot = AgentSlot("held-out", PolicyPlayer(client, asked, suite.temperature))
        played = await play(suite.markets(), [slot], seed=HELD_OUT_WORLD, progress=progress)
    decisions = sum(len(p.moves) for p in played)
    return PolicyResult(
        name=name,
        pnl_usd=tuple(round(p.pnl_usd, 4) for p in played),
        invalid_rate=sum(p.invalid for p in played) / decisions,
    )


def _read(workspace: Workspace, step: int, suite: Suite) -> PolicyResult | None:
    return read_evaluation(workspace.store.engine, workspace.settings.lineage, step, suite.name)


def _write(workspace: Workspace, step: int, suite: Suite, result: PolicyResult) -> None:
    from babylon_rl.common.statistics import paired_bootstrap

    base = result if step == 0 else _read(workspace, 0, suite)
    if base is None:
        raise AssertionError("the base plays first")
    lift = paired_bootstrap(base.pnl_usd, result.pnl_usd)
    lineage = workspace.settings.lineage
    write_evaluation(workspace.store.engine, lineage, step, suite.name, result, base=base, lift=lift)
    logger.info("evaluated policy=%s suite=%s mean_pnl_usd=%.2f", result.name, suite.name, result.mean_pnl_usd)


def curve(workspace: Workspace) -> list[CurveRow]:
    """Every evaluated checkpoint of the lineage on the present suite, by step."""
    return read_curve(workspace.store.engine, workspace.settings.lineage, suite_of(workspace).name)


def lift_by_step(workspace: Workspace) -> "dict[int, Interval]":
    """Every evaluated checkpoint's lift over the base on the present suite, in US dollars a window."""
    from babylon_rl.common.statistics import paired_bootstrap

    rows = curve(workspace)
    return {r.step: paired_bootstrap(rows[0].result.pnl_usd, r.result.pnl_usd, resamples=2000) for r in rows}


def unevaluated(workspace: Workspace, *, even_if_refused: bool = False) -> list[int]:
    """Steps of the lineage of which nothing is said yet and something may be, newest first.

    A checkpoint of which nothing could be said is not asked about for ever: again only once that may have changed by itself.

    Args:
        workspace: Its ledger has the checkpoints.
        even_if_refused: Also those of which nothing could be said, as a person may have changed what was missing.
    """
    said = {r.step for r in curve(workspace)}
    engine, lineage = workspace.store.engine, workspace.settings.lineage
    rows = {r.step: r.result for r in read_log_rows(engine, lineage)}
    missing = []
    for c in reversed(workspace.ledger.checkpoints()):
        result = rows.get(c.step)
        if c.step in said or isinstance(result, LogEvaluation):
            continue
        if (
            result is None
            or even_if_refused
            or (result.try_again and len(held_out_windows(engine, lineage, c.step)) >= MIN_WINDOWS)
        ):
            missing.append(c.step)
    return missing


def describe_evaluation(workspace: Workspace, lineage: str, step: int) -> str | None:
    """What was said of a checkpoint, in a sentence without its full stop; None where nothing was."""
    engine = workspace.store.engine
    row = next((r for r in read_log_rows(engine, lineage) if r.step == step), None)
    suite = suite_of(workspace).name
    base, policy = (read_evaluation(engine, lineage, s, suite) for s in (0, step))
    if base is not None and policy is not None:
        return (
            f"in the simulator, on {len(policy.pnl_usd)} held-out windows: mean P&L {_dollars(policy.mean_pnl_usd)} a window, "
            f"its base's {_dollars(base.mean_pnl_usd)}"
        )
    return None if row is None else row.result.sentence()


def _dollars(value: float) -> str:
    return f"{'−' * (value < 0)}${abs(value):,.2f}"


def _digest_base(workspace: Workspace) -> str:
    training = workspace.settings.training
    base: Path = base_of(training)
    return base_digest(base) if (base / "config.json").is_file() else digest(training.base_model)
