"""What the game's own tables say after publishing, in either spelling; and that nothing else was touched."""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from published import OpenForeign, a_result, everything, move, record_step, rows_of, serve

from babylon_rl.common.statistics import Interval
from babylon_rl.database import tables as t
from babylon_rl.deployment.stages import Arm, MoveKind, Stage
from babylon_rl.errors import ConfigError, DataError
from babylon_rl.ingest.window_summary import count_changes, refresh
from babylon_rl.pipeline.publish import Publication, publish
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.deployments import read_moves
from babylon_rl.store.evaluations import write_evaluation
from babylon_rl.store.service_times import ServiceStatus, read_service
from babylon_rl.training.rewards import rewards_of
from babylon_rl_tests.factories import insert_row
from babylon_rl_tests.played import FIRST, hours, judge, prepare
from babylon_rl_tests.test_cli import run

TABLES = ("training_batches", "trained_models", "reward_judgments", "trajectories")
REWARDS = {"aiJudgeReward", "aiJudgeReasoning", "judgedAt", "usedInTraining", "trainedInBatch"}


def url_of(workspace: Workspace) -> str:
    url = workspace.settings.database.url
    assert url is not None
    return url.get_secret_value()


def counts_of(done: Publication) -> dict[str, tuple[int, int]]:
    return {c.table: (c.new, c.changed) for c in done.tables}


def test_a_lineage_stands_in_the_games_own_tables(ours: Workspace) -> None:
    done = publish(ours)

    assert counts_of(done) == {
        "training_batches": (1, 0),
        "trained_models": (1, 0),
        "trajectories": (0, 45),
        "reward_judgments": (45, 0),
    }
    assert done.changed_windows == 0
    (batch,) = rows_of(
        url_of(ours), "training_batches", ["id", "batch_id", "status", "model_version", "training_loss"], "id"
    )
    assert re.fullmatch(r"babylon_rl/\w{8}/babylon-mmo@1", batch[0])
    assert batch[1:] == (batch[0], "completed", "v1.0.1", 0.25)
    ((ids, ranks, rewards, improvement),) = rows_of(
        url_of(ours),
        "training_batches",
        ["trajectory_ids", "rankings_json", "rewards_json", "policy_improvement"],
        "id",
    )
    assert (len(json.loads(ids)), improvement) == (30, None), (
        "three rows of five agents in two hours, and nothing measured"
    )
    (model,) = rows_of(url_of(ours), "trained_models", ["model_id", "training_batch", "status", "storage_path"], "id")
    assert model == ("babylon-mmo@1", batch[0], "training", "checkpoints/0001"), (
        "recorded only: the game must not deploy it"
    )

    by_id = {
        r[0]: r[1:]
        for r in rows_of(
            url_of(ours),
            "trajectories",
            [
                "trajectory_id",
                "window_id",
                "agent_id",
                "ai_judge_reward",
                "ai_judge_reasoning",
                "judged_at",
                "used_in_training",
                "trained_in_batch",
            ],
            "id",
        )
    }
    judged = {
        r[0]: r[1:]
        for r in rows_of(
            url_of(ours),
            "reward_judgments",
            ["trajectory_id", "overall_score", "normalized_score", "rank", "group_id"],
            "id",
        )
    }
    assert by_id.keys() == judged.keys()
    for trajectory_id, (window, agent, score, why, at, used, trained_in) in by_id.items():
        judgment = ours.store.judgment(FIRST.parse(window))
        assert judgment is not None
        own = f"{window}/{agent}"
        mine = next(s for s in judgment.scores if s.trajectory_id == own)
        reward = rewards_of(judgment)[own]
        assert (score, why) == (mine.value, mine.explanation)
        assert at is not None
        assert judged[trajectory_id][:2] == (mine.value, reward)
        assert judged[trajectory_id][3] == judgment.group_id
        assert (used, trained_in) == ((True, batch[0]) if window != str(FIRST.next(2)) else (False, None))
        if used:
            place = json.loads(ids).index(trajectory_id)
            assert (json.loads(rewards)[place], json.loads(ranks)[place]) == (reward, judged[trajectory_id][2])


def test_publishing_twice_writes_nothing_the_second_time(ours: Workspace) -> None:
    publish(ours)
    before = everything(url_of(ours), TABLES)
    done = publish(ours)
    assert done.is_unchanged
    assert [c.unchanged for c in done.tables] == [1, 1, 45, 45]
    assert everything(url_of(ours), TABLES) == before


def test_publishing_makes_no_window_read_or_judged_again(ours: Workspace) -> None:
    windows = hours(3)
    engine = ours.store.engine
    states = ours.ledger.eligibility.states(windows)
    counted = count_changes(engine, windows)
    publish(ours)
    refresh(ours.game, engine, now=datetime.now(UTC))
    assert count_changes(engine, windows) == counted
    assert ours.ledger.eligibility.states(windows) == states
    assert ours.ledger.stale() == []
    with engine.connect() as conn:
        assert conn.scalar(sa.select(sa.func.count()).select_from(t.row_changes)) == 0


def test_a_changed_judgment_updates_its_rows_and_no_batch(ours: Workspace) -> None:
    publish(ours)
    batch = rows_of(url_of(ours), "training_batches", ["trajectory_ids", "rewards_json"], "id")
    c = t.judgments.c
    with ours.store.engine.begin() as conn:
        old = conn.execute(sa.select(t.judgments).where(c.window_id == str(FIRST))).mappings().all()
        kept = [{k: v for k, v in r.items() if k != "tokens"} for r in old]
        anew = [r | {"judgment_key": "anew", "score": 1 - r["score"], "explanation": "anew"} for r in kept]
        conn.execute(sa.insert(t.judgments), anew)
        conn.execute(
            sa.update(t.window_judgments)
            .where(t.window_judgments.c.window_id == str(FIRST))
            .values(judgment_key="anew")
        )
        conn.execute(sa.update(t.check_results).values(about="anew").where(t.check_results.c.window_id == str(FIRST)))
    done = publish(ours)
    assert counts_of(done)["trajectories"] == (0, 15)
    assert counts_of(done)["reward_judgments"] == (0, 15)
    rows = rows_of(url_of(ours), "trajectories", ["ai_judge_reasoning", "used_in_training"], "id")
    assert sum(r == ("anew", True) for r in rows) == 15, "its step trained on the group, whatever it is judged now"
    assert rows_of(url_of(ours), "training_batches", ["trajectory_ids", "rewards_json"], "id") == batch


def test_late_rows_neither_lose_nor_gain_a_training(ours: Workspace) -> None:
    publish(ours)
    before = rows_of(url_of(ours), "trajectories", ["id", "trained_in_batch"], "id")
    late = insert_row(ours.game, "agent-1-habits", window=FIRST, tick=1)["id"]
    prepare(ours, FIRST)
    judge(ours, [FIRST])
    done = publish(ours)
    assert done.changed_windows == 1
    after = dict(rows_of(url_of(ours), "trajectories", ["id", "trained_in_batch"], "id"))
    assert after.pop(late) is None
    assert sorted(after.items()) == before


def test_a_score_that_failed_a_check_is_not_published(ours: Workspace) -> None:
    with ours.store.engine.begin() as conn:
        c = t.check_results.c
        conn.execute(
            sa.update(t.check_results)
            .values(passed=False)
            .where(c.window_id == str(FIRST), c.check_name == "scores_are_in_unit_interval")
        )
    assert counts_of(publish(ours))["reward_judgments"] == (30, 0)


def test_improvement_is_over_the_parent_in_the_same_game(ours: Workspace, foreign: Workspace) -> None:
    for workspace in (ours, foreign):
        for step, mean in ((0, 10.0), (1, 17.5)):
            write_evaluation(
                workspace.store.engine,
                "babylon-mmo",
                step,
                "suite",
                a_result(f"babylon-mmo@{step}", mean),
                base=a_result("babylon-mmo@0", 10.0),
                lift=Interval(mean=mean - 10, lo=1.0, hi=9.0, n=3),
            )
    publish(ours)
    publish(foreign, into_foreign_game=True)
    assert rows_of(url_of(ours), "training_batches", ["policy_improvement"], "id") == [(7.5,)]
    assert rows_of(url_of(foreign), "training_batches", ["policyImprovement"], "id") == [(None,), (None,)]
    ((metrics,),) = rows_of(url_of(ours), "trained_models", ["eval_metrics"], "id")
    assert metrics["simulator"]["lift_interval_usd"] == [1.0, 9.0]
    assert rows_of(url_of(foreign), "trained_models", ["evalMetrics"], "id") == [(None,), (None,)], (
        "it was not played there"
    )


def test_models_say_what_is_deployed_and_who_uses_it(ours: Workspace) -> None:
    record_step(ours, FIRST.next(2), 1)
    move(ours, MoveKind.CANDIDATE, 1, incumbent=0, candidate=1, stage=Stage.CANDIDATE)
    move(ours, MoveKind.CANARY, 1, incumbent=0, candidate=1, stage=Stage.CANARY)
    move(ours, MoveKind.PROMOTED, 1, incumbent=1)
    move(ours, MoveKind.CANARY, 2, incumbent=1, candidate=2, stage=Stage.CANARY)
    serve(ours, "call-1", "a", 1)
    serve(ours, "call-2", "a", 1)
    serve(ours, "call-3", "b", 2, Arm.CANDIDATE)
    serve(ours, "call-4", "b", 2, Arm.SHADOW)
    serve(ours, "call-5", "c", 1, status=500)
    serve(ours, "call-6", "gone", 1, asked_at=ours.now() - timedelta(days=2))
    with ours.store.engine.begin() as conn:
        look = {
            "lineage": "babylon-mmo",
            "rollout": "rollout-2",
            "window_id": "2025-01-16T00:00",
            "number": 4,
            "stage": "canary",
        }
        said = {
            "decision": "hold",
            "reason": "r",
            "windows": 6,
            "mean_usd": 3.5,
            "lo_usd": -1.0,
            "hi_usd": 8.0,
            "facts": "{}",
        }
        conn.execute(sa.insert(t.deployment_looks), [look | said])
    publish(ours)
    columns = ["status", "agents_using", "total_inferences", "archived_at"]
    assert rows_of(url_of(ours), "trained_models", columns, "id") == [("deployed", 1, 3, None), ("testing", 1, 1, None)]
    assert rows_of(url_of(ours), "training_batches", ["policy_improvement"], "id") == [(None,), (3.5,)]
    ((_,), (metrics,)) = rows_of(url_of(ours), "trained_models", ["eval_metrics"], "id")
    assert metrics["live"]["against"] == "babylon-mmo@1"
    assert publish(ours).is_unchanged

    move(ours, MoveKind.ROLLED_BACK, 2, incumbent=1)
    assert counts_of(publish(ours))["trained_models"] == (0, 1)
    moves = read_moves(ours.store.engine, "babylon-mmo")
    ((_, _), (status, archived)) = rows_of(url_of(ours), "trained_models", ["status", "archived_at"], "id")
    assert moves[-1].at is not None
    assert status == "archived"
    assert abs(archived - moves[-1].at.replace(tzinfo=None)) < timedelta(milliseconds=2)


def test_service_follows_the_moves_there_and_back(ours: Workspace) -> None:
    for kind, subject, incumbent, candidate, stage in [
        (MoveKind.SHADOW, 1, 0, 1, Stage.SHADOW),
        (MoveKind.ENDED, 1, 0, None, Stage.NONE),
        (MoveKind.CANARY, 2, 0, 2, Stage.CANARY),
        (MoveKind.PROMOTED, 2, 2, None, Stage.NONE),
        (MoveKind.PROMOTED, 3, 3, None, Stage.NONE),
        (MoveKind.ROLLED_BACK, 3, 2, None, Stage.NONE),
        (MoveKind.CANDIDATE, 1, 2, 1, Stage.CANDIDATE),
    ]:
        move(ours, kind, subject, incumbent=incumbent, candidate=candidate, stage=stage)
    moves = read_moves(ours.store.engine, "babylon-mmo")
    at = [m.at for m in moves]
    ended, service = read_service(moves[:2])[1], read_service(moves)
    assert (ended.status, ended.deployed_at, ended.archived_at) == (ServiceStatus.ARCHIVED, None, at[1])
    assert {s: x.status.value for s, x in service.items()} == {
        0: "archived",
        1: "testing",
        2: "deployed",
        3: "archived",
    }
    assert (service[2].deployed_at, service[2].archived_at) == (at[5], None), "the second time it was deployed"
    assert (service[3].deployed_at, service[3].archived_at) == (at[4], at[5])
    assert service[1].archived_at is None, "it is on trial again"


# ── another game's database ────────────────────────────────────────────────────────────────────────


def test_another_game_is_written_only_on_request(foreign: Workspace, game_url: str) -> None:
    before = everything(game_url, TABLES)
    with pytest.raises(ConfigError, match=r"another game's.*nothing was written.*--into-foreign-game"):
        publish(foreign)
    done = publish(foreign, dry_run=True)
    assert counts_of(done) == {
        "training_batches": (1, 0),
        "trained_models": (1, 0),
        "trajectories": (0, 15),
        "reward_judgments": (14, 0),
    }
    assert "only --into-foreign-game writes them" in done.notes[-1]
    assert everything(game_url, TABLES) == before


def test_either_spelling_and_no_other_row_or_column(foreign: Workspace, game_url: str) -> None:
    names = [
        c
        for (c,) in rows_of(
            game_url, "information_schema.columns WHERE table_name = 'trajectories'", ["column_name"], "column_name"
        )
    ]
    others = [n for n in names if n not in REWARDS]
    before, own = rows_of(game_url, "trajectories", others, "id"), {}
    for table in TABLES[:3]:
        own[table] = [r for r in everything(game_url, [table])[table] if r[1].startswith("(own,")]
    done = publish(foreign, into_foreign_game=True)

    assert counts_of(done) == {
        "training_batches": (1, 0),
        "trained_models": (1, 0),
        "trajectories": (0, 15),
        "reward_judgments": (14, 0),
    }
    assert [c.kept for c in done.tables] == [0, 0, 0, 1], "another judge's row stays"
    assert rows_of(game_url, "trajectories", others, "id") == before
    for table, rows in own.items():
        assert [r for r in everything(game_url, [table])[table] if r[1].startswith("(own,")] == rows
    assert [r[0] for r in rows_of(game_url, "trajectories", ["usedInTraining"], "id")] == [True] * 10 + [False] * 5
    assert all(r[0] is not None for r in rows_of(game_url, "trajectories", ["aiJudgeReward"], "id"))
    published = everything(game_url, TABLES)
    assert publish(foreign, into_foreign_game=True).is_unchanged
    assert everything(game_url, TABLES) == published
    engine, windows = foreign.store.engine, hours(3)
    counted = count_changes(engine, windows)
    refresh(foreign.game, engine, now=datetime.now(UTC), full=True)
    assert count_changes(engine, windows) == counted, "polling sees no change of what is read"


def test_a_role_that_may_only_read_gets_the_grants(
    foreign: Workspace, game_url: str, open_foreign: OpenForeign
) -> None:
    role = f"publisher_{os.getpid()}"
    with psycopg.connect(game_url, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {role} LOGIN".encode())
        conn.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}".encode())
        conn.execute(f"GRANT {role} TO CURRENT_USER".encode())
    as_role = (
        sa.make_url(game_url).update_query_dict({"options": f"-crole={role}"}).render_as_string(hide_password=False)
    )
    before = everything(game_url, TABLES)
    try:
        with open_foreign(as_role) as workspace:
            assert counts_of(publish(workspace, dry_run=True))["trajectories"] == (0, 15)
            with pytest.raises(
                ConfigError, match="may not write into 4 of the game's tables; nothing was written"
            ) as refused:
                publish(workspace, into_foreign_game=True)
            assert everything(game_url, TABLES) == before
            grants = re.findall(r"GRANT .*?;", str(refused.value))
            assert (
                f'GRANT UPDATE ("aiJudgeReward", "aiJudgeReasoning", "judgedAt", "usedInTraining", "trainedInBatch") ON trajectories TO "{role}";'
                in grants
            )
            with psycopg.connect(game_url, autocommit=True) as conn:
                for grant in grants:
                    conn.execute(grant.encode())
            assert counts_of(publish(workspace, into_foreign_game=True))["trajectories"] == (0, 15), (
                "and they are enough"
            )
        read_only = sa.make_url(game_url).update_query_dict({"options": "-cdefault_transaction_read_only=on"})
        with open_foreign(read_only.render_as_string(hide_password=False)) as workspace:
            with pytest.raises(ConfigError, match="may only read"):
                publish(workspace, into_foreign_game=True)
            assert publish(workspace, dry_run=True).is_unchanged
    finally:
        with psycopg.connect(game_url, autocommit=True) as conn:
            conn.execute(f"DROP OWNED BY {role}".encode())
            conn.execute(f"DROP ROLE {role}".encode())


def test_what_the_game_has_no_place_for_is_said(foreign: Workspace, game_url: str) -> None:
    with psycopg.connect(game_url) as conn:
        conn.execute("DROP TABLE reward_judgments")
        conn.execute('ALTER TABLE trajectories DROP COLUMN "aiJudgeReasoning", DROP COLUMN "usedInTraining"')
        conn.execute('ALTER TABLE trained_models DROP COLUMN "storagePath"')
        conn.execute("ALTER TABLE training_batches ADD owner text NOT NULL DEFAULT 'x'")
        conn.execute("ALTER TABLE training_batches ALTER owner DROP DEFAULT")
    done = publish(foreign, into_foreign_game=True)
    assert counts_of(done) == {"trajectories": (0, 15)}
    assert [n.partition(",")[0] for n in done.notes] == [
        "the game's table 'training_batches' wants a value for column 'owner'",
        "the game's table 'trained_models' has no column 'storage_path' in any spelling",
        "the game's table 'trajectories' has no column 'ai_judge_reasoning'",
        "the game has no table 'reward_judgments'",
    ]
    assert publish(foreign, into_foreign_game=True).is_unchanged


def test_another_writers_model_of_our_name_is_named(foreign: Workspace, game_url: str) -> None:
    with psycopg.connect(game_url) as conn:
        conn.execute("""UPDATE trained_models SET "modelId" = 'babylon-mmo@1'""")
    before = everything(game_url, TABLES)
    with pytest.raises(DataError, match="'trained_models' has a row with model_id 'babylon-mmo@1' that another writer"):
        publish(foreign, into_foreign_game=True)
    assert everything(game_url, TABLES) == before


def test_rows_that_the_game_deleted_are_counted(foreign: Workspace, game_url: str) -> None:
    with psycopg.connect(game_url) as conn:
        conn.execute("DELETE FROM trajectories WHERE id = '001003'")
    done = publish(foreign, into_foreign_game=True)
    assert [(c.table, c.gone) for c in done.tables if c.gone] == [("trajectories", 1), ("reward_judgments", 1)]
    assert counts_of(done)["reward_judgments"] == (13, 0)
    assert all(c.unchanged == 0 for c in done.tables)


def test_the_games_automation_finds_the_incumbent_only(foreign: Workspace, game_url: str) -> None:
    """The two questions that both generations ask: which model all agents take up, and which one to deploy."""
    record_step(foreign, FIRST.next(2), 1)
    latest = "SELECT \"modelId\" FROM trained_models WHERE status IN ('ready', 'deployed') ORDER BY \"createdAt\" DESC LIMIT 1"
    deployable = """SELECT m."modelId" FROM training_batches b LEFT JOIN trained_models m ON m."trainingBatch" = b.id
                    WHERE b.status = 'completed' AND m.status = 'ready' AND m."deployedAt" IS NULL"""
    pending = "SELECT id FROM training_batches WHERE status = 'pending' AND id <> 'own'"

    def ask(query: str) -> list[tuple[str, ...]]:
        with psycopg.connect(game_url) as conn:
            return conn.execute(query.encode()).fetchall()

    publish(foreign, into_foreign_game=True)
    assert ask(latest) == ask(deployable) == ask(pending) == []
    move(foreign, MoveKind.PROMOTED, 1, incumbent=1)
    move(foreign, MoveKind.CANARY, 2, incumbent=1, candidate=2, stage=Stage.CANARY)
    publish(foreign, into_foreign_game=True)
    assert ask(latest) == [("babylon-mmo@1",)]
    assert ask(deployable) == ask(pending) == []


def test_instants_are_utc_whatever_the_games_zone(foreign: Workspace, game_url: str) -> None:
    judged_at = foreign.store.engine.connect()
    with psycopg.connect(game_url, autocommit=True) as conn, judged_at as own:
        conn.execute('ALTER TABLE reward_judgments ALTER "judgedAt" TYPE timestamptz')
        conn.execute("ALTER DATABASE " + conn.info.dbname + " SET timezone TO 'America/New_York'")
        foreign.game.dispose()
        publish(foreign, into_foreign_game=True)
        assert publish(foreign, into_foreign_game=True).is_unchanged
        newest = own.scalar(sa.select(sa.func.max(t.judgments.c.judged_at)))
        assert newest is not None
        (naive, aware) = (
            conn.execute("""SELECT max(x."judgedAt"), max(j."judgedAt") FROM trajectories x
                                         JOIN reward_judgments j USING ("trajectoryId") WHERE j.id <> 'own'""").fetchone()
            or ()
        )
    assert abs(naive.replace(tzinfo=UTC) - newest) < timedelta(milliseconds=1)
    assert abs(aware - newest) < timedelta(milliseconds=1)


# ── processes ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_at_the_commit_leaves_all_or_nothing(foreign: Workspace, game_url: str, moment: str) -> None:
    before = everything(game_url, TABLES)
    platform = foreign.settings.database.platform_url
    assert platform is not None
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "BABYLON_HOME": str(foreign.settings.home),
        "DATABASE_URL": game_url,
        "BABYLON_PLATFORM_URL": platform.get_secret_value(),
    }
    script = str(Path(__file__).parent / "killed_publishing.py")
    done = subprocess.run(
        [sys.executable, script, f"update training_batches/{moment}"], env=environment, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    is_unchanged = publish(foreign, dry_run=True).is_unchanged
    assert (everything(game_url, TABLES) == before, is_unchanged) == (
        (True, False) if moment == "before" else (False, True)
    )
    publish(foreign, into_foreign_game=True)
    assert publish(foreign, into_foreign_game=True).is_unchanged


def test_two_that_publish_at_once_write_once(ours: Workspace) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: publish(ours), range(4)))
    assert sorted(sum(n for n, _ in counts_of(d).values()) for d in done) == [0, 0, 0, 47]


def test_the_command_shows_then_writes_then_has_nothing(environment: dict[str, str], ours: Workspace) -> None:
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    before = everything(url_of(ours), TABLES)
    shown = run(environment, "publish", "--dry-run")
    assert "trained_models: 1 would be written, 0 would be updated" in shown
    assert "model_id = babylon-mmo@1" in shown
    assert "nothing was written; repeat without --dry-run" in shown
    assert everything(url_of(ours), TABLES) == before
    assert "trajectories: 45 updated, 0 already as they are" in run(environment, "publish")
    assert "nothing changed" in run(environment, "publish")
