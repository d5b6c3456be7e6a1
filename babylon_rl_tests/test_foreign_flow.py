"""The guide's flow over the real game, both generations, as a person runs it: no dead end, and no byte of theirs changed."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from babylon_rl.database.connection import connect
from babylon_rl.errors import ConfigError
from babylon_rl.ingest.recorder import TrajectoryRecorder
from babylon_rl.windows import HourWindow
from babylon_rl_tests.foreign_games import ForeignGame, foreign_game
from babylon_rl_tests.test_cli import run

FOREIGN = "those of DATABASE_URL are another game's"


def three_hours_ago() -> HourWindow:
    return HourWindow.containing(datetime.now(UTC)).next(-4)


@pytest.fixture(params=["G1", "G2"])
def game(request: pytest.FixtureRequest, server_url: str) -> Iterator[ForeignGame]:
    with foreign_game(server_url, request.param, three_hours_ago()) as g:
        yield g


@pytest.fixture
def theirs(game: ForeignGame, environment: dict[str, str], empty_database_url: str) -> dict[str, str]:
    """The environment of a command over `game`, which may only read it, with our schema in another database."""
    return environment | {"DATABASE_URL": game.reader_url, "BABYLON_PLATFORM_URL": empty_database_url}


def test_the_guides_flow_leads_to_a_checkpoint(game: ForeignGame, theirs: dict[str, str]) -> None:
    """Played by the game → no outcomes yet → sync → ready → train → the game plays on."""
    before = game.digests()
    output = run(theirs, "check-windows", status=1)
    assert "Windows with 5+ agents: 3" in output
    assert "3 windows have no market outcomes" in output
    assert "run: babylon-rl sync-outcomes --hours 24" in output

    assert re.search(r"written=[3-9]", run(theirs, "sync-outcomes"))
    output = run(theirs, "sync-outcomes")
    assert "written=0" in output, "nothing new, because all is up to date, is no failure"
    assert re.search(r"unchanged=[3-9]", output)

    assert "READY FOR TRAINING!" in run(theirs, "check-windows")
    output = run(theirs, "materialize", "--from", str(game.hours[0]), "--to", str(game.hours[-1]))
    assert "3 of 3 windows judged" in output
    output = run(theirs, "train", "--min-agents", "5", "--iterations", "1", "--no-evaluate")
    assert "Iteration 1 complete! Checkpoint: step 1" in output
    assert "Best: player-5" in output

    output = run(theirs, "check-windows", status=1)
    assert "let the game play on" in output
    assert "spawn-test-agents" not in output
    assert game.digests() == before


def test_nothing_is_ever_played_into_anothers_game(game: ForeignGame, theirs: dict[str, str]) -> None:
    """As its owner, who may write: only the mark in a schema of ours would tell that the tables are ours."""
    owner = theirs | {"DATABASE_URL": game.url}
    before = game.digests()
    for command in ("spawn-test-agents", "demo"):
        output = run(owner, command, status=2)
        assert f"babylon-rl: {command} writes played rows" in output
        assert FOREIGN in output
        assert "run `babylon-rl check-windows`" in output
    output = run(owner, "spawn-test-agents", "--into-foreign-game", status=2)
    assert "has no column 'trajectory_id' in that spelling" in output
    assert game.digests() == before


def test_a_game_without_facts_is_told_what_is_missing(game: ForeignGame, theirs: dict[str, str]) -> None:
    for table in ("StockPrice", "PredictionPriceHistory", "Market"):
        game.run(f'TRUNCATE "{table}"')
    output = run(theirs, "sync-outcomes", status=1)
    assert "Nothing synced: the game holds no price and no resolution" in output
    assert '"public"."StockPrice"' in output
    output = run(theirs, "check-windows", status=1)
    assert "the game holds no price and no resolution" in output
    assert "sync-outcomes --hours" not in output, "it could do nothing"

    # The window waits, and is prepared as soon as the game has written its prices.
    first = str(game.hours[0])
    output = run(theirs, "materialize", "--from", first, "--to", first, status=1)
    assert "0 of 1 window judged" in output
    assert re.search(rf"{first}: .*has no .*truth to be judged by", output)
    game.insert_prices()
    assert "1 of 1 window judged" in run(theirs, "materialize", "--from", first, "--to", first)


def test_missing_rights_end_in_a_sentence(game: ForeignGame, theirs: dict[str, str]) -> None:
    for table in ("StockPrice", "PredictionPriceHistory"):
        game.run(f'REVOKE SELECT ON "{table}" FROM {game.role}')
    game.run('DROP TABLE "Market"')
    for command in ("sync-outcomes", "check-windows"):
        output = run(theirs, command, status=1)
        assert f'GRANT SELECT ON "public"."StockPrice" TO "{game.role}"' in output
        assert 'there is no table "Market"' in output


def test_hours_without_a_row_are_said_to_be_empty(game: ForeignGame, theirs: dict[str, str]) -> None:
    empty = str(game.first.next(-30))
    output = run(theirs, "materialize", "--from", empty, "--to", empty, status=1)
    assert f"{empty}: no row is recorded in it; `babylon-rl check-windows` lists the windows that have some" in output
    assert "1 materialization" in run(
        theirs, "materialize", "--from", empty, "--to", empty, "--assets", "raw_trajectories"
    )


# ── a game with snake_case tables that our migrations did not create ────────────────────────────────
@pytest.fixture
def snake_game(database_url: str, engine: sa.Engine) -> dict[str, Any]:
    """As ours, but somebody else's: no mark, and nothing in it."""
    with engine.begin() as conn:
        conn.execute(sa.text("DELETE FROM babylon_rl.created_game_tables"))
    return {"DATABASE_URL": database_url}


def count_rows(engine: sa.Engine) -> list[int]:
    tables = ("trajectories", "llm_call_logs", "market_outcomes")
    with engine.connect() as conn:
        return [conn.scalar(sa.text(f"SELECT count(*) FROM {t}")) or 0 for t in tables]


def test_rows_are_faked_into_a_snake_case_game_only_if_asked(
    environment: dict[str, str], snake_game: dict[str, Any], engine: sa.Engine
) -> None:
    theirs = environment | snake_game
    assert FOREIGN in run(theirs, "spawn-test-agents", status=2)
    assert FOREIGN in run(theirs, "demo", status=2)
    assert count_rows(engine) == [0, 0, 0]
    run(theirs, "spawn-test-agents", "--windows", "3", "--into-foreign-game")
    assert "written=3" in run(theirs, "sync-outcomes")
    rows, calls, outcomes = count_rows(engine)
    assert (rows > 0, calls > 0, outcomes) == (True, True, 0), "outcomes go into our schema all the same"
    assert "READY FOR TRAINING!" in run(theirs, "check-windows")


def test_the_recorder_refuses_anothers_tables(database_url: str, snake_game: dict[str, Any]) -> None:
    engine = connect(database_url)
    try:
        for allowed in (False, True):
            r = TrajectoryRecorder(engine, clock=lambda: datetime(2025, 1, 1, tzinfo=UTC), into_foreign_game=allowed)
            t = r.start_trajectory(agent_id="a")
            r.start_step(t, {"agentBalance": 1.0})
            r.log_llm_call(t, model="m", model_version="m@1", system_prompt="s", user_prompt="u", response="r")
            r.complete_step(t, action_type="HOLD", parameters={}, success=True)
            if allowed:
                r.end_trajectory(t)
                assert count_rows(engine) == [1, 1, 0]
            else:
                with pytest.raises(ConfigError, match="the recorder writes played rows"):
                    r.end_trajectory(t)
                assert count_rows(engine) == [0, 0, 0]
    finally:
        engine.dispose()


def test_our_own_game_without_play_is_told_to_play(environment: dict[str, str]) -> None:
    output = run(environment, "sync-outcomes", status=1)
    assert "Nothing synced: no market has a price or a resolution in the last 24 closed hours" in output
    assert "babylon-rl spawn-test-agents" in output


def test_a_game_played_by_another_model_leads_on_too(game: ForeignGame, theirs: dict[str, str]) -> None:
    """As a new game is: every command names the setting that learns from its agents, and with it the flow ends well."""
    game.run("""UPDATE trajectories SET "stepsJson" = replace("stepsJson", 'babylon-mmo@0', 'gpt-4o')""")
    run(theirs, "sync-outcomes")
    assert "0 of 36 turns were answered" in run(theirs, "check-windows", status=1)
    refused = run(theirs, "train", "--iterations", "1", "--no-evaluate", status=2)
    assert "set BABYLON_MIN_OWN_SHARE=0 to learn from others' answers" in refused
    told = run(theirs, "check-windows", status=1)
    assert "Not ready: training would refuse" in told
    assert "run: babylon-rl train" not in told, "it would be refused again"

    warm = theirs | {"BABYLON_MIN_OWN_SHARE": "0"}
    output = run(warm, "train", "--iterations", "1", "--no-evaluate")
    assert "Iteration 1 complete! Checkpoint: step 1" in output
