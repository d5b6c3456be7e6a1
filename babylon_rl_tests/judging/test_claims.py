"""Two that judge the same windows at once pay once; a claim ends with its process, and outlives a lost connection."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa
from judge_server import JudgeServer
from judging_factories import a_pair, a_ruler
from test_never_twice import SCRIPT, fill

from babylon_rl.database.connection import connect
from babylon_rl.judging.score import ScoreReport, score_groups
from babylon_rl.store.judge_calls import PostgresCallLog
from babylon_rl.store.judgment_claims import JudgmentClaims
from babylon_rl.store.judgments import JudgmentStore

BACKENDS = sa.text("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")


def start_judging(database_url: str, judge_url: str) -> subprocess.Popen[str]:
    """A process that judges every window of the database, four at a time."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), database_url, judge_url, "4", "", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(SCRIPT).parents[2],
        env={"PYTHONPATH": str(Path(SCRIPT).parents[2]), "PATH": ""},
    )


def requests(server: JudgeServer) -> Counter[str]:
    return Counter(p["messages"][1]["content"] for p in server.payloads)


def test_two_processes_that_judge_the_same_windows_pay_once(
    engine: sa.Engine, database_url: str, server: JudgeServer
) -> None:
    fill(engine, 24)
    server.delay_s = 0.3
    both = [start_judging(database_url, server.url) for _ in range(2)]
    for process in both:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert output.split("\n")[-2] == "judged 24"
    assert len(requests(server)) == server.calls == 24


def test_a_killed_process_holds_no_claim(engine: sa.Engine, database_url: str, server: JudgeServer) -> None:
    fill(engine, 4)
    asked = threading.Event()
    server.on_call = asked.set
    server.behave("hang", times=4)
    killed = start_judging(database_url, server.url)
    assert asked.wait(60)
    second = start_judging(database_url, server.url)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    output, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert output.split("\n")[-2] == "judged 4"


def test_two_tasks_of_one_process_do_not_both_ask(engine: sa.Engine, server: JudgeServer) -> None:
    server.delay_s = 0.2
    store = JudgmentStore(engine)
    items = [a_pair(window=f"2025-01-15T{h:02}:00") for h in range(4)]

    async def judge_both() -> list[ScoreReport]:
        async with JudgmentClaims(engine) as claims:
            return await asyncio.gather(
                *(
                    score_groups(
                        a_ruler(server.url, call_log=PostgresCallLog(engine)),
                        items,
                        cached=store.find_judgment,
                        store=store.write_judgment,
                        claims=claims,
                    )
                    for _ in range(2)
                )
            )

    reports = asyncio.run(judge_both())
    assert [len(r.judgments) for r in reports] == [4, 4]
    assert sum(r.calls for r in reports) == sum(r.cached for r in reports) == server.calls == 4


async def claimed(claims: JudgmentClaims, *keys: str) -> list[bool]:
    return [await claims.claim(key) for key in keys]


async def lose_connection(engine: sa.Engine, other_engine: sa.Engine) -> None:
    async with JudgmentClaims(engine) as mine, JudgmentClaims(other_engine) as others:
        assert await claimed(mine, "a", "b", "a") == [True, True, False]
        assert await claimed(others, "a", "c") == [False, True]
        await others.release("c")
        with engine.connect() as conn:
            pids = conn.scalars(BACKENDS).all()
            assert len(pids) >= 2
            for pid in pids:
                conn.execute(sa.text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
        assert await claimed(mine, "c") == [True]
        assert await claimed(others, "a", "b", "c", "d") == [False, False, False, True]
        await mine.release("a")
        assert await claimed(others, "a") == [True]
    async with JudgmentClaims(engine) as later:  # leaving gave all of them back
        assert await claimed(later, "a", "b", "c", "d") == [True] * 4


def test_claims_are_taken_again_when_their_connection_was_lost(engine: sa.Engine, database_url: str) -> None:
    other_engine = connect(database_url)
    asyncio.run(lose_connection(engine, other_engine))
    other_engine.dispose()


async def claim_nowhere(nowhere: sa.Engine) -> None:
    async with JudgmentClaims(nowhere) as claims:
        await claims.claim("a")


def test_a_claim_without_its_database_is_an_error(engine: sa.Engine) -> None:
    nowhere = sa.create_engine(engine.url.set(database=f"nobodys_{os.getpid()}"))
    with pytest.raises(sa.exc.OperationalError):
        asyncio.run(claim_nowhere(nowhere))
    nowhere.dispose()
