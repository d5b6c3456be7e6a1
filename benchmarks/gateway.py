"""What the gateway adds to a call: its latency beside that of the engine called directly, in one run.

    python benchmarks/gateway.py             1 client and 64 clients, three ways
    python benchmarks/gateway.py --json      write benchmarks/baselines/gateway.json as well

The three ways answer the same requests, turn by turn, so that what else the machine does falls on all of them alike:
`engine` is the policy server, one process; `gateway` has the same engine inside, also one process; `gateway before engine`
passes requests on to the policy server, as to a vLLM, two processes. Seeds are given, so the same answers are drawn.
`another engine` is a second policy server: its difference is what this machine's noise can make of equal servers. Of 64 requests
sent in one instant, those that pass a second process reach the engine over more than the 20 ms that it waits for a batch, so
some of them wait for the next batch; an engine that takes in requests while it samples, such as vLLM, has no such wait.
Exit status 1: the gateway adds more than 5 ms at the median.
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from babylon_rl.base_policy.corpus import draw_markets  # noqa: E402
from babylon_rl.database.embedded import stop_server  # noqa: E402
from babylon_rl.database.migrate import upgrade  # noqa: E402
from babylon_rl.gateway.process import running_gateway  # noqa: E402
from babylon_rl.pipeline.workspace import running_policy_server  # noqa: E402
from babylon_rl.settings import Settings  # noqa: E402
from babylon_rl.simulator.observation import SYSTEM_PROMPT, observe  # noqa: E402
from babylon_rl.simulator.portfolio import Portfolio  # noqa: E402

DIRECT, AGAIN, INSIDE, BEFORE = "engine", "another engine", "gateway", "gateway before engine"
MOST_ADDED_MS = 5.0
LINEAGE = "babylon-mmo"

Report = dict[str, Any]
Ask = Callable[[str, int], Awaitable[float]]


@contextmanager
def open_ways() -> Iterator[dict[str, str]]:
    """Way → base URL."""
    home = Path(tempfile.mkdtemp(prefix="babylon-bench-"))
    settings = Settings.load(BABYLON_HOME=home, DATABASE_URL=None, BABYLON_PLATFORM_URL=None)
    upgrade(settings.database)
    try:
        with ExitStack() as stack:
            direct = stack.enter_context(running_policy_server(settings))
            inside = stack.enter_context(running_gateway(settings))
            again = stack.enter_context(running_policy_server(settings))
            before = stack.enter_context(running_gateway(settings.changed(serving={"inference_url": direct})))
            yield {DIRECT: direct, AGAIN: again, INSIDE: inside, BEFORE: before}
    finally:
        stop_server(home)
        shutil.rmtree(home, ignore_errors=True)


def make_bodies() -> list[bytes]:
    """What agents of eight markets send; the same to all three."""
    prompts = [observe(m, Portfolio(), tick).text for m in draw_markets("gateway", 1, 8) for tick in range(m.decisions)]
    return [
        json.dumps(
            {
                "model": f"{LINEAGE}@0",
                "messages": [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": p}],
                "temperature": 0.5,
                "seed": i,
                "max_tokens": 64,
                "user": f"agent-{i}",
            }
        ).encode()
        for i, p in enumerate(prompts)
    ]


async def measure(ways: dict[str, str], clients: int, rounds: int) -> Report:
    """Each round, every way in turn gets one request of every client at once; the order changes from round to round."""
    bodies = make_bodies()
    took: dict[str, list[float]] = {w: [] for w in ways}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(url: str, i: int) -> float:
            begun = time.perf_counter()
            headers = {"content-type": "application/json"}
            async with session.post(
                f"{url}/chat/completions", data=bodies[i % len(bodies)], headers=headers
            ) as response:
                await response.read()
                assert response.status == 200, await response.text()
            return (time.perf_counter() - begun) * 1000

        for n in range(-3, rounds):  # the first three warm up
            order = list(ways)[n % len(ways) :] + list(ways)[: n % len(ways)]
            for way in order:
                latencies = await asyncio.gather(*(ask(ways[way], n * clients + i) for i in range(clients)))
                if n >= 0:
                    took[way] += latencies
    report: Report = {"clients": clients, "requests": rounds * clients}
    for way, latencies in took.items():
        report[way] = {f"p{p}_ms": round(_percentile(latencies, p), 2) for p in (50, 95)}
    for way in (AGAIN, INSIDE, BEFORE):
        paired = [b - a for a, b in zip(took[DIRECT], took[way], strict=True)]
        report[way] |= {
            "adds p50_ms": round(_percentile(took[way], 50) - _percentile(took[DIRECT], 50), 2),
            "adds p95_ms": round(_percentile(took[way], 95) - _percentile(took[DIRECT], 95), 2),
            "median of the same request's difference_ms": round(statistics.median(paired), 2),
        }
    return report


def _percentile(values: list[float], p: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[p - 1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="of one client; of 64 a tenth as many")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    with open_ways() as ways:
        results = [asyncio.run(measure(ways, c, r)) for c, r in ((1, a.rounds), (64, max(10, a.rounds // 10)))]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "commit": commit.stdout.strip(),
        "date": f"{datetime.now(UTC):%F}",
        "results": results,
    }
    print(json.dumps(report, indent=2))
    if a.json:
        (ROOT / "benchmarks" / "baselines" / "gateway.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(r[INSIDE]["adds p50_ms"] <= MOST_ADDED_MS for r in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
