"""`trained_checkpoint` through Dagster, with the real CPU trainer on small batches."""

import hashlib
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster_factories import FIRST, spawn_windows
from rich.console import Console

from babylon_rl.cli.runner import Runner, RunSummary
from babylon_rl.cli.train import TrainOptions, _iterate
from babylon_rl.database import tables as t
from babylon_rl.errors import ConfigError, DataError
from babylon_rl.pipeline.train import train_range
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.policy.checkpoints import LEDGER_FILE, checkpoint_dir
from babylon_rl.store.eligibility import Reason, State
from babylon_rl.windows import HourWindow


def digests(directory: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.iterdir()) if p.name != LEDGER_FILE
    }


@pytest.fixture
def judged(workspace: Workspace, runner: Runner, resources: dict[str, object]) -> None:
    spawn_windows(workspace, 7)
    runner.materialize("windows", FIRST, FIRST.next(6), resources=resources)


@pytest.mark.usefixtures("judged")
def test_replaying_a_range_trains_nothing_twice(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    runner.materialize("policy", FIRST, FIRST.next(6), assets=["trained_checkpoint"], resources=resources)

    made = workspace.ledger.checkpoints()
    assert [(c.step, c.window_id, c.windows) for c in made] == [
        (1, str(FIRST.next(2)), tuple(str(FIRST.next(i)) for i in range(3))),
        (2, str(FIRST.next(5)), tuple(str(FIRST.next(i)) for i in range(3, 6))),
    ]
    root = workspace.settings.checkpoints_dir
    before = digests(checkpoint_dir(root, "babylon-mmo", 2))
    assert (
        before["adapter_model.safetensors"]
        != digests(checkpoint_dir(root, "babylon-mmo", 1))["adapter_model.safetensors"]
    )
    assert workspace.ledger.manifest(2) == before

    runner.materialize("policy", FIRST, FIRST.next(6), assets=["trained_checkpoint"], resources=resources)
    assert workspace.ledger.checkpoints() == made
    assert digests(checkpoint_dir(root, "babylon-mmo", 2)) == before
    assert [r.window_id for r in workspace.ledger.ready()] == [str(FIRST.next(6))]


@pytest.mark.usefixtures("judged")
def test_an_unfinished_batch_is_finished_with_its_own_windows(workspace: Workspace) -> None:
    """What a kill between plan and record leaves: the plan, and a directory that no ledger knows."""
    plan = workspace.ledger.plan(FIRST.next(3), 4, learning_rate=None)
    assert plan is not None
    orphan = checkpoint_dir(workspace.settings.checkpoints_dir, "babylon-mmo", 1)
    orphan.mkdir(parents=True)
    (orphan / "adapter_model.safetensors").write_bytes(b"half of it")

    outcomes = train_range(workspace, [FIRST.next(3)], batch_size=2)

    made = outcomes[FIRST.next(3)].policy
    assert made is not None
    assert made.windows == plan.windows
    assert len(made.windows) == 4
    assert workspace.ledger.manifest(1) == digests(orphan)


@pytest.mark.usefixtures("judged")
def test_a_planned_window_grouped_anew_is_left_out(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    """A late row under an open plan used to stop all training for ever."""
    plan = workspace.ledger.plan(FIRST.next(2), 3, learning_rate=None)
    assert plan is not None
    runner.materialize(
        "windows", FIRST, FIRST, resources=resources, config={"contextualized_groups": {"min_agents": 7}}
    )
    runner.materialize("policy", FIRST.next(3), FIRST.next(3), assets=["trained_checkpoint"], resources=resources)
    [made] = workspace.ledger.checkpoints()
    assert (made.step, made.windows) == (1, tuple(str(FIRST.next(i)) for i in (1, 2, 3)))


@pytest.mark.usefixtures("judged")
def test_a_plan_that_always_raises_is_given_up_and_made_anew(workspace: Workspace) -> None:
    """One window that no trainer can take must not stop all others for ever."""
    scores = t.judgments
    with workspace.store.engine.begin() as conn:  # as a damaged judgment would be: one member has no score
        one = sa.select(sa.func.min(scores.c.trajectory_id)).where(scores.c.window_id == str(FIRST)).scalar_subquery()
        conn.execute(sa.delete(scores).where(scores.c.trajectory_id == one))
    with pytest.raises(DataError, match="6 members and 5 rewards"):
        train_range(workspace, [FIRST.next(2)])
    assert workspace.ledger.unfinished_batch() is None
    [state] = workspace.ledger.eligibility.states([FIRST])
    assert (state.state, state.reason, state.stage) == (State.KEPT_OUT, Reason.ERROR, "trained_checkpoint")
    [outcome] = train_range(workspace, [FIRST.next(3)]).values()
    assert [c.windows for c in outcome.trained] == [tuple(str(FIRST.next(i)) for i in (1, 2, 3))]


class OvertakenRunner(Runner):
    """As if another process had the lock first: what this one asks for was trained when its turn comes, and more."""

    def materialize(self, job: str, first: HourWindow, last: HourWindow, **options: Any) -> RunSummary:
        if job == "policy":
            train_range(options["resources"]["workspace"], [FIRST.next(6)], batch_size=3)
        return super().materialize(job, first, last, **options)


@pytest.mark.usefixtures("judged")
def test_a_step_that_another_process_trained_is_no_failure(
    workspace: Workspace, instance: dg.DagsterInstance, capsys: pytest.CaptureFixture[str]
) -> None:
    options = TrainOptions(iterations=1, min_agents=5, windows_per_iteration=3, learning_rate=None, evaluate=False)
    made = _iterate(workspace, options, Console(width=200), OvertakenRunner(instance), 1)
    assert made is not None
    assert (made.step, len(workspace.ledger.checkpoints())) == (1, 2)
    assert "Iteration 1 complete! Checkpoint: step 1" in capsys.readouterr().out


@pytest.mark.usefixtures("judged")
def test_a_step_sent_to_wandb_is_not_trained_here(workspace: Workspace) -> None:
    """Another trainer after the job was sent would make the step twice, and the paid one would be lost."""
    workspace.ledger.plan(FIRST.next(2), 3, learning_rate=None)
    with workspace.store.engine.begin() as conn:
        conn.execute(sa.update(t.planned_batches).values(submitted_at=sa.func.now()))
    with pytest.raises(ConfigError, match=r"was sent to W&B.*--even-if-sent"):
        train_range(workspace, [FIRST.next(2)])
    assert workspace.ledger.unfinished_batch() is not None


@pytest.mark.usefixtures("judged")
def test_one_partition_trains_every_batch_that_waits(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    """A backlog is not trained once per new hour."""
    sixth = FIRST.next(5)
    runner.materialize("policy", sixth, sixth, assets=["trained_checkpoint"], resources=resources)
    assert [(c.step, c.window_id) for c in workspace.ledger.checkpoints()] == [(1, str(sixth)), (2, str(sixth))]
    key = dg.AssetKey("trained_checkpoint")
    records = runner.instance.fetch_materializations(dg.AssetRecordsFilter(key, asset_partitions=[str(sixth)]), limit=1)
    materialization = records.records[0].asset_materialization
    assert materialization is not None
    shown = {name: value.value for name, value in materialization.metadata.items()}
    assert shown["checkpoint_names"] == ["babylon-mmo@1", "babylon-mmo@2"]
    assert (shown["checkpoints"], shown["policy"], shown["dagster/row_count"]) == (2, "babylon-mmo@2", 6)
