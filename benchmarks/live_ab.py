"""The rules of a rollout against planted candidates, looked at after every window; beside them, a t-test peeked at.

    python benchmarks/live_ab.py               all of it, under three minutes on two cores
    python benchmarks/live_ab.py --runs 20     fewer runs
    python benchmarks/live_ab.py --json        write benchmarks/baselines/live_ab.json as well

Planted: the base's habits, and a mixture that at each decision plays the oracle's action (better) or its opposite (worse) with
a chance that makes the mean effect a tenth of the gap between base and oracle. 1,500 windows are played once by 10 agents under
each policy. A run draws 300 of them without replacement and shuffles the agents within each window: agents of one strategy are
exchangeable, so under a twin no arm is better. Rollout id, thresholds, stages and decisions are the package's own (`Rollout`, which
`decide` is made of). Error rates are also taken from drawn P&L with heavy tails, shocks common to both arms, and agents that
differ lastingly.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from babylon_rl.deployment.comparison import BURN_IN_WINDOWS  # noqa: E402
from babylon_rl.deployment.evidence import AgentResult, WindowEvidence  # noqa: E402
from babylon_rl.deployment.rules import Decision, Rollout  # noqa: E402
from babylon_rl.deployment.sequence import t_quantile  # noqa: E402
from babylon_rl.deployment.stages import SHARES, Arm, Deployment, Stage, choose_threshold  # noqa: E402
from babylon_rl.settings.live import DeploymentSettings  # noqa: E402
from babylon_rl.simulator.market import Market, make_market, stable_seed  # noqa: E402
from babylon_rl.simulator.observation import observe  # noqa: E402
from babylon_rl.simulator.play import oracle_pnl_usd  # noqa: E402
from babylon_rl.simulator.portfolio import START_BALANCE_USD, Portfolio, parse_order  # noqa: E402
from babylon_rl.simulator.strategies import habits, oracle  # noqa: E402
from babylon_rl.windows import HourWindow  # noqa: E402

Array = npt.NDArray[np.float64]
Report = dict[str, Any]

BANK_WINDOWS, AGENTS, WINDOWS, EARLIER_WINDOWS = 1500, 10, 300, 24
SHARE_OF_GAP = 0.1
LASTING_USD = 100.0
OPPOSITE: Final = {"BUY": "SELL", "SELL": "BUY", "BUY_YES": "BUY_NO", "BUY_NO": "BUY_YES"}
TIGHTLY = "simulator", "heavy tails", "heavy tails, 1 against 9 throughout"
T_QUANTILES = [math.inf, math.inf] + [t_quantile(0.975, n - 1) for n in range(2, WINDOWS + 1)]


# ── play, once ─────────────────────────────────────────────────────────────────────────────────────


def play_window(market: Market, agent: int, chance: float) -> float:
    """P&L of the habits, with the oracle's action (or, for a negative chance, its opposite) at |chance| of the decisions."""
    portfolio = Portfolio()
    for tick in range(market.decisions):
        r = random.Random(stable_seed("live_ab", market.window, agent, tick))
        planted = r.random() < abs(chance)
        text = oracle(market, tick) if planted else habits(observe(market, portfolio, tick), r)
        if planted and chance < 0:
            action = json.loads(text)
            text = json.dumps(action | {"action": OPPOSITE[action["action"]]})
        order, error = parse_order(text, market.tickers)
        if order is None:
            raise AssertionError(error)
        portfolio.execute(market, tick, order)
    return portfolio.value_usd(market, market.decisions) - START_BALANCE_USD


def list_windows() -> Iterator[HourWindow]:
    window = HourWindow.parse("2026-01-01T00:00")
    for _ in range(BANK_WINDOWS):
        yield window
        window = window.next()


def play_part(job: tuple[float, int, int]) -> list[list[float]]:
    chance, start, end = job
    markets = [make_market(w, 7) for w in list(list_windows())[start:end]]
    return [[play_window(m, agent, chance) for agent in range(AGENTS)] for m in markets]


def oracle_part(span: tuple[int, int]) -> list[float]:
    return [oracle_pnl_usd(make_market(w, 7)) for w in list(list_windows())[slice(*span)]]


def play_bank(pool: Any, chance: float) -> Array:
    """P&L, [windows, agents]."""
    half = BANK_WINDOWS // 2
    parts = pool.map(play_part, [(chance, 0, half), (chance, half, BANK_WINDOWS)], chunksize=1)
    return np.array([row for part in parts for row in part])


def play_banks(pool: Any) -> tuple[dict[str, Array], Report]:
    """Banks of base, better and worse, the chances calibrated on the bank itself."""
    half = BANK_WINDOWS // 2
    oracle_pnl = [x for part in pool.map(oracle_part, [(0, half), (half, BANK_WINDOWS)], chunksize=1) for x in part]
    banks = {"twin": play_bank(pool, 0.0)}
    base = float(banks["twin"].mean())
    gap = float(np.mean(oracle_pnl)) - base
    facts: Report = {
        "base_usd": round(base, 2),
        "oracle_usd": round(float(np.mean(oracle_pnl)), 2),
        "gap_usd": round(gap, 2),
        "sd_of_agent_hour_usd": round(float((banks["twin"] - banks["twin"].mean(1, keepdims=True)).std(ddof=1)), 1),
    }
    for name, sign in (("better", 1), ("worse", -1)):
        chance = sign * 0.1
        for _ in range(3):  # the effect is about linear in the chance
            bank = play_bank(pool, chance)
            effect = float(bank.mean()) - base
            if abs(sign * effect / gap - SHARE_OF_GAP) < 0.001:
                break
            chance *= SHARE_OF_GAP * gap * sign / effect
        per_window = (bank - banks["twin"]).mean(1)
        facts[name] = {
            "chance": round(chance, 4),
            "effect_usd": round(effect, 2),
            "share_of_gap": round(effect / gap, 4),
            "standard_error_usd": round(float(per_window.std(ddof=1)) / math.sqrt(BANK_WINDOWS), 2),
        }
        banks[name] = bank
    return banks, facts


# ── runs ───────────────────────────────────────────────────────────────────────────────────────────

BANKS: dict[str, Array] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run: which P&L, which effect, which agents."""

    pnl: str
    seed: int
    planted: str = "twin"
    agents: int = AGENTS
    canary_windows: int = 6
    use_earlier: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a run came to: the rules' decision, and those of a t-test by first look (0: one look at the end)."""

    decision: str
    windows: int
    by_guard: bool
    t_tests: dict[int, tuple[str, int]]


def draw_pnl(job: Job) -> tuple[Array, Array]:
    """P&L of the incumbent and the candidate policy, [EARLIER_WINDOWS + WINDOWS, agents]; an agent uses one of them."""
    rng = np.random.default_rng([job.seed, *job.pnl.encode()])
    shape = EARLIER_WINDOWS + WINDOWS, job.agents
    if job.pnl.startswith("simulator"):
        rows = rng.permutation(BANK_WINDOWS)[: shape[0]]
        columns = np.argsort(rng.random((shape[0], AGENTS)), axis=1)[:, : job.agents]
        incumbent, candidate = (
            np.take_along_axis(BANKS[name][rows], columns, axis=1) for name in ("twin", job.planted)
        )
    else:
        draw = {
            "heavy tails": lambda: 150 * rng.standard_t(3, shape),
            "rare jackpots": lambda: np.where(rng.random(shape) < 0.02, 5000.0, -102.0) + rng.normal(0, 30, shape),
            "rare ruin": lambda: np.where(rng.random(shape) < 0.02, -5000.0, 102.0) + rng.normal(0, 30, shape),
        }
        pnl = draw[job.pnl]() + 500 * rng.standard_t(3, (shape[0], 1))  # a shock of the market, common to both arms
        incumbent = candidate = pnl
    if job.pnl.endswith("lasting"):
        lasting = LASTING_USD * rng.normal(size=job.agents)
        incumbent, candidate = incumbent + lasting, candidate + lasting
    return incumbent, candidate


def run_rollout(job: Job) -> Ran:
    """One rollout by the package's rules, and the t-tests on the same differences of means."""
    incumbent, candidate = draw_pnl(job)
    earlier = incumbent[:EARLIER_WINDOWS].mean(axis=0)
    settings = DeploymentSettings.model_validate(
        {"BABYLON_ROLLOUT_WINDOWS": WINDOWS, "BABYLON_CANARY_WINDOWS": job.canary_windows}
    )
    rollout_id, agents = f"{job.pnl}-{job.planted}-{job.seed}", [f"agent-{i:02}" for i in range(job.agents)]
    state = Deployment(
        lineage="live-ab",
        number=1,
        stage=Stage.CANARY,
        candidate=1,
        rollout=rollout_id,
        threshold=choose_threshold(rollout_id, agents, SHARES[Stage.CANARY]),
    )
    rollout, differences = Rollout(settings), []
    decision, decided_at, by_guard = "undecided", WINDOWS, False
    for t in range(WINDOWS):
        arms = [state.arm_of(a) for a in agents]
        pnl = [
            float((candidate if arm is Arm.CANDIDATE else incumbent)[EARLIER_WINDOWS + t, i])
            for i, arm in enumerate(arms)
        ]
        means = [
            statistics.fmean(p for p, a in zip(pnl, arms, strict=True) if a is arm)
            for arm in (Arm.CANDIDATE, Arm.INCUMBENT)
        ]
        differences.append(means[0] - means[1])
        if decision != "undecided":
            continue
        rollout.add(
            WindowEvidence(
                window_id=f"{t:04}",
                stage=state.stage,
                number=state.number,
                agents=tuple(
                    AgentResult(
                        agent_id=a, arm=arm, pnl_usd=p, earlier_pnl_usd=float(earlier[i]) if job.use_earlier else None
                    )
                    for i, (a, arm, p) in enumerate(zip(agents, arms, pnl, strict=True))
                ),
            )
        )
        interval = rollout.interval()
        chosen, reason = rollout.choose(state, interval)
        shown_better = interval is not None and interval.lo is not None and interval.lo > 0
        if chosen is Decision.ADVANCE:
            threshold = choose_threshold(rollout_id, agents, SHARES[Stage.HALF], at_least=state.threshold)
            state = Deployment(
                lineage="live-ab", number=2, stage=Stage.HALF, candidate=1, rollout=rollout_id, threshold=threshold
            )
        elif chosen is Decision.ROLL_BACK:
            decision, decided_at, by_guard = "rolled back", t + 1, reason.startswith("guard")
        elif chosen is Decision.PROMOTE or (shown_better and job.canary_windows >= WINDOWS):
            decision, decided_at = "promoted", t + 1
    return Ran(decision=decision, windows=decided_at, by_guard=by_guard, t_tests=peek(np.array(differences)))


def peek(differences: Array) -> dict[int, tuple[str, int]]:
    """A two-sided 5 % t-test of the mean difference, looked at after every window from the first look on; 0: only at the end."""
    n = np.arange(1, len(differences) + 1)
    mean = np.cumsum(differences) / n
    squares = np.cumsum(differences**2) - n * mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        t = mean / np.sqrt(squares / (n - 1) / n)
    significant = np.abs(np.nan_to_num(t)) > np.array(T_QUANTILES[1 : len(n) + 1])
    found = {}
    for first in (2, BURN_IN_WINDOWS, 0):
        at = np.flatnonzero(significant & (n >= (first or len(n))))
        found[first] = (
            (("promoted" if mean[at[0]] > 0 else "rolled back"), int(n[at[0]])) if len(at) else ("undecided", len(n))
        )
    return found


def summarize(outcomes: Sequence[tuple[str, int]]) -> Report:
    """Shares of decisions, and windows to a decision (median, 10th and 90th percentile)."""
    decided = [w for d, w in outcomes if d != "undecided"]
    facts: Report = {name: sum(d == name for d, _ in outcomes) for name in ("rolled back", "promoted", "undecided")}
    facts["runs"] = len(outcomes)
    facts["windows p10, p50, p90"] = (
        [round(float(q)) for q in np.percentile(decided, [10, 50, 90])] if decided else None
    )
    return facts


def run_all(map_: Callable[[list[Job]], list[Ran]], runs: int, twins: int) -> Report:
    report: Report = {}
    for planted in ("worse", "better", "twin"):
        ran = map_([Job(pnl="simulator", planted=planted, seed=s) for s in range(runs)])
        report[planted] = {
            "always-valid": summarize([(r.decision, r.windows) for r in ran]),
            "t-test peeked at from window 2": summarize([r.t_tests[2] for r in ran]),
            f"t-test peeked at from window {BURN_IN_WINDOWS}": summarize([r.t_tests[BURN_IN_WINDOWS] for r in ran]),
            f"t-test looked at once, at {WINDOWS}": summarize([r.t_tests[0] for r in ran]),
        }
    for planted in ("worse", "better"):
        for use_earlier in (True, False):
            jobs = [
                Job(pnl="simulator, lasting", planted=planted, seed=s, use_earlier=use_earlier) for s in range(runs)
            ]
            ran = map_(jobs)
            report.setdefault(f"{planted}, agents differ lastingly", {})["CUPED" if use_earlier else "no CUPED"] = (
                summarize([(r.decision, r.windows) for r in ran])
            )
    variants = {
        "simulator": {"pnl": "simulator"},
        "simulator, agents differ lastingly": {"pnl": "simulator, lasting"},
        "simulator, lasting, no CUPED": {"pnl": "simulator, lasting", "use_earlier": False},
        "heavy tails": {"pnl": "heavy tails"},
        "heavy tails, 1 against 9 throughout": {"pnl": "heavy tails", "canary_windows": WINDOWS},
        "rare jackpots, 1 against 9 throughout": {"pnl": "rare jackpots", "canary_windows": WINDOWS},
        "rare ruin": {"pnl": "rare ruin"},
        "heavy tails, 4 agents": {"pnl": "heavy tails", "agents": 4},
    }
    errors: Report = {}
    for name, how in variants.items():
        count = twins if name in TIGHTLY else twins // 3
        ran = map_([Job(seed=10_000 + s, **how) for s in range(count)])
        errors[name] = {
            "twins": count,
            "decided": sum(r.decision != "undecided" for r in ran),
            "by a guard rail": sum(r.by_guard for r in ran),
            "t-test peeked at from window 2": sum(r.t_tests[2][0] != "undecided" for r in ran),
            f"t-test peeked at from window {BURN_IN_WINDOWS}": sum(
                r.t_tests[BURN_IN_WINDOWS][0] != "undecided" for r in ran
            ),
        }
    report["twins decided"] = errors
    return report


def print_report(report: Report) -> None:
    console = Console(width=150)
    console.print(f"Base and oracle, {BANK_WINDOWS} windows x {AGENTS} agents: {report['planted']}")
    table = Table(
        title=f"{AGENTS} agents, 6 canary windows of 1 against {AGENTS - 1}, then 5 against 5; looked at after each of {WINDOWS}"
    )
    for column in ("planted", "by", "rolled back", "promoted", "undecided", "runs", "windows p10, p50, p90"):
        table.add_column(column)
    for planted, ways in report["results"].items():
        if planted == "twins decided":
            continue
        for way, facts in ways.items():
            table.add_row(
                planted,
                way,
                *(str(facts[k]) for k in ("rolled back", "promoted", "undecided", "runs")),
                ", ".join(map(str, facts["windows p10, p50, p90"] or ["-"])),
            )
    console.print(table)
    errors = report["results"]["twins decided"]
    table = Table(title=f"Twins decided either way within {WINDOWS} windows")
    table.add_column("P&L")
    for column in next(iter(errors.values())):
        table.add_column(column)
    for name, facts in errors.items():
        table.add_row(name, *(str(v) for v in facts.values()))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="runs of each planted candidate")
    parser.add_argument("--twins", type=int, default=1000, help="twins of three kinds of P&L; of the others a third")
    parser.add_argument("--json", action="store_true", help="also write benchmarks/baselines/live_ab.json")
    args = parser.parse_args()
    started = time.perf_counter()
    with multiprocessing.Pool(2) as pool:
        banks, planted = play_banks(pool)
    BANKS.update(banks)  # before the next pool forks
    with multiprocessing.Pool(2) as pool:
        results = run_all(lambda jobs: pool.map(run_rollout, jobs, chunksize=5), args.runs, args.twins)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    report = {
        "benchmark": "live_ab",
        "machine": f"{os.cpu_count()} cores",
        "commit": commit.stdout.strip(),
        "date": f"{datetime.now(UTC):%F}",
        "seconds": round(time.perf_counter() - started),
        "planted": planted,
        "results": results,
    }
    print_report(report)
    if args.json:
        out = ROOT / "benchmarks" / "baselines" / "live_ab.json"
        out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
