"""A gateway under load while what is deployed moves ten times and its database restarts, and what recording costs a call.

    python benchmarks/gateway_load.py                      64 clients for a minute
    python benchmarks/gateway_load.py --clients 16 --seconds 8
    python benchmarks/gateway_load.py --json               write benchmarks/baselines/gateway_load.json as well

It starts a PostgreSQL, real checkpoints and a gateway of its own in a temporary folder. Exit status 1: a request failed, an
answer came from a policy that was not deployed, or rows and answers differ.
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "babylon_rl_tests" / "gateway")]

from load_factories import STEPS, Clients, History, describe, opened_site, run_under_load  # noqa: E402
from recording_factories import a_logged_call  # noqa: E402

from babylon_rl.gateway.recording import CallRecorder  # noqa: E402

Report = dict[str, Any]


def measure_load(clients: int, seconds: float) -> Report:
    """Ten moves and one restart under so many clients."""
    with opened_site(STEPS) as site:
        site.start_gateway()
        played, history = Clients(site.url, clients), History()
        asyncio.run(run_under_load(site, played, history, seconds=seconds, restart_at=0.5))
        site.wait_until_written()
        shown = describe(played, history, site.rows())
        health = site.read_health()
    return {
        "clients": clients,
        "seconds": seconds,
        "answers_per_s": round(shown["answers"] / seconds, 1),
        **shown,
        "recording": health["recording"],
    }


def measure_recording(calls: int = 20_000) -> Report:
    """What `record` costs the event loop a call, with a game's texts and log-probabilities; no database is there."""
    made = [a_logged_call("t", i, "r" * 200, logprobs=(-0.123456,) * 60) for i in range(calls)]
    with tempfile.TemporaryDirectory() as folder:
        recorder = CallRecorder("postgresql:///nowhere", Path(folder))
        took = []
        for call in made:
            begun = time.perf_counter()
            recorder.record(call)
            took.append(time.perf_counter() - begun)
    took.sort()
    return {f"p{p}_us": round(1e6 * took[int(calls * p / 100)], 1) for p in (50, 95, 99, 99.9)}


def is_sound(load: Report) -> bool:
    """Whether the run shows what it should."""
    wrong = ("failed_requests", "from_no_deployed_policy", "answers_without_their_row", "rows_without_their_answer")
    return load["moves"] == 10 and not any(load[name] for name in wrong)


def main() -> int:
    """Run, and print the report."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--clients", type=int, default=64)
    p.add_argument("--seconds", type=float, default=60)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    load = measure_load(a.clients, a.seconds)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "commit": commit.stdout.strip(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "load": load,
        "recording_a_call": measure_recording(),
    }
    print(json.dumps(report, indent=2))
    if a.json:
        (ROOT / "benchmarks" / "baselines" / "gateway_load.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0 if is_sound(load) else 1


if __name__ == "__main__":
    raise SystemExit(main())
