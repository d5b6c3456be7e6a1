"""From an answer in the game back to its rows, and from a row forward to the agents: each sentence follows from the database."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from published import MANIFEST, move, record_step, serve

from babylon_rl.common.canonical import to_json
from babylon_rl.database import tables as t
from babylon_rl.deployment.stages import Arm, Deployment, MoveKind, Stage
from babylon_rl.errors import DataError
from babylon_rl.export.explain import explain
from babylon_rl.export.trace import trace
from babylon_rl.pipeline.train import train_range
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl.store.call_traces import digest_manifest
from babylon_rl.store.deployments import Move
from babylon_rl.store.service_times import find_placing_move
from babylon_rl_tests.factories import insert_row
from babylon_rl_tests.played import FIRST, judge, prepare


@pytest.fixture
def deployed(ours: Workspace) -> Workspace:
    """Step 1 deployed, step 2 on trial; both answer agents."""
    record_step(ours, FIRST.next(2), 1)
    move(ours, MoveKind.CANARY, 1, incumbent=0, candidate=1, stage=Stage.CANARY)
    move(ours, MoveKind.PROMOTED, 1, incumbent=1)
    move(ours, MoveKind.CANARY, 2, incumbent=1, candidate=2, stage=Stage.CANARY)
    serve(ours, "call-a", "a", 1)
    serve(ours, "call-b", "b", 2, Arm.CANDIDATE)
    return ours


def story(workspace: Workspace, id_: str) -> str:
    return " ".join(trace(workspace, id_).sentences)


def rows_of_window(workspace: Workspace, hour: int) -> list[str]:
    with workspace.store.engine.connect() as conn:
        c = t.row_outcomes.c
        query = sa.select(c.source_id).where(c.window_id == str(FIRST.next(hour))).order_by(c.source_id.desc())
        return list(conn.scalars(query))


def test_an_answer_leads_back_to_its_rows(deployed: Workspace) -> None:
    told = trace(deployed, "call-b").sentences
    now = f"{deployed.now():%Y-%m-%d}"
    assert len(told) == 8
    assert told[0].startswith(f"call-b was asked on {now} ")
    assert told[0].endswith("and answered by babylon-mmo@2 (candidate) after 12 ms.")
    assert "by agent b, in window " in told[0]
    assert told[1].startswith(f"babylon-mmo@2 had its place by move 3 (canary) of {now} ")
    assert told[1].endswith("made by the operator: babylon-mmo@2 did what a test asks.")
    digest = digest_manifest(MANIFEST)[:12]
    assert told[2].endswith(f"by trainer cpu on shipped; the digest that answered, {digest}, is the recorded one.")
    assert told[3] == (
        "It is the result of 2 iterations, each trained on top of the one before: babylon-mmo@2 (1 window), babylon-mmo@1 (2 windows)."
    )
    windows = [str(FIRST.next(i)) for i in (2, 1, 0)]
    assert told[4] == f"They learned from 3 windows, from {FIRST} to {FIRST.next(2)}; the newest: {', '.join(windows)}."
    assert told[5].startswith(f"Those were 3 groups with 15 ranked trajectories; the newest: {FIRST.next(2)}#")
    assert told[6].startswith("Their rewards come from 3 judgments by hindsight hindsight-1 (3); the newest: ")
    newest = rows_of_window(deployed, 2)[:3]
    assert told[7] == f"They rest on 45 source rows of the game's trajectories; the newest: {', '.join(newest)}."
    assert "1 iteration, " in story(deployed, "call-a")
    assert "30 source rows" in story(deployed, "call-a")
    assert "had its place by move 2 (promoted)" in story(deployed, "call-a"), (
        "it stands there since, whatever came after"
    )


def test_a_pause_gave_the_base_no_place() -> None:
    """A move that is about nothing else left it where it was; the trace named it as the move that deployed the base."""
    states = [
        (MoveKind.PAUSED, Deployment(lineage="l", number=1, paused=True)),
        (MoveKind.RESUMED, Deployment(lineage="l", number=2)),
        (MoveKind.PROMOTED, Deployment(lineage="l", number=3, incumbent=4)),
        (MoveKind.ROLLED_BACK, Deployment(lineage="l", number=4)),
    ]
    moves = [Move(kind=k, after=d, subject=0, reason="r", made_by="operator") for k, d in states]
    assert find_placing_move(moves, 2, 0) is None
    assert find_placing_move(moves, 4, 0) is moves[3]
    assert find_placing_move(moves, 3, 4) is moves[2]


def test_a_member_that_was_left_out_taught_nothing(deployed: Workspace) -> None:
    j = t.judgments.c
    with deployed.store.engine.begin() as conn:
        left_out = conn.scalar(sa.select(sa.func.min(j.trajectory_id)).where(j.window_id == str(FIRST)))
        conn.execute(sa.delete(t.judgments).where(j.trajectory_id == left_out))
    facts = trace(deployed, "call-b", with_ids=True).facts
    assert (facts["counts"]["trajectories"], facts["counts"]["rows"], len(facts["row_ids"])) == (14, 42, 42)
    assert "No checkpoint learned from it" in story(deployed, str(left_out))


def test_all_ids_are_given_to_programs(deployed: Workspace) -> None:
    facts = json.loads(to_json(trace(deployed, "call-b", with_ids=True).facts))
    assert facts["row_ids"] == [r for hour in (2, 1, 0) for r in rows_of_window(deployed, hour)]
    assert [w["window_id"] for w in facts["windows"]] == [str(FIRST.next(i)) for i in (2, 1, 0)]
    assert facts["counts"] == {"windows": 3, "groups": 3, "judgments": 3, "trajectories": 15, "rows": 45}
    assert [c["step"] for c in facts["checkpoints"]] == [2, 1]
    assert facts["digest_is_recorded"] is True


def test_each_way_an_answer_came_is_worded(deployed: Workspace) -> None:
    serve(deployed, "call-base", "a", 0, deployment=0)
    serve(deployed, "call-pin", "a", 1, Arm.PINNED)
    serve(deployed, "call-shadow", "a", 2, Arm.SHADOW)
    serve(deployed, "call-fell", "b", 1, fell_back_from=2)
    serve(deployed, "call-500", None, 1, Arm.UNNAMED, status=502)
    serve(deployed, "call-left", "a", 1, status=499)
    serve(deployed, "call-other", "a", 2, Arm.CANDIDATE, digest="ab" * 32)
    serve(deployed, "call-vllm", "a", 1, digest="")
    serve(deployed, "call-lost", "a", 9, Arm.PINNED)
    base = story(deployed, "call-base")
    assert (
        "the base answers everybody until a checkpoint is deployed. It is the base, which learned from no row" in base
    )
    assert "The caller named babylon-mmo@1 itself, under deployment 3." in story(deployed, "call-pin")
    assert "put to babylon-mmo@2 beside the incumbent: nobody saw that answer." in story(deployed, "call-shadow")
    assert "(incumbent), in place of babylon-mmo@2, which could not after" in story(deployed, "call-fell")
    assert "by a caller that named no agent" in story(deployed, "call-500")
    assert "it failed with status 502" in story(deployed, "call-500")
    assert "when the caller left before the end" in story(deployed, "call-left")
    assert "THE DIGEST DIFFERS: abababababab answered" in story(deployed, "call-other")
    assert trace(deployed, "call-other").facts["digest_is_recorded"] is False
    assert "the server that answered names no digest" in story(deployed, "call-vllm")
    assert trace(deployed, "call-vllm").facts["digest_is_recorded"] is None
    assert "babylon-mmo@9 is not in the ledger of this database" in story(deployed, "call-lost")


def test_a_row_leads_forward_to_the_agents_it_answers(deployed: Workspace) -> None:
    first, last = rows_of_window(deployed, 0)[0], rows_of_window(deployed, 2)[0]
    told = trace(deployed, first).sentences
    assert told[0].startswith(f"Row {first} (")
    assert told[1:] == [
        "babylon-mmo@1 learned from it; so did, by descent from it, babylon-mmo@2.",
        "Of those, babylon-mmo@1 (incumbent) and babylon-mmo@2 (canary) are deployed now.",
        "2 agents had the last answer of the last 24 hours from them: a (babylon-mmo@1), b (babylon-mmo@2).",
    ]
    assert trace(deployed, last).sentences[1:] == [
        "babylon-mmo@2 learned from it; no later checkpoint descends from it.",
        "Of those, babylon-mmo@2 (canary) is deployed now.",
        "1 agent had the last answer of the last 24 hours from them: b (babylon-mmo@2).",
    ]
    with deployed.store.engine.connect() as conn:
        c = t.row_outcomes.c
        trajectory_id, agent = conn.execute(sa.select(c.trajectory_id, c.agent_id).where(c.source_id == first)).one()
    assert trace(deployed, trajectory_id).sentences == told
    assert trace(deployed, f"{FIRST}/{agent}").sentences[1:] == told[1:]
    (lineage,) = trace(deployed, first).facts["lineages"]
    assert lineage == {
        "lineage": "babylon-mmo",
        "by_descent": ["babylon-mmo@2"],
        "deployed": {"incumbent": 1, "canary": 2},
        "agents": {"a": "babylon-mmo@1", "b": "babylon-mmo@2"},
    }


def test_only_the_newest_answers_of_a_day_count(deployed: Workspace) -> None:
    last = rows_of_window(deployed, 2)[0]
    serve(deployed, "call-b2", "b", 1)
    serve(deployed, "call-b3", "b", 2, Arm.SHADOW)
    serve(deployed, "call-c", "c", 2, Arm.CANDIDATE, asked_at=deployed.now() - timedelta(hours=25))
    serve(deployed, "call-d", "d", 2, Arm.CANDIDATE, status=500)
    assert trace(deployed, last).sentences[-1] == "No agent was answered by one of them in the last 24 hours."
    move(deployed, MoveKind.ROLLED_BACK, 2, incumbent=1)
    assert trace(deployed, last).sentences[-2] == "None of those is deployed now."


def test_a_row_that_taught_nothing_says_why(ours: Workspace) -> None:
    told = trace(ours, rows_of_window(ours, 2)[0]).sentences
    assert told[1] == "No checkpoint learned from it, so no agent is answered by it."
    assert "No checkpoint of lineage babylon-mmo has used it yet" in told[2]


def test_rows_that_came_since_are_not_said_to_have_trained(deployed: Workspace) -> None:
    early = rows_of_window(deployed, 0)[0]
    late = insert_row(deployed.game, "agent-1-habits", window=FIRST, tick=1)["id"]
    prepare(deployed, FIRST)
    judge(deployed, [FIRST])
    for row in (early, late):
        told = story(deployed, row)
        assert f"babylon-mmo@1 trained on its agent's trajectory in {FIRST} before rows of that came or changed" in told
        assert "learned from it;" not in told
    answer = story(deployed, "call-a")
    assert "15 source rows" in answer
    assert "The rows of 1 window came or changed since" in answer


@pytest.mark.parametrize(
    ("id_", "sentence"),
    [("call-nothing", "is no call that the gateway recorded"), ("nobody", "is neither the id nor the trajectoryId")],
)
def test_an_unknown_id_is_one_sentence(ours: Workspace, id_: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        trace(ours, id_)


@pytest.fixture
def trained(ours: Workspace) -> Iterator[Workspace]:
    """A lineage of its own on the same windows, trained for real."""
    settings = Settings.load(
        BABYLON_HOME=str(ours.settings.home),
        DATABASE_URL=ours.settings.database.url,
        BABYLON_PLATFORM_URL=None,
        BABYLON_LINEAGE="real",
    )
    with open_workspace(settings) as workspace:
        for hour in (0, 1):
            train_range(workspace, [FIRST.next(hour)], batch_size=1, max_checkpoints=1)
        yield workspace


def test_a_trained_lineage_is_traced_both_ways_by_command(trained: Workspace) -> None:
    manifest = trained.ledger.manifest(2)
    assert manifest is not None
    move(trained, MoveKind.PROMOTED, 2, incumbent=2)
    serve(trained, "call-real", "a", 2, digest=digest_manifest(manifest))
    url = trained.settings.database.url
    assert url is not None
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "BABYLON_HOME": str(trained.settings.home),
        "DATABASE_URL": url.get_secret_value(),
    }

    def run(*arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "babylon_rl.cli.main", "trace", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
        assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
        return done.stdout + done.stderr

    told = run("call-real")
    assert "is the recorded one." in told
    assert (
        "result of 2 iterations, each trained on top of the one before: real@2 (1 window), real@1 (1 window)." in told
    )
    ids = json.loads(run("call-real", "--json"))["row_ids"]
    assert sorted(ids) == sorted(rows_of_window(trained, 0) + rows_of_window(trained, 1))
    forward = run(ids[-1])
    assert "real@1 learned from it; so did, by descent from it, real@2." in forward
    assert "babylon-mmo@1 learned from it; no later checkpoint descends from it." in forward, (
        "two lineages used the hour"
    )
    assert "1 agent had the last answer of the last 24 hours from them: a (real@2)." in forward
    assert re.search(r"'call-none' is no call", run("call-none", status=2))
    with psycopg.connect(url.get_secret_value()) as conn:
        conn.execute(
            "UPDATE babylon_rl.checkpoints SET manifest = '{\"adapter\":\"00\"}' WHERE lineage = 'real' AND step = 2"
        )
    assert "THE DIGEST DIFFERS" in run("call-real")


@pytest.mark.parametrize("id_", ["call-\udce9", "\udce9"])
def test_an_id_that_is_no_text_is_one_sentence(ours: Workspace, id_: str) -> None:
    with pytest.raises(DataError, match="no UTF-8 text"):
        trace(ours, id_)
    with pytest.raises(DataError, match="no UTF-8 text"):
        explain(ours, id_)
