"""A process that judges every window of a database and kills itself at one persistence point; run by test_never_twice.

Usage: python killed_judging.py <database url> <judge url> <concurrency> <point> <nth>

A persistence point is a commit of one of our transactions: `<what was written>/before` or `…/after` the commit. The
process prints each point when it first passes it, so a run without a kill enumerates them.
"""

import asyncio
import sys

import sqlalchemy as sa

from babylon_rl.database.connection import connect
from babylon_rl.judging.ruler.endpoint import OpenAIEndpoint
from babylon_rl.judging.ruler.judge import RulerJudge, trading_rubric
from babylon_rl.pipeline.score import score_windows
from babylon_rl.store.judge_calls import PostgresCallLog
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import a_workspace
from babylon_rl_tests.kill_at_commit import kill_at_commit


async def judge_all(engine: sa.Engine, url: str, concurrency: int) -> None:
    workspace = a_workspace(engine)
    endpoint = OpenAIEndpoint("gpt-4o-mini", api_key="k", base_url=url, timeout_s=30)
    judge = RulerJudge(
        endpoint,
        model="openai/gpt-4o-mini",
        rubric=trading_rubric(),
        max_concurrency=concurrency,
        call_log=PostgresCallLog(engine, budget_usd=100.0),
    )
    windows = [HourWindow.parse(w) for w in workspace.store.ingested()]
    done = await score_windows(workspace, judge, windows, concurrency=concurrency)
    print("judged", sum(s.count > 0 for s in done.values()), flush=True)  # noqa: T201


if __name__ == "__main__":
    database, url, concurrency, point, nth = sys.argv[1:]
    engine = connect(database)
    kill_at_commit(engine, point, int(nth), announce=True)
    asyncio.run(judge_all(engine, url, int(concurrency)))
