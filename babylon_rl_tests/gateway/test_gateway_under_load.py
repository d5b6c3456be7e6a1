"""A gateway under load while what is deployed moves, the database restarts and the gateway itself is killed.

The long form, 64 clients for a minute, is `benchmarks/gateway_load.py`.
"""

import asyncio
import time
from collections.abc import Iterator

import aiohttp
import pytest
from gateway_factories import LINEAGE
from load_factories import STEPS, Clients, History, Site, describe, opened_site, run_under_load
from recording_factories import move

from babylon_rl.database.embedded import ensure_server, stop_server
from babylon_rl.deployment.stages import MoveKind
from babylon_rl.store.deployments import read_deployment


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with opened_site(STEPS) as site:
        site.start_gateway()
        yield site


def test_no_request_fails_and_each_answer_is_a_row(site: Site) -> None:
    known = set(site.rows())
    clients, history = Clients(site.url, 16), History()

    asyncio.run(run_under_load(site, clients, history, seconds=5, restart_at=0.5))
    site.wait_until_written()

    rows = {k: v for k, v in site.rows().items() if k not in known}
    shown = describe(clients, history, rows)
    assert shown["failures"] == []
    assert shown["answers"] > 100
    assert shown["from_no_deployed_policy"] == 0
    assert shown["longest_lag_behind_a_move_ms"] < 2_000
    assert (shown["answers_without_their_row"], shown["rows_without_their_answer"]) == (0, 0), shown
    assert len(shown["by_policy"]) > 3, "the moves were seen"


def test_a_rolled_back_step_is_refused_to_who_pins_it(site: Site) -> None:
    async def pin() -> float:
        async with aiohttp.ClientSession(trust_env=False) as session:
            move(site.engine, MoveKind.CANARY, 2)
            assert await time_until_status(session, 200) < 2
            move(site.engine, MoveKind.ROLLED_BACK, 2)
            return await time_until_status(session, 404)

    async def time_until_status(session: aiohttp.ClientSession, status: int) -> float:
        begun = time.monotonic()
        body = {"model": f"{LINEAGE}@2", "messages": [{"role": "user", "content": "Markets: …"}], "max_tokens": 2}
        while time.monotonic() - begun < 5:
            asked = time.monotonic()
            async with session.post(f"{site.url}/chat/completions", json=body) as response:
                text = await response.text()
            if response.status == status:
                assert ("model_not_found" in text) == (status == 404)
                return asked - begun
        raise AssertionError(text)

    assert asyncio.run(pin()) < 2


def test_a_killed_gateway_loses_no_answered_call(site: Site) -> None:
    """Killed while it answers: what a client had whole is a row afterwards, once.

    The next gateway starts while the database is away, answers by what the killed one knew, and writes the rows of both when
    the database is back.
    """
    known = set(site.rows())
    before = read_deployment(site.engine, LINEAGE)
    killed, away = Clients(site.url, 16), Clients("", 4)

    async def play_and_kill() -> None:
        playing = asyncio.create_task(killed.play())
        await asyncio.sleep(1.0)
        await asyncio.to_thread(site.kill_gateway)
        killed.stop.set()
        await playing

    asyncio.run(play_and_kill())
    stop_server(site.home)
    site.start_gateway()
    away.url = site.url
    asyncio.run(away.play_for(0.5))
    health = site.read_health()
    ensure_server(site.home)
    site.wait_until_written()

    assert health["deployment"] == before.number
    assert health["deployment_error"] is not None
    assert health["recording"]["waiting"] >= len(away.answers) > 4
    assert away.failures == []
    assert len(killed.answers) > 20
    rows = {k: v for k, v in site.rows().items() if k not in known}
    answers = killed.as_rows | away.as_rows
    assert {k: rows.get(k) for k in answers} == answers
    assert len(rows) - len(answers) <= killed.count, "recorded, and killed before the client had it whole"
    assert read_deployment(site.engine, LINEAGE) == before
