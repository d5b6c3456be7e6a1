"""A gateway follows the deployment table: moves are known at once, and the last state outlives the database."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from gateway_factories import LINEAGE
from recording_factories import database_away, move, record_checkpoint

from babylon_rl.deployment.stages import Deployment, MoveKind
from babylon_rl.errors import ConfigError
from babylon_rl.gateway.follower import DeploymentFollower
from babylon_rl.gateway.state import ServedState


async def time_until(condition: Callable[[], bool], timeout_s: float = 10) -> float:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < timeout_s
        await asyncio.sleep(0.002)
    return time.monotonic() - begun


def test_moves_are_known_within_a_fraction_of_a_second(engine: sa.Engine, database_url: str, tmp_path: Path) -> None:
    async def follow() -> list[float]:
        follower = DeploymentFollower(database_url, LINEAGE, tmp_path, poll_s=60)
        async with follower.running():
            assert follower.current().deployment == Deployment(lineage=LINEAGE)
            assert follower.current().servable == {0}
            took = []
            for step in range(1, 6):
                record_checkpoint(engine, step)
                for kind in (MoveKind.CANARY, MoveKind.PROMOTED):
                    made = await asyncio.to_thread(move, engine, kind, step)
                    took.append(await time_until(lambda m=made: follower.current().deployment == m))
                    state = follower.current()
                    assert step in state.servable
                    assert state.policies[step].path == f"/c/{step}", "recorded without a move, known with it"
            return took

    took = asyncio.run(follow())
    assert max(took) < 2
    assert sorted(took)[len(took) // 2] < 0.1


def test_without_notifications_the_poll_tells(engine: sa.Engine, database_url: str, tmp_path: Path) -> None:
    """A pooler in front of the database swallows LISTEN."""
    with engine.begin() as conn:
        conn.exec_driver_sql("DROP TRIGGER tell_of_move ON babylon_rl.deployment_events")

    async def follow() -> tuple[float, float]:
        follower = DeploymentFollower(database_url, LINEAGE, tmp_path, poll_s=0.3)
        async with follower.running():
            made = move(engine, MoveKind.CANARY, 1)
            moved = await time_until(lambda: follower.current().deployment == made)
            record_checkpoint(engine, 1)
            recorded = await time_until(lambda: 1 in follower.current().policies)
            return moved, recorded

    assert max(asyncio.run(follow())) < 2


def test_a_rolled_back_step_is_not_servable_within_two_seconds(
    engine: sa.Engine, database_url: str, tmp_path: Path
) -> None:
    move(engine, MoveKind.CANARY, 1)

    async def follow() -> None:
        follower = DeploymentFollower(database_url, LINEAGE, tmp_path)
        async with follower.running():
            assert 1 in follower.current().servable
            move(engine, MoveKind.ROLLED_BACK, 1)
            assert await time_until(lambda: 1 not in follower.current().servable) < 2

    asyncio.run(follow())


def test_it_goes_on_while_the_database_is_away(
    engine: sa.Engine, server_url: str, database_url: str, tmp_path: Path
) -> None:
    made = move(engine, MoveKind.CANARY, 1)

    async def follow() -> None:
        follower = DeploymentFollower(database_url, LINEAGE, tmp_path)
        async with follower.running():
            with database_away(server_url, database_url):
                await time_until(lambda: follower.error is not None)
                seen = follower.current()
                assert seen.deployment == made
                await asyncio.sleep(0.3)
                assert follower.current() is seen, "it does not look newer than it is"
            later = await asyncio.to_thread(move, engine, MoveKind.PROMOTED, 1)
            assert await time_until(lambda: follower.current().deployment == later) < 2
            assert follower.error is None

    asyncio.run(follow())


def test_a_gateway_that_starts_without_it_knows_the_last_state(
    engine: sa.Engine, server_url: str, database_url: str, tmp_path: Path
) -> None:
    record_checkpoint(engine, 1)
    move(engine, MoveKind.CANARY, 1)

    async def look(url: str, lineage: str = LINEAGE) -> ServedState:
        follower = DeploymentFollower(url, lineage, tmp_path)
        async with follower.running():
            return follower.current()

    known = asyncio.run(look(database_url))
    with database_away(server_url, database_url):
        assert asyncio.run(look(database_url)) == known
        for unknown in (look(database_url, "other"), look(database_url.replace("?", "_2?"))):
            with pytest.raises(ConfigError, match="is not known: the database does not answer"):
                asyncio.run(unknown)
    assert datetime.now(UTC) - known.read_at < timedelta(minutes=1)
    assert known.policies[1].manifest == {"f": "00"}


def test_a_kept_state_that_is_no_text_is_none(database_url: str, tmp_path: Path) -> None:
    follower = DeploymentFollower(database_url, LINEAGE, tmp_path)
    (tmp_path / f"deployment-{LINEAGE}.json").write_bytes(b'{"database": "\xff"}')

    assert not follower.has_kept_state()
