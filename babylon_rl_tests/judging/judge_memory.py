"""A process that asks a judge once and prints how many MB of memory that took at its peak; run by test_odd_answers.

Usage: python judge_memory.py <judge url>

The judge answers honestly about the first hour, which loads all code, and then as the test says about the second.
"""

import asyncio
import sys
import tracemalloc

from judging_factories import a_pair, a_ruler

from babylon_rl.errors import BabylonRLError


async def ask(url: str, window: str) -> None:
    async with a_ruler(url) as judge:
        await judge.judge(*a_pair(window=window))


if __name__ == "__main__":
    asyncio.run(ask(sys.argv[1], "2025-01-15T01:00"))
    tracemalloc.start()  # not the process's peak: a child inherits its parent's
    try:
        asyncio.run(ask(sys.argv[1], "2025-01-15T02:00"))
    except BabylonRLError as e:
        print(len(str(e)))  # noqa: T201
    print(tracemalloc.get_traced_memory()[1] / 1e6)  # noqa: T201
