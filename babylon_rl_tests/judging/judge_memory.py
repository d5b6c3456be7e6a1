"""A process that asks a judge once and prints by how many MB that raised its peak memory; run by test_odd_answers.

Usage: python judge_memory.py <judge url>

The judge answers honestly about the first hour, which loads all code, and then as the test says about the second.
"""

import asyncio
import resource
import sys

from judging_factories import a_pair, a_ruler

from babylon_rl.errors import BabylonRLError


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def ask(url: str, window: str) -> None:
    async with a_ruler(url) as judge:
        await judge.judge(*a_pair(window=window))


if __name__ == "__main__":
    asyncio.run(ask(sys.argv[1], "2025-01-15T01:00"))
    before = peak_mb()
    try:
        asyncio.run(ask(sys.argv[1], "2025-01-15T02:00"))
    except BabylonRLError as e:
        print(len(str(e)))  # noqa: T201
    print(peak_mb() - before)  # noqa: T201
