"""One row's whole story: each sentence follows from the database, and changes when the database does."""

import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa

from babylon_rl.database import game_tables
from babylon_rl.database import tables as t
from babylon_rl.errors import DataError
from babylon_rl.export.explain import explain
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import a_json_call, a_json_step, insert_row
from babylon_rl_tests.played import FIRST, hours, judge, play, play_and_judge, prepare

START = FIRST.start_at.replace(tzinfo=None)


@pytest.fixture
def workspace(settings: Settings) -> Iterator[Workspace]:
    with open_workspace(settings) as w:
        yield w


def story(workspace: Workspace, name: str) -> str:
    return " ".join(explain(workspace, name))


def a_row_of(workspace: Workspace, window: HourWindow = FIRST) -> str:
    with workspace.game.connect() as conn:
        return str(
            conn.scalar(
                sa.select(sa.func.min(game_tables.trajectories.c.id)).where(
                    game_tables.trajectories.c.window_id == str(window)
                )
            )
        )


def test_a_trained_rows_story_ends_at_its_checkpoint(workspace: Workspace) -> None:
    play_and_judge(workspace, hours(3))
    plan = workspace.ledger.plan(FIRST.next(2), 3, learning_rate=None)
    assert plan is not None
    row = a_row_of(workspace)
    assert "It is planned for checkpoint babylon-mmo@1, whose training is under way or was interrupted." in story(
        workspace, row
    )
    workspace.ledger.record(plan, trainer="cpu", base_model="b", path="p", manifest={}, metrics={})

    sentences = explain(workspace, row)

    with workspace.game.connect() as conn:
        recorded = (
            conn.execute(sa.select(game_tables.trajectories).where(game_tables.trajectories.c.id == row))
            .mappings()
            .one()
        )
    judgment, group = workspace.store.judgment(FIRST), workspace.store.group(FIRST)
    assert judgment is not None
    assert group is not None
    mine = next(s for s in judgment.scores if s.trajectory_id == f"{FIRST}/{recorded['agent_id']}")
    assert len(sentences) == 7
    assert sentences[0].startswith(
        f"Row {row} ({recorded['trajectory_id']}) was recorded by agent {recorded['agent_id']}; it started 2025-"
    )
    assert sentences[1] == f"It belongs to window {FIRST}, because its own window_id is '{FIRST}'."
    assert (
        sentences[2]
        == "It is grouped (has_turn): it holds at least one call that decided, each a turn of its trajectory."
    )
    assert sentences[3].startswith(f"Trajectory {FIRST}/{recorded['agent_id']} is stitched from 3 rows: 3 turns of ")
    assert sentences[4] == f"It is one of 6 members of group {group.group_id}."
    assert f"(hindsight hindsight-1, judgment {judgment.key[:12]}) scored it {mine.value:.3f}, place " in sentences[5]
    assert sentences[5].endswith(mine.explanation)
    assert sentences[6] == "Checkpoint babylon-mmo@1 was trained on it."
    assert explain(workspace, recorded["trajectory_id"]) == sentences, "either id of the row tells the same"
    assert explain(workspace, f"{FIRST}/{recorded['agent_id']}")[1:] == sentences[3:], (
        "and so does the stitched one from there on"
    )


def test_a_judgment_changed_after_training_is_said(workspace: Workspace) -> None:
    play_and_judge(workspace, hours(3))
    plan = workspace.ledger.plan(FIRST.next(2), 3, learning_rate=None)
    assert plan is not None
    workspace.ledger.record(plan, trainer="cpu", base_model="b", path="p", manifest={}, metrics={})
    with workspace.store.engine.begin() as conn:
        conn.execute(sa.delete(t.window_judgments))
    text = story(workspace, a_row_of(workspace))
    assert "That group has no current judgment yet" in text
    assert f"trained on it, with judgment {plan.judgment_keys[0][:12]}, which is not the current one" in text


def test_why_nothing_trained_on_it_is_said(workspace: Workspace) -> None:
    play(workspace, hours(3))
    row = a_row_of(workspace)
    assert f"That window was not read yet: `babylon-rl materialize --from {FIRST} --to {FIRST}` reads it." in story(
        workspace, row
    )
    for w in hours(3):
        prepare(workspace, w)
    assert "a window trains when it is judged" in story(workspace, row)
    judge(workspace, hours(3))
    assert "its window is ready, one of 3, and a training takes 3 (BABYLON_MIN_WINDOWS)" in story(workspace, row)
    v = t.check_results
    with workspace.store.engine.begin() as conn:
        conn.execute(sa.update(v).values(passed=False).where(v.c.check_name == "groups_hold_only_what_was_logged"))
    assert "the window failed groups_hold_only_what_was_logged." in story(workspace, row)
    with workspace.store.engine.begin() as conn:
        conn.execute(sa.delete(v).where(v.c.check_name == "groups_hold_only_what_was_logged"))
    assert "groups_hold_only_what_was_logged did not run on the window." in story(workspace, row)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "because its own window_id is '2025-01-15T00:00'."),
        ({"window_id": "2025-01-15-00"}, "its own window_id is '2025-01-15-00' (a spelling of 2025-01-15T00:00)."),
        ({"start_time": START - timedelta(hours=2)}, "'2025-01-15T00:00', although it started in 2025-01-14T22:00."),
        ({"window_id": None}, "window 2025-01-15T00:00, the UTC hour of its start, because its own window_id is null."),
        (
            {"window_id": "test-window"},
            "the UTC hour of its start, because its own window_id is 'test-window', which is no",
        ),
        ({"end_time": None}, "ended at an unknown time"),
        ({"start_time": "infinity"}, "because its own window_id is '2025-01-15T00:00', although it started in 9999-"),
    ],
)
def test_the_rule_that_chose_the_window_is_named(
    workspace: Workspace, changes: dict[str, object], sentence: str
) -> None:
    row = insert_row(workspace.game, window=FIRST, **changes)
    assert sentence in story(workspace, row["id"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps_json": "[{"}, "It is quarantined (bad_json): its stepsJson is no JSON"),
        ({"steps_json": "[]"}, "It is quarantined (no_steps): it holds no steps"),
        ({"scenario_id": "benchmark-1"}, "It is excluded (benchmark): its scenario is a benchmark's."),
        ({"is_evaluation": True}, "It is excluded (evaluation)"),
    ],
)
def test_a_row_set_aside_ends_there(workspace: Workspace, changes: dict[str, object], sentence: str) -> None:
    row = insert_row(workspace.game, "a", window=FIRST, **changes)
    prepare(workspace, FIRST)
    sentences = explain(workspace, row["id"])
    assert sentences[2].startswith(sentence)
    assert sentences[3:] == ["So no group holds it, no judge saw it, and nothing trained on it."]
    assert "So no trajectory was stitched" in story(workspace, f"{FIRST}/a")


def test_a_row_without_a_turn_is_not_said_to_have_trained(workspace: Workspace) -> None:
    play(workspace, hours(1))
    thinking = a_json_step(llmCalls=[a_json_call(purpose="reasoning")])
    row = insert_row(workspace.game, "agent-1-habits", window=FIRST, tick=2, steps_json=[thinking])["id"]
    prepare(workspace, FIRST)
    judge(workspace, hours(1))
    plan = workspace.ledger.plan(FIRST, 1, learning_rate=None)
    assert plan is not None
    workspace.ledger.record(plan, trainer="cpu", base_model="b", path="p", manifest={}, metrics={})
    own = f"{FIRST}/agent-1-habits"
    assert "Checkpoint babylon-mmo@1 was trained on it." in story(workspace, own)
    told = story(workspace, row)
    assert "nothing of it was judged or trained on" in told
    assert f"`babylon-rl explain {own}`" in told
    assert "was trained on it" not in told


def test_rows_without_a_group_say_what_a_group_needs(workspace: Workspace) -> None:
    row = insert_row(workspace.game, "a", window=FIRST)
    thought = insert_row(
        workspace.game, "b", window=FIRST, steps_json=[a_json_step(llmCalls=[a_json_call(purpose="reasoning")])]
    )
    prepare(workspace, FIRST)
    text = story(workspace, row["id"])
    assert "It is ineligible (too_few_agents): too few distinct agents" in text
    assert "1 agent of 2025-01-15T00:00 can train, a group needs 5 (BABYLON_MIN_AGENTS)" in text
    assert "(no_turns)" in story(workspace, thought["id"])
    assert "Agent b has no trajectory" in story(workspace, thought["id"])


def test_late_moved_and_deleted_rows_are_told_apart(workspace: Workspace) -> None:
    row = insert_row(workspace.game, "a", window=FIRST)
    prepare(workspace, FIRST)
    late = insert_row(workspace.game, "b", window=FIRST)
    assert "It arrived after that window was read" in story(workspace, late["id"])
    where = game_tables.trajectories.c.id == row["id"]
    with workspace.game.begin() as conn:
        conn.execute(sa.update(game_tables.trajectories).where(where).values(window_id=str(FIRST.next())))
    assert f"It was read when it belonged to window {FIRST}" in story(workspace, row["id"])
    with workspace.game.begin() as conn:
        conn.execute(sa.delete(game_tables.trajectories).where(where))
    assert f"Row {row['id']} ({row['trajectory_id']}) of agent a is no longer in the game's table." in story(
        workspace, row["id"]
    )


def test_a_prisma_spelling_is_read_from_the_catalog(workspace: Workspace) -> None:
    row = insert_row(workspace.game, "a", window=FIRST)
    before = explain(workspace, row["id"])
    with workspace.game.begin() as conn:
        for name, theirs in (
            ("trajectory_id", "trajectoryId"),
            ("agent_id", "agentId"),
            ("window_id", "windowId"),
            ("start_time", "startTime"),
            ("end_time", "endTime"),
        ):
            conn.execute(sa.text(f'ALTER TABLE trajectories RENAME COLUMN {name} TO "{theirs}"'))
    assert explain(workspace, row["trajectory_id"]) == before


@pytest.mark.parametrize("name", ["nobody", f"{FIRST}/nobody", "a/b/c", ""])
def test_an_unknown_id_is_one_clear_sentence(workspace: Workspace, name: str) -> None:
    insert_row(workspace.game, "a", window=FIRST)
    with pytest.raises(DataError, match="is neither the id nor the trajectoryId of a recorded row, nor a trajectory"):
        explain(workspace, name)


def run(environment: dict[str, str], *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "babylon_rl.cli.main", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return re.sub(r"\s+", " ", done.stdout + done.stderr)


def test_the_commands_export_and_explain(environment: dict[str, str], workspace: Workspace) -> None:
    play_and_judge(workspace, hours(2))
    out = workspace.settings.home / "turns.jsonl"
    output = run(
        environment, "export", "--format", "jsonl", "--out", str(out), "--from", str(FIRST), "--to", str(FIRST)
    )
    assert f"18 turns of 1 window in {out}" in output
    assert len(out.read_text().splitlines()) == 18
    assert "no window from 2025-01-16T00:00" in run(
        environment, "export", "--out", "x", "--from", "2025-01-16T00:00", status=2
    )
    row = a_row_of(workspace)
    assert run(environment, "explain", row) == story(workspace, row) + " "
    assert "'nobody' is neither" in run(environment, "explain", "nobody", status=2)
