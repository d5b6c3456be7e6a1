"""Planted policies through the real thing: gateway, Postgres and Dagster, window by window, until the rollout is decided.

    python benchmarks/live_runs.py                     five runs of each kind, at most 300 windows each
    python benchmarks/live_runs.py --runs 1 --kinds better --windows 60
    python benchmarks/live_runs.py --json              write benchmarks/baselines/live_runs.json as well

Ten agents play each hour through the gateway, which asks `planted_server.py` over HTTP; the hour is recorded as the game records it,
one Dagster run prepares it and looks at it. `live_ab.py` has the hundreds of runs of the same statistics without the machinery.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import sqlalchemy as sa  # noqa: E402
from planted_server import HABITS, PlantedPolicies, serving  # noqa: E402

from babylon_rl.cli.services import prepare_dagster  # noqa: E402
from babylon_rl.database.embedded import stop_server  # noqa: E402
from babylon_rl.database.migrate import upgrade  # noqa: E402
from babylon_rl.deployment.stages import MoveKind  # noqa: E402
from babylon_rl.gateway.process import running_gateway  # noqa: E402
from babylon_rl.pipeline.operate import deploy  # noqa: E402
from babylon_rl.pipeline.workspace import open_workspace  # noqa: E402
from babylon_rl.settings import Settings  # noqa: E402
from babylon_rl.simulator.spawn import AgentLineup, spawn  # noqa: E402
from babylon_rl.store.deployments import read_moves  # noqa: E402
from babylon_rl.windows import HourWindow  # noqa: E402

START = HourWindow.parse("2025-01-15T00:00")
AGENTS = 10
BETTER = f"{HABITS}+0.1"
# Kind → (incumbent, candidate). 0.1: a tenth of the gap between base and oracle (live_ab.py measures it).
KINDS = {"worse": (BETTER, HABITS), "better": (HABITS, BETTER), "twin": (HABITS, HABITS)}
DECIDED = (MoveKind.PROMOTED, MoveKind.ROLLED_BACK, MoveKind.ENDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One rollout.

    Attributes:
        decision: The last move, or `undecided`.
        windows: Until then.
    """

    kind: str
    seed: int
    decision: str
    windows: int
    moves: tuple[str, ...]
    calls: int
    seconds: float


def run_rollout(kind: str, seed: int, windows: int) -> Run:
    """Play one rollout in a database of its own."""
    from babylon_rl.cli.runner import open_runner

    began = time.monotonic()
    incumbent, candidate = KINDS[kind]
    policies = PlantedPolicies(
        {"base": 0.1 if incumbent == BETTER else 0.0, "babylon-mmo@1": 0.1 if candidate == BETTER else 0.0}
    )
    hours = list(START.until(START.next(windows - 1)))
    policies.know(hours, seed)
    home = Path(tempfile.mkdtemp(prefix="babylon-live-"))
    with serving(policies) as url:
        variables = {
            "BABYLON_HOME": str(home),
            "BABYLON_SEED": str(seed),
            "BABYLON_INFERENCE_URL": url,
            "BABYLON_BASE_MODEL": "base",
            "BABYLON_UPSTREAM_BASE_URL": url,
            "BABYLON_UPSTREAM_BASE_MODEL": "base",
            "BABYLON_DEPLOY": "manual",
        }
        os.environ.update(variables)
        settings = Settings.load()
        upgrade(settings.database)
        prepare_dagster(settings)
        try:
            with open_workspace(settings) as workspace, running_gateway(settings) as gateway, open_runner() as runner:
                plant_checkpoint(workspace.store.engine, hours[0])
                lineup = AgentLineup(learners=AGENTS, policy=settings.lineage, through_gateway=True, stand_in=True)
                decision, done = "undecided", 0
                for done, hour in enumerate(hours, start=1):
                    spawn(workspace.game, [hour], lineup, seed=seed, inference_url=gateway)
                    if done == 1:
                        deploy(workspace, 1, without_evaluation=True)
                    runner.materialize("windows", hour, hour, assets=["raw_trajectories", "market_outcomes"])
                    runner.materialize("deploy", hour, hour)
                    moves = read_moves(workspace.store.engine, settings.lineage)
                    if moves and moves[-1].kind in DECIDED:
                        decision = moves[-1].kind.value
                        break
                with workspace.store.engine.connect() as conn:
                    calls = conn.scalar(sa.text("SELECT count(*) FROM babylon_rl.served_calls WHERE status = 200"))
        finally:
            stop_server(home)
            shutil.rmtree(home, ignore_errors=True)
    return Run(
        kind=kind,
        seed=seed,
        decision=decision,
        windows=done,
        moves=tuple(m.kind.value for m in moves),
        calls=calls or 0,
        seconds=round(time.monotonic() - began, 1),
    )


def plant_checkpoint(engine: sa.Engine, window: HourWindow) -> None:
    """A checkpoint that the server answers as: recorded as one of `local`, whose weights are elsewhere."""
    with engine.begin() as conn:
        conn.execute(
            sa.text(
                "INSERT INTO babylon_rl.checkpoints (lineage, step, window_id, trainer, base_model, path, manifest, judgment_keys, metrics) "
                "VALUES ('babylon-mmo', 1, :window, 'local', 'base', 'planted', '{}', '{}', '{}')"
            ),
            {"window": str(window)},
        )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=int, default=5, help="of each kind")
    p.add_argument("--kinds", default=",".join(KINDS))
    p.add_argument("--first-seed", type=int, default=1)
    p.add_argument("--windows", type=int, default=300)
    p.add_argument(
        "--one", action="store_true", help="one run in this process, as JSON: what the others are started as"
    )
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    if a.one:
        sys.stdout.write(json.dumps(asdict(run_rollout(a.kinds, a.first_seed, a.windows))) + "\n")
        return
    runs = []
    for kind in a.kinds.split(","):
        for seed in range(a.first_seed, a.first_seed + a.runs):
            command = [
                sys.executable,
                __file__,
                "--one",
                "--kinds",
                kind,
                "--first-seed",
                str(seed),
                "--windows",
                str(a.windows),
            ]
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"}
            )
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            sys.stdout.write(json.dumps(runs[-1]) + "\n")
            sys.stdout.flush()
    for kind in a.kinds.split(","):
        of_kind = [r for r in runs if r["kind"] == kind]
        sys.stdout.write(
            f"{kind}: {dict(Counter(r['decision'] for r in of_kind))}, windows {sorted(r['windows'] for r in of_kind)}\n"
        )
    if a.json:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
        )
        baseline = {
            "machine": f"{os.cpu_count()} cores",
            "commit": commit.stdout.strip(),
            "date": datetime.now(UTC).date().isoformat(),
            "runs": runs,
        }
        (ROOT / "benchmarks/baselines/live_runs.json").write_text(json.dumps(baseline, indent=1) + "\n")


if __name__ == "__main__":
    main()
