"""What is said of a checkpoint of a game that is not ours, and for how long nobody asks where nothing can be said."""

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest
import sqlalchemy as sa
from dagster_factories import spawn_windows

from babylon_rl.cli.runner import Runner
from babylon_rl.database import tables as t
from babylon_rl.database.migrate import upgrade
from babylon_rl.defs.automation import evaluate_checkpoints
from babylon_rl.errors import DataError
from babylon_rl.export.explain import explain
from babylon_rl.pipeline.evaluate import evaluate, unevaluated, was_trained_in_simulator
from babylon_rl.pipeline.held_out_log import better_over_worse, rank_best_first, read_action
from babylon_rl.pipeline.train import train_range
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl.store.log_evaluations import LogEvaluation, NotEvaluated, held_out_windows
from babylon_rl.types import Checkpoint
from babylon_rl_tests.another_game import FIRST, add_window, another_game


@pytest.fixture
def game_url(server_url: str) -> Iterator[str]:
    with another_game(server_url, f"babylon_test_{os.getpid()}_log", windows=5) as url:
        yield url


@pytest.fixture
def foreign(game_url: str, empty_database_url: str, tmp_path: Path) -> Iterator[Workspace]:
    settings = Settings.load(BABYLON_HOME=str(tmp_path), DATABASE_URL=game_url, BABYLON_PLATFORM_URL=empty_database_url)
    upgrade(settings.database)
    with open_workspace(settings) as workspace:
        yield workspace


def judge(workspace: Workspace, runner: Runner, resources: dict[str, object], hours: int) -> None:
    runner.materialize("windows", FIRST, FIRST.next(hours - 1), resources={**resources, "workspace": workspace})


def record(workspace: Workspace, *, trainer: str, size: int) -> Checkpoint:
    """A checkpoint trained on the first windows, by a trainer whose weights nothing here serves."""
    batch = workspace.ledger.plan(FIRST.next(size - 1), size, learning_rate=None)
    assert batch is not None
    return workspace.ledger.record(
        batch, trainer=trainer, base_model="b", path="team/project/name:step1", manifest={}, metrics={}
    )


def dollars(workspace: Workspace) -> int:
    with workspace.store.engine.connect() as conn:
        return conn.scalar(sa.select(sa.func.count()).select_from(t.evaluations)) or 0


def test_a_foreign_game_is_evaluated_on_its_own_log(
    foreign: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    """It used to get the dollars that the policy earned in our simulator, whose prompts it never saw."""
    judge(foreign, runner, resources, 5)
    train_range(foreign, [FIRST.next(1)], batch_size=2)
    [made] = foreign.ledger.checkpoints()

    hour = FIRST.next(1)
    runner.materialize(
        "policy", hour, hour, assets=["policy_evaluation"], resources={**resources, "workspace": foreign}
    )

    result = evaluate(foreign, made)
    assert isinstance(result, LogEvaluation)
    assert result.windows == tuple(str(FIRST.next(i)) for i in (2, 3, 4))
    assert set(result.changes) == {"ranks_best_first", "better_over_worse_nats", "same_action_rate", "invalid_rate"}
    assert result.policy.better_over_worse_nats != result.base.better_over_worse_nats
    change = result.changes["better_over_worse_nats"]
    assert change.lo <= change.mean <= change.hi
    assert (result.policy.answers, dollars(foreign)) == (3, 0)
    key = dg.AssetKey("policy_evaluation")
    found = runner.instance.fetch_materializations(dg.AssetRecordsFilter(key, asset_partitions=[str(hour)]), limit=1)
    shown = found.records[0].asset_materialization
    assert shown is not None
    metadata = {k: v.value for k, v in shown.metadata.items()}
    assert (metadata["evaluation"], metadata["held_out_windows"]) == ("held_out_log", 3)
    assert not [k for k in metadata if "lift" in k or "usd" in k]
    told = " ".join(explain(foreign, f"{FIRST}/ada-0"))
    assert "Evaluation of babylon-mmo@1: on 3 held-out windows of the log" in told
    assert unevaluated(foreign) == []


def test_what_was_played_decides_and_not_the_database(
    workspace: Workspace, runner: Runner, resources: dict[str, object], game_url: str
) -> None:
    """Our own tables may hold another game: one of its windows among those trained on is enough."""
    spawn_windows(workspace, 3)
    judge(workspace, runner, resources, 3)
    made = record(workspace, trainer="cpu", size=3)
    assert was_trained_in_simulator(workspace, made)
    with workspace.store.engine.begin() as conn:
        conn.execute(sa.delete(t.contextualized_groups).where(t.contextualized_groups.c.window_id == str(FIRST)))
    assert not was_trained_in_simulator(workspace, made), "what it trained on is not known any more"


def test_only_windows_that_no_step_so_far_used_are_held_out(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    spawn_windows(workspace, 5)
    judge(workspace, runner, resources, 5)
    for last in (1, 3):
        batch = workspace.ledger.plan(FIRST.next(last), 2, learning_rate=None)
        assert batch is not None
        workspace.ledger.record(batch, trainer="t", base_model="b", path="p", manifest={}, metrics={})

    held_out = [[w.window_id for w in held_out_windows(workspace.store.engine, "babylon-mmo", step)] for step in (1, 2)]

    assert held_out == [[str(FIRST.next(i)) for i in (2, 3, 4)], [str(FIRST.next(4))]]


def test_what_cannot_be_evaluated_is_not_asked_for_ever(
    foreign: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    judge(foreign, runner, resources, 5)
    made = record(foreign, trainer="serverless", size=2)
    assert unevaluated(foreign) == [1]

    result = evaluate(foreign, made)

    assert isinstance(result, NotEvaluated)
    assert "needs WANDB_API_KEY" in result.reason
    assert result.facts() == {"evaluated": False, "reason": result.reason, "held_out_windows": 3}
    assert unevaluated(foreign) == []
    said = evaluate_checkpoints(dg.build_sensor_context(instance=runner.instance, resources={"workspace": foreign}))
    assert isinstance(said, dg.SkipReason)
    assert unevaluated(foreign, even_if_refused=True) == [1], "a person may have set the key meanwhile"
    assert dollars(foreign) == 0


def test_windows_that_come_later_make_it_possible(
    foreign: Workspace, runner: Runner, resources: dict[str, object], game_url: str
) -> None:
    judge(foreign, runner, resources, 5)
    made = record(foreign, trainer="serverless", size=4)
    result = evaluate(foreign, made)
    assert isinstance(result, NotEvaluated)
    assert "1 judged windows are held out of babylon-mmo@1, 2 are needed" in result.reason
    assert unevaluated(foreign) == []

    with psycopg.connect(game_url) as conn:
        add_window(conn, FIRST.next(5), 5)
    judge(foreign, runner, resources, 6)

    assert unevaluated(foreign) == [1]


def test_a_changed_checkpoint_is_not_evaluated(
    foreign: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    judge(foreign, runner, resources, 5)
    train_range(foreign, [FIRST.next(1)], batch_size=2)
    [made] = foreign.ledger.checkpoints()
    weights = Path(made.path) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")

    with pytest.raises(DataError, match=r"adapter_model.safetensors in .* is not the one that was recorded"):
        evaluate(foreign, made)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ('{"action": "buy_yes", "size": 1}', "BUY_YES"),
        ('```json\n{"actionType": "HOLD"}\n```', "HOLD"),
        ('{"action": {"type": "open"}}', '{"type": "open"}'),
        ('{"action": ""}', None),
        ('{"size": 1}', None),
        ("[1]", None),
        ("I hold.", None),
        ("", None),
    ],
)
def test_an_answer_names_its_action(text: str, action: str | None) -> None:
    assert read_action(text) == action


@pytest.mark.parametrize(
    ("scores", "likelihoods", "share"),
    [
        ([0.1, 0.5, 0.9], [-3.0, -2.0, -1.0], 1.0),
        ([0.1, 0.5, 0.9], [-1.0, -3.0, -2.0], 0.5),
        ([0.1, 0.9, 0.9], [-2.0, -2.0, -1.0], 0.75),  # a tie, and one that is likelier
        ([0.1, 0.5, 0.9], [-3.0, -2.0, None], None),
        ([0.5, 0.5], [-3.0, -2.0], None),
    ],
)
def test_pairs_with_the_best_are_counted_by_hand(
    scores: list[float], likelihoods: list[float | None], share: float | None
) -> None:
    assert rank_best_first(scores, likelihoods) == share


def test_better_less_worse_by_hand() -> None:
    assert better_over_worse([0.0, 0.4, 0.6, 1.0], [-4.0, -2.0, -1.0, None]) == -1.0 - (-3.0)
    assert better_over_worse([0.5, 0.5], [-4.0, -2.0]) is None
