"""Over another's game nobody runs `sync-outcomes`: the sensor's own runs compute what the game's prices tell."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster_factories import CountingJudge

from babylon_rl.cli.runner import Runner
from babylon_rl.common.progress import ignore_progress
from babylon_rl.database.migrate import upgrade
from babylon_rl.defs.automation import RANGE_END, RANGE_START, prepare_missed_windows
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl.store.eligibility import State
from babylon_rl.windows import HourWindow
from babylon_rl_tests.foreign_games import ForeignGame, foreign_game

FIRST = HourWindow.parse("2025-01-15T10:00")


@dataclass
class Clock:
    now: datetime

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(params=["G1", "G2"])
def game(request: pytest.FixtureRequest, server_url: str) -> Iterator[ForeignGame]:
    with foreign_game(server_url, request.param, FIRST) as g:
        yield g


@pytest.fixture
def theirs(game: ForeignGame, empty_database_url: str, tmp_path: Path) -> Iterator[Workspace]:
    settings = Settings.load(
        BABYLON_HOME=str(tmp_path), DATABASE_URL=game.reader_url, BABYLON_PLATFORM_URL=empty_database_url
    )
    upgrade(settings.database)
    with open_workspace(settings) as w:
        yield w


def test_a_waiting_window_is_judged_once_the_game_has_prices(
    game: ForeignGame, theirs: Workspace, runner: Runner, judge: CountingJudge
) -> None:
    for table in ("StockPrice", "PredictionPriceHistory", "Market"):
        game.run(f'TRUNCATE "{table}"')
    before = game.digests()
    clock = Clock(game.hours[-1].end_at + timedelta(minutes=11))
    workspace = replace(theirs, now=clock)
    resources: dict[str, object] = {"workspace": workspace, "judge": judge, "progress": ignore_progress}

    def ask() -> dg.RunRequest | dg.SkipReason:
        context = dg.build_sensor_context(instance=runner.instance, resources={"workspace": workspace})
        said = prepare_missed_windows(context)
        assert isinstance(said, dg.RunRequest | dg.SkipReason)
        return said

    def run_what_is_asked() -> None:
        said = ask()
        assert isinstance(said, dg.RunRequest)
        runner.materialize(
            "windows", *(HourWindow.parse(said.tags[t]) for t in (RANGE_START, RANGE_END)), resources=resources
        )

    def states() -> set[State]:
        return {s.state for s in workspace.ledger.eligibility.states(game.hours)}

    run_what_is_asked()
    assert states() == {State.WAITING_FOR_OUTCOMES}
    assert isinstance(ask(), dg.SkipReason), "not before its time"
    assert game.digests() == before

    game.insert_prices()
    clock.now += timedelta(minutes=5)
    run_what_is_asked()
    assert states() == {State.JUDGED}
    assert isinstance(ask(), dg.SkipReason), "it is done"
