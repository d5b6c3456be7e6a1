"""The end of a demo: its last checkpoint goes into the game, through the gateway, in stages that live windows decide.

Ten agents play one hour after the other and are answered by whatever is deployed for them. Each hour is prepared and looked at by
Dagster, as a live game's is. What an interrupted demo has played and decided is read back.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from babylon_rl.deployment.stages import Arm, MoveKind
from babylon_rl.gateway.process import running_gateway
from babylon_rl.pipeline.evaluation_gate import Gate, judge_evaluations
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.report import formatting
from babylon_rl.report.data import InTheGame, LiveArm, LiveMove
from babylon_rl.report.live_chart import make_points
from babylon_rl.report.screen import RunProgress
from babylon_rl.settings import Settings
from babylon_rl.simulator.recording import recorded_windows
from babylon_rl.simulator.spawn import AgentLineup, spawn
from babylon_rl.store.deployments import Move, read_deployment, read_moves
from babylon_rl.store.looks import Look, read_looks
from babylon_rl.store.rollout_hours import count_calls_by_hour
from babylon_rl.types import policy_name
from babylon_rl.windows import HourWindow

if TYPE_CHECKING:
    from babylon_rl.cli.runner import Runner

AGENTS: Final = 10
MOST_WINDOWS: Final = 48
_ENDS: Final = (MoveKind.PROMOTED, MoveKind.ROLLED_BACK, MoveKind.ENDED)
_DONE: Final = {
    MoveKind.PROMOTED: "answers all agents now",
    MoveKind.ROLLED_BACK: "was rolled back and answers nobody",
    MoveKind.ENDED: "was not shown to be better, and its rollout ended",
}


def deploy_in_game(
    workspace: Workspace,
    runner: "Runner",
    run: RunProgress,
    first: HourWindow,
    *,
    serving: Settings,
    into_foreign_game: bool = False,
) -> InTheGame | None:
    """Play hours through the gateway until the newest checkpoint's rollout is decided, at most `MOST_WINDOWS`.

    Args:
        workspace: Its newest checkpoint was evaluated.
        runner: Runs the assets of each hour.
        run: Shows the progress.
        first: The first hour to play.
        serving: Settings of the gateway: without the address of the demo's own server, it samples by itself and says which weights.
        into_foreign_game: As in `spawn`.

    Returns:
        What the report says of it; None: there is no checkpoint.
    """
    newest = workspace.ledger.latest()
    if newest is None:
        return None
    settings = workspace.settings
    may_begin = judge_evaluations(workspace, [newest.step])[newest.step].gate is Gate.PASSED
    if may_begin and _find_end(workspace, newest.step) is None:
        lineup = AgentLineup(
            learners=AGENTS,
            policy=settings.lineage,
            temperature=settings.serving.serve_temperature,
            through_gateway=True,
        )
        with (
            run.phase("deploy", newest.name, total=MOST_WINDOWS) as phase,
            running_gateway(serving, into_foreign_game=into_foreign_game) as url,
        ):
            for hour in first.until(first.next(MOST_WINDOWS - 1)):
                if not recorded_windows(workspace.game, [hour]):
                    spawn(
                        workspace.game,
                        [hour],
                        lineup,
                        seed=settings.seed,
                        inference_url=url,
                        api_key=None if settings.gateway.key is None else settings.gateway.key.get_secret_value(),
                        into_foreign_game=into_foreign_game,
                    )
                resources = {"workspace": workspace}
                runner.materialize(
                    "windows", hour, hour, assets=["raw_trajectories", "market_outcomes"], resources=resources
                )
                runner.materialize("deploy", hour, hour, resources=resources)
                deployment = read_deployment(workspace.store.engine, settings.lineage)
                phase(1, note=f"{hour}: {deployment.stage.value}")
                if _find_end(workspace, newest.step) is not None or deployment.rollout is None:
                    break
            told = describe_rollout(workspace, newest.step)
            phase(0, note=told.decision)
    return describe_rollout(workspace, newest.step)


def describe_rollout(workspace: Workspace, step: int) -> InTheGame:
    """The newest rollout of a step, for the report; where it never began: why."""
    engine, lineage = workspace.store.engine, workspace.settings.lineage
    level = 1 - workspace.settings.deployment.alpha
    moves = read_moves(engine, lineage)
    begun = next((m for m in reversed(moves) if m.after.candidate == step and m.after.rollout is not None), None)
    if begun is None or begun.after.rollout is None:
        why = judge_evaluations(workspace, [step])[step].sentence
        return InTheGame(decision=f"Nothing was deployed: {why}.", calls=0, level=level)
    rollout = begun.after.rollout
    looks = read_looks(engine, lineage, rollout)
    own = [m for m in moves if m.subject == step and m.kind not in (MoveKind.PAUSED, MoveKind.RESUMED)]
    facts: Mapping[str, object] = looks[-1].facts if looks else {}
    names = {Arm.CANDIDATE: policy_name(lineage, step), Arm.INCUMBENT: begun.after.incumbent_name}
    last = max(HourWindow.parse(look.window_id) for look in looks) if looks else HourWindow.parse("2000-01-01T00:00")
    return InTheGame(
        decision=_say_decision(names, own, looks),
        calls=sum(count_calls_by_hour(engine, rollout, up_to=last).values()),
        level=level,
        arms=tuple(_make_arm(names[arm], arm, facts) for arm in (Arm.CANDIDATE, Arm.INCUMBENT)) if looks else (),
        points=tuple(make_points(looks)),
        moves=tuple(LiveMove(window_id=m.window_id, kind=m.kind.value, reason=m.reason) for m in own),
    )


def _find_end(workspace: Workspace, step: int) -> Move | None:
    moves = read_moves(workspace.store.engine, workspace.settings.lineage)
    return next((m for m in reversed(moves) if m.subject == step and m.kind in _ENDS), None)


def _say_decision(names: Mapping[Arm, str], moves: list[Move], looks: list[Look]) -> str:
    end = next((m.kind for m in reversed(moves) if m.kind in _ENDS), None)
    name = names[Arm.CANDIDATE]
    state = f"{name} {_DONE[end]}" if end is not None else f"{name} is still on trial ({moves[-1].after.stage.value})"
    known = [x for x in looks if x.mean_usd is not None and x.lo_usd is not None and x.hi_usd is not None]
    if not known:
        return f"{state}, after {formatting.count(len(looks), 'window')}."
    x = known[-1]
    figures = [v for v in (x.mean_usd, x.lo_usd, x.hi_usd) if v is not None]
    mean, lo, hi = (formatting.money(v, digits=formatting.money_digits(figures), signed=True) for v in figures)
    return (
        f"{state}: {mean} an agent and window beside {names[Arm.INCUMBENT]} [{lo}, {hi}], "
        f"{formatting.count(x.windows, 'window')}."
    )


def _make_arm(name: str, arm: Arm, facts: Mapping[str, object]) -> LiveArm:
    def read(key: str) -> float | None:
        value = facts.get(key)
        return float(value) if isinstance(value, int | float) else None

    share = read("candidate_volume_share")
    own = share if arm is Arm.CANDIDATE or share is None else 1 - share
    return LiveArm(
        name=name,
        arm=arm.value,
        agent_windows=int(read(f"{arm.value}_agent_hours") or 0),
        mean_pnl=read(f"{arm.value}_mean_pnl_usd"),
        win_rate=read(f"{arm.value}_win_rate"),
        right_move_rate=read(f"{arm.value}_timing_share"),
        invalid_rate=read(f"{arm.value}_invalid_share"),
        volume_share=own,
    )
