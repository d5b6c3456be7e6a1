"""The judge, measured: prompt sizes, scores per second, order bias, detection of bad judges.

    python benchmarks/judge.py                        all of it, under two minutes on two cores
    python benchmarks/judge.py --latency 4            a slower judge

Prompts have the sizes of the game's logged ones (8 agents × 15 decisions). Scores per second are measured against the
test server in a process of its own, with a fixed latency and our log of calls in a real PostgreSQL; ideal is
`in flight / latency`, that of a client without any cost. Ratios hold across machines, times do not.
"""

import argparse
import asyncio
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "babylon_rl_tests" / "judging")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

from judge_server import JudgeServer  # noqa: E402
from judging_factories import logged_size_group  # noqa: E402
from planted_judges import BAD, PlantedJudge, auc, honest, suspicion  # noqa: E402

from babylon_rl.common.rank_agreement import kendall_tau  # noqa: E402
from babylon_rl.database.connection import connect  # noqa: E402
from babylon_rl.database.embedded import ensure_database, ensure_server, stop_server  # noqa: E402
from babylon_rl.database.migrate import upgrade  # noqa: E402
from babylon_rl.judging.audit.audit import audit  # noqa: E402
from babylon_rl.judging.audit.synthetic_groups import SyntheticGroup, make_synthetic_group  # noqa: E402
from babylon_rl.judging.ruler.endpoint import OpenAIEndpoint  # noqa: E402
from babylon_rl.judging.ruler.judge import RulerJudge, trading_rubric  # noqa: E402
from babylon_rl.judging.ruler.prompt import messages_in, messages_of, write_forms  # noqa: E402
from babylon_rl.judging.ruler.tokens import ENCODING  # noqa: E402
from babylon_rl.judging.score import score_groups  # noqa: E402
from babylon_rl.settings import Settings  # noqa: E402
from babylon_rl.store.judge_calls import PostgresCallLog  # noqa: E402
from babylon_rl.types import Judgment  # noqa: E402


def prompts(groups: int) -> None:
    """Tokens of the compact form beside the plain one, and whether it reads back."""
    ratios, plain, lossless, took = [], [], 0, []
    for seed in range(groups):
        synthetic = logged_size_group(seed)
        start = time.perf_counter()
        forms = write_forms(synthetic.group, synthetic.hindsight, rubric=trading_rubric(), key=f"k{seed}")
        took.append(time.perf_counter() - start)
        if forms.compact is not None and forms.compact_tokens is not None:
            lossless += messages_in(forms.compact) == messages_of(synthetic.group)
            ratios.append(forms.compact_tokens / forms.plain_tokens)
            plain.append(forms.plain_tokens)
    print(f"prompt, 8 agents x 15 steps, {groups} groups, tokens of {ENCODING}:")
    print(
        f"  plain {statistics.fmean(plain):,.0f} tokens, compact {statistics.fmean(ratios):.3f} of it "
        f"(worst {max(ratios):.3f}; target 0.30), lossless {lossless} of {groups}, "
        f"{1000 * statistics.fmean(took):.0f} ms to write, prove and count both"
    )


def serve(latency_s: float, mode: str, pipe: Connection) -> None:
    """The test server in its own process, until told to stop."""
    with JudgeServer() as server:
        server.delay_s = latency_s
        if mode:
            server.behave(mode)
        pipe.send(server.url)
        pipe.recv()
        pipe.send((server.calls, server.most_at_once))


class Remote:
    """A test server in another process."""

    def __init__(self, latency_s: float, mode: str = "") -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=(latency_s, mode, theirs))
        self._process.start()
        self.url: str = self._pipe.recv()

    def stop(self) -> tuple[int, int]:
        self._pipe.send("stop")
        counts: tuple[int, int] = self._pipe.recv()
        self._process.join(10)
        return counts


def throughput(latency_s: float, in_flight: int, rounds: int) -> None:
    """Scores per second with many requests in flight, compared with those of a client without any cost."""
    home = Path(tempfile.mkdtemp(prefix="babylon-bench-"))
    remote = Remote(latency_s)
    try:
        url = ensure_database(ensure_server(home), "bench")
        upgrade(Settings.load(DATABASE_URL=url).database)
        call_log = PostgresCallLog(connect(url), budget_usd=1e6)
        synthetic_groups = [logged_size_group(s % 40).with_new_id(s) for s in range(in_flight * rounds)]
        counts = {}

        async def go() -> float:
            endpoint = OpenAIEndpoint("gpt-4o-mini", api_key="none", base_url=remote.url, timeout_s=120)
            judge = RulerJudge(
                endpoint,
                model="openai/gpt-4o-mini",
                rubric=trading_rubric(),
                max_concurrency=in_flight,
                call_log=call_log,
            )
            warm = logged_size_group(99)
            async with judge:
                await judge.judge(warm.group, warm.hindsight)
            kept: dict[str, Judgment] = {}
            start, cpu = time.perf_counter(), time.process_time()
            report = await score_groups(
                judge,
                [(s.group, s.hindsight) for s in synthetic_groups],
                cached=kept.get,
                store=lambda j: kept.__setitem__(j.key, j),
                concurrency=2 * in_flight,
            )
            took = time.perf_counter() - start
            counts["judged"] = len(report.judgments)
            counts["cpu_ms"] = round(1000 * (time.process_time() - cpu) / len(synthetic_groups))
            return took

        took = asyncio.run(go())
        call_log.engine.dispose()
    finally:
        calls, most = remote.stop()
        stop_server(home)
        shutil.rmtree(home, ignore_errors=True)
    rate, ideal = counts["judged"] / took, in_flight / latency_s
    print(
        f"scores a second, {in_flight} in flight, {latency_s:g} s latency, logged-size prompts, calls logged in Postgres:"
    )
    print(
        f"  {rate:.2f} groups/s ({8 * rate:.0f} scores/s) of {ideal:.2f} ideal = {rate / ideal:.2f} (target 0.80); "
        f"{calls} calls, at most {most} at once, "
        f"{counts['cpu_ms']} ms of CPU a group here"
    )


def order_bias(groups: int) -> None:
    """Rank agreement with the truth under a planted position bias: whole groups in one to three passes, and sub-batches."""
    remote = Remote(0.0, "position_biased")
    synthetic_groups = [make_synthetic_group(s, agents=8, steps=2) for s in range(groups)]

    async def taus(passes: int, *, split: bool = False) -> list[float]:
        async def one(synthetic: SyntheticGroup) -> float:
            forms = write_forms(synthetic.group, synthetic.hindsight, rubric=trading_rubric(), key="k")
            context = min(tokens for _, _, tokens in forms.by_preference()) - 100 if split else None
            endpoint = OpenAIEndpoint("gpt-4o-mini", api_key="none", base_url=remote.url, timeout_s=60)
            judge = RulerJudge(
                endpoint,
                model="openai/gpt-4o-mini",
                rubric=trading_rubric(),
                passes=passes,
                context_tokens=context,
            )
            async with judge:
                judgment = await judge.judge(synthetic.group, synthetic.hindsight)
            return kendall_tau({s.trajectory_id: s.value for s in judgment.scores}, synthetic.truth) or 0.0

        return list(await asyncio.gather(*(one(s) for s in synthetic_groups)))

    tau_by_passes = {k: statistics.fmean(asyncio.run(taus(k))) for k in (1, 2, 3)}
    in_sub_batches = statistics.fmean(asyncio.run(taus(3, split=True)))
    remote.stop()
    print(f"planted position bias, {groups} groups of 8, Kendall tau against the truth (target 0.95 in <= 3 calls):")
    print("  " + ", ".join(f"{k} call{'s' * (k > 1)} {v:.3f}" for k, v in tau_by_passes.items()))
    print(f"  groups too long for one prompt, 3 passes over sub-batches {in_sub_batches:.3f}")


def detection(trials: int) -> None:
    """How well an audit of two groups tells bad judges from honest ones."""

    def measure(judge: PlantedJudge, seed: int) -> float:
        return suspicion(asyncio.run(audit(judge, groups=2, seed=seed)))

    good = [measure(PlantedJudge("honest", honest, seed=s), s) for s in range(trials)]
    bad = {
        name: [measure(PlantedJudge(name, character, seed=s), i * trials + s) for s in range(trials)]
        for i, (name, character) in enumerate(BAD.items(), start=1)
    }
    every = [v for values in bad.values() for v in values]
    print(f"bad-judge detection, {len(good) + len(every)} trials of two groups (target 0.95):")
    print(f"  AUC {auc(every, good):.3f}; " + ", ".join(f"{n} {auc(v, good):.3f}" for n, v in bad.items()))


def main() -> None:
    """Run all four measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--latency",
        type=float,
        default=5.0,
        help="seconds the test judge takes; a small model writes 500 tokens of reasons in no less",
    )
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=8, help="groups = in flight x rounds")
    args = parser.parse_args()
    prompts(20)
    throughput(args.latency, args.in_flight, args.rounds)
    order_bias(40)
    detection(50)


if __name__ == "__main__":
    main()
