"""Does a checkpoint earn more than its base? Both play the same held-out windows; the result is a lift with an interval.

Held-out markets come from a world of their own (`HELD_OUT_WORLD`): no seed of a training window can draw them.
Every policy plays at the temperature it is served with, through the endpoint it is served from.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.pipeline.workspace import Workspace, running_policy_server
from babylon_rl.store.evaluations import CurveRow, PolicyResult, read_curve, read_evaluation, write_evaluation
from babylon_rl.types import Json, policy_name
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
    """Which windows are held out, and how they are played; its name tells both."""

    windows: int
    temperature: float

    @property
    def name(self) -> str:
        return f"held-out-{self.windows}w-T{self.temperature:g}"

    def markets(self) -> "list[Market]":
        """The same markets for every policy of every lineage."""
        from babylon_rl.simulator.market import make_market

        return [make_market(HELD_OUT_START.next(i), HELD_OUT_WORLD) for i in range(self.windows)]


def suite_of(workspace: Workspace) -> Suite:
    """The suite that the settings describe."""
    s = workspace.settings
    return Suite(windows=s.serving.evaluation_windows, temperature=s.serving.serve_temperature)


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
        with running_policy_server(workspace.settings) as url:
            for s in missing:
                _write(workspace, s, suite, asyncio.run(_play(url, workspace, s, suite, progress)))
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


async def _play(url: str, workspace: Workspace, step: int, suite: Suite, progress: Progress) -> PolicyResult:
    from babylon_rl.policy.client import PolicyClient
    from babylon_rl.simulator.play import AgentSlot, play
    from babylon_rl.simulator.players import PolicyPlayer

    name = policy_name(workspace.settings.lineage, step)
    async with PolicyClient(url) as client:
        slot = AgentSlot("held-out", PolicyPlayer(client, name, suite.temperature))
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


def unevaluated(workspace: Workspace) -> list[int]:
    """Steps of the lineage without an evaluation on the present suite, newest first; of the CPU trainer, whose are served here."""
    done = {r.step for r in curve(workspace)}
    return [c.step for c in reversed(workspace.ledger.checkpoints()) if c.step not in done and c.trainer == "cpu"]
