"""An example report: synthetic numbers of about the size that real runs give."""

import random
from statistics import mean

import pytest

from babylon_rl.common.statistics import paired_bootstrap, share_of_gap, win_rate
from babylon_rl.report.data import (
    CurvePoint,
    DemoReport,
    InTheGame,
    Leaderboard,
    LeaderRow,
    Lift,
    LiveArm,
    LiveMove,
    LivePoint,
    PolicyFigures,
)

MEANS = (-26.0, 18.0, 71.0, 128.0, 205.0, 262.0, 321.0, 388.0, 437.0)


def example(*, windows: int = 100) -> DemoReport:
    rng = random.Random(11)
    base = [rng.gauss(-26, 260) for _ in range(windows)]
    final = [b * 0.5 + rng.gauss(455, 240) for b in base]
    lift = paired_bootstrap(base, final)
    curve = tuple(
        CurvePoint(
            step=i,
            explored_mean_pnl=None if i == 8 else m * 0.42 - 12 + rng.gauss(0, 9),
            mean_pnl=m,
            lo=m - 52,
            hi=m + 49,
            win_rate=0.41 + 0.065 * i,
            invalid_rate=0.02 / (i + 1),
            loss=None if i == 0 else -0.0123 - i * 0.001,
        )
        for i, m in enumerate((mean(base), *MEANS[1:8], mean(final)))
    )
    rows = tuple(
        LeaderRow(
            rank=i + 1,
            agent_id=agent,
            policy=policy,
            pnl_usd=pnl,
            score=1 - i / 7,
            explanation=f"Ended {'above' if pnl > 0 else 'below'} where it began; {94 - 13 * i} % of what was attainable after fees.",
        )
        for i, (agent, policy, pnl) in enumerate(
            (
                ("policy-03", "babylon-mmo@8", 812.4),
                ("policy-01", "babylon-mmo@8", 640.15),
                ("momentum-2", "scripted", 402.0),
                ("policy-02", "babylon-mmo@8", 377.9),
                ("balanced-1", "scripted", 96.33),
                ("conservative-1", "scripted", 0.0),
                ("aggressive-1", "scripted", -214.2),
                ("contrarian-1", "scripted", -508.75),
            )
        )
    )
    return DemoReport(
        windows=windows,
        training_windows=512,
        iterations=8,
        seed=1,
        temperature=0.0,
        explore_temperature=1.0,
        judge="hindsight",
        base=PolicyFigures(name="babylon-mmo@0", mean_pnl=mean(base), win_rate=win_rate(base) or 0, invalid_rate=0.0),
        final=PolicyFigures(
            name="babylon-mmo@8", mean_pnl=mean(final), win_rate=win_rate(final) or 0, invalid_rate=0.0017
        ),
        oracle_mean_pnl=731.5,
        lift=Lift(
            mean=lift.mean,
            ci95=(lift.lo, lift.hi),
            share_of_oracle_gap=share_of_gap(mean(base), mean(final), 731.5),
        ),
        curve=curve,
        leaderboard=Leaderboard(window_id="2025-01-15T10:00", rows=rows),
        seconds={
            "start": 6.1,
            "play": 121.4,
            "outcomes and groups": 11.2,
            "judge": 3.9,
            "train": 206.3,
            "evaluate": 48.8,
            "report": 0.4,
        },
        machine="2 cores",
        next_commands=(
            ("make ui", "browse every materialization in Dagster, on loopback"),
            ("babylon-rl check-windows", "see which windows are ready to train on"),
            ("babylon-rl train --iterations 10", "go on training from the last checkpoint"),
            ('psql "$(babylon-rl db-url)"', "look at the tables yourself"),
        ),
        paired=tuple(f - b for b, f in zip(base, final, strict=True)),
        in_the_game=rollout(),
    )


def rollout() -> InTheGame:
    """A rollout of 30 windows that ends with a promotion."""
    windows = [f"2025-02-{5 + i // 24:02d}T{i % 24:02d}:00" for i in range(30)]
    points = tuple(
        LivePoint(
            window_id=w,
            stage="canary" if i < 6 else "half",
            mean=None if i < 9 else 380 + 40 / (i + 1),
            lo=None if i < 9 else 380 - 4200 / (i + 1),
            hi=None if i < 9 else 380 + 4200 / (i + 1),
        )
        for i, w in enumerate(windows)
    )
    figures = {"win_rate": 0.61, "right_move_rate": 0.58, "invalid_rate": 0.0, "volume_share": 0.44}
    return InTheGame(
        decision="babylon-mmo@8 answers all agents: +$381 an agent and window beside babylon-mmo@0 [+$241, +$521], 30 windows.",
        calls=900,
        level=0.95,
        arms=(
            LiveArm(name="babylon-mmo@8", arm="candidate", agent_windows=126, mean_pnl=352.0, **figures),
            LiveArm(
                name="babylon-mmo@0",
                arm="incumbent",
                agent_windows=174,
                mean_pnl=-29.0,
                **figures | {"right_move_rate": None},
            ),
        ),
        points=points,
        moves=(
            LiveMove(window_id=windows[0], kind="canary", reason="It passed its evaluation on held-out windows."),
            LiveMove(window_id=windows[6], kind="half", reason="Nothing speaks against it after 6 windows."),
            LiveMove(window_id=windows[29], kind="promoted", reason="The interval lies above zero."),
        ),
    )


@pytest.fixture(scope="session")
def report() -> DemoReport:
    return example()
