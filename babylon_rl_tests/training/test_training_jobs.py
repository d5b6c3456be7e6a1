"""One remote job per checkpoint, whatever breaks: on a real Postgres, over HTTP, with processes that die by SIGKILL."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from serverless_server import KEY, Fault, ServerlessServer
from typer.testing import CliRunner

from babylon_rl.cli.main import app
from babylon_rl.database import tables as t
from babylon_rl.errors import BabylonRLError, ConfigError, DataError, TransientError
from babylon_rl.pipeline.adopt import adopt_next_checkpoint
from babylon_rl.pipeline.train import train_range
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.policy.shipped import shipped_base
from babylon_rl.settings import Settings
from babylon_rl.store.training_jobs import TrainingJobs
from babylon_rl.types import Checkpoint
from babylon_rl_tests.played import hours, play_and_judge

FAULTS = {
    "503 while polling": Fault("events", status=503, times=4),
    "dropped while polling": Fault("events", times=4),
    "dropped after the end": Fault("checkpoints", skip=1, times=4),
    "answer lost": Fault("job", is_done=True),
    "503 after accepting": Fault("job", status=503, is_done=True),
    "408 after accepting": Fault("job", status=408, is_done=True),
    "refused with 429": Fault("job", status=429),
    "refused with 401": Fault("job", status=401),
    "503 at registering": Fault("model", status=503),
    "dropped before the step": Fault("checkpoints", times=4),
}
KILLS = {
    "before the request": ("update planned_batches/after", 1),
    "before the id is kept": ("update planned_batches/before", 2),
    "once the id is kept": ("update planned_batches/after", 2),
    "before it is recorded": ("insert checkpoints/before", 1),
}
# The server kills the client at these moments.
REMOTE_KILLS = {
    "before the answer": Fault("job", is_done=True),
    "while polling": Fault("events", is_done=True, skip=1),
}


@pytest.fixture
def server() -> Iterator[ServerlessServer]:
    with ServerlessServer() as server:
        yield server


@pytest.fixture
def workspace(settings: Settings, server: ServerlessServer) -> Iterator[Workspace]:
    remote = settings.changed(
        training={
            "trainer": "serverless",
            "base_model": str(shipped_base()),
            "wandb_base_url": server.url,
            "wandb_api_key": SecretStr(KEY),
            "min_windows": 1,
            "remote_patience_s": 60.0,
        }
    )
    with open_workspace(remote) as workspace:
        yield workspace


def train(workspace: Workspace) -> Checkpoint:
    """Train the next batch in this process."""
    target = workspace.ledger.next_partition(1)
    assert target is not None
    (checkpoint,) = train_range(workspace, [target], batch_size=1, max_checkpoints=1)[target].trained
    return checkpoint


def train_unattended(workspace: Workspace, attempts: int = 4) -> Checkpoint:
    """Train the next batch as a sensor would: again after an error, but without a person's word."""
    for _ in range(attempts - 1):
        try:
            return train(workspace)
        except BabylonRLError:
            continue
    return train(workspace)


def train_in_process(workspace: Workspace, tmp_path: Path, point: str = "none", nth: int = 1, *, fault: Fault) -> int:
    """Train the next batch in a process of its own; its exit status. The server may kill it by `fault`."""
    command = [sys.executable, str(Path(__file__).parent / "killed_training.py"), point, str(nth)]
    with (tmp_path / "log").open("ab") as log:
        process = subprocess.Popen(command, env=environment_of(workspace), stdout=log, stderr=log)
        if fault.kills is not None:
            fault.kills.append(process.pid)
        return process.wait(timeout=240)


def environment_of(workspace: Workspace) -> dict[str, str]:
    """The variables of a process that trains as `workspace` does."""
    settings, training = workspace.settings, workspace.settings.training
    assert settings.database.url is not None
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "BABYLON_HOME": str(settings.home),
        "DATABASE_URL": settings.database.url.get_secret_value(),
        "BABYLON_TRAINER": training.trainer,
        "BABYLON_BASE_MODEL": str(training.base_model),
        "BABYLON_MIN_WINDOWS": str(training.min_windows),
        "BABYLON_WANDB_TRAINING_URL": str(training.wandb_base_url),
        "WANDB_API_KEY": KEY,
    }


def sent(workspace: Workspace) -> list[tuple[bool, str | None]]:
    """Whether a job was begun, and its id, of each plan by step."""
    p = t.planned_batches.c
    with workspace.ledger.engine.connect() as conn:
        rows = conn.execute(sa.select(p.submitted_at, p.job_id).order_by(p.step)).all()
    return [(r.submitted_at is not None, r.job_id) for r in rows]


@pytest.mark.parametrize("name", ["503 while polling", "answer lost"])
def test_what_breaks_in_the_field_costs_no_second_job(server, workspace, name) -> None:
    """Until now a run that failed was started again, and paid again."""
    play_and_judge(workspace, hours(1))
    server.faults.append(Fault(**vars(FAULTS[name])))
    server.reads_to_finish = 3

    made = train_unattended(workspace)

    assert len(server.jobs) == 1
    assert (made.step, made.path.rpartition(":")[2]) == (1, "step1")
    assert made.metrics["loss/train"] > 0
    assert made.metrics["behaviour/unknown"] > 0


def test_a_lost_training_lock_sends_nothing(server, workspace) -> None:
    """The lock is a session's: it goes with the connection, and another process may take it."""
    play_and_judge(workspace, hours(1))
    ledger = workspace.ledger
    with ledger.training() as lock:
        planned = ledger.plan(hours(1)[0], 1, learning_rate=None)
        assert planned is not None
        lock.require_held()
        with ledger.engine.connect() as conn:
            conn.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid() "
                    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                )
            )
        for _ in range(2):
            with pytest.raises(TransientError, match="lost with its database connection"):
                TrainingJobs(ledger.engine, planned, lock).begin()

    assert sent(workspace) == [(False, None)]
    train(workspace)
    assert len(server.jobs) == 1


def test_two_processes_with_one_plan_send_one_job(workspace) -> None:
    play_and_judge(workspace, hours(1))
    ledger = workspace.ledger
    with ledger.training() as lock:
        planned = ledger.plan(hours(1)[0], 1, learning_rate=None)
        assert planned is not None
        first, second = (TrainingJobs(ledger.engine, planned, lock) for _ in range(2))
        first.begin()
        with pytest.raises(TransientError, match="sent by another process"):
            second.begin()


def test_a_refusal_leaves_nothing_behind(server, workspace) -> None:
    play_and_judge(workspace, hours(1))
    server.faults.append(Fault("job", status=401))

    with pytest.raises(ConfigError, match="WANDB_API_KEY") as refusal:
        train(workspace)

    assert KEY not in str(refusal.value)
    assert (server.jobs, sent(workspace)) == ([], [(False, None)])
    assert workspace.ledger.discard_plan() is not None, "no job exists, so the plan may go"


def test_a_request_that_never_left_is_sent_again(server, workspace) -> None:
    play_and_judge(workspace, hours(1))
    with workspace.ledger.training() as lock:
        planned = workspace.ledger.plan(hours(1)[0], 1, learning_rate=None)
        assert planned is not None
        jobs = TrainingJobs(workspace.ledger.engine, planned, lock)
        jobs.begin()
        assert jobs.is_begun()
        jobs.take_back()

    assert train(workspace).step == 1
    assert len(server.jobs) == 1


def test_a_job_that_shows_no_trace_waits_for_a_person(server, workspace) -> None:
    play_and_judge(workspace, hours(1))
    server.faults.append(Fault("job", status=502))  # nothing was accepted, but who knows
    impatient = with_training(workspace, remote_patience_s=2.0)

    for _ in range(2):
        with pytest.raises(BabylonRLError, match=r"answer was lost.*discard-plan --even-if-sent") as failure:
            train(impatient)
        assert not isinstance(failure.value, TransientError)
    assert server.jobs == []
    with pytest.raises(DataError, match=r"would pay for another.*--even-if-sent"):
        workspace.ledger.discard_plan()

    assert workspace.ledger.discard_plan(even_if_sent=True) is not None
    assert train(workspace).step == 1
    assert len(server.jobs) == 1


def test_an_outage_while_polling_ends_in_an_error_that_resumes(server, workspace) -> None:
    play_and_judge(workspace, hours(1))
    server.faults.append(Fault("events", times=8))

    with pytest.raises(TransientError, match="follows the same job"):
        train(with_training(workspace, remote_patience_s=1.0))

    assert sent(workspace) == [(True, "job-1")]
    assert train(workspace).step == 1
    assert len(server.jobs) == 1


def test_a_failed_job_is_sent_again_only_when_a_person_says(server, workspace) -> None:
    play_and_judge(workspace, hours(1))
    server.fails_with = "out of luck in rank 3"
    for _ in range(3):
        with pytest.raises(BabylonRLError, match=r"job-1.*out of luck in rank 3.*--even-if-sent"):
            train(workspace)
    assert len(server.jobs) == 1

    server.fails_with = None
    workspace.ledger.discard_plan(even_if_sent=True)
    assert train(workspace).step == 1
    assert len(server.jobs) == 2


def test_a_sent_job_is_recorded_though_its_window_changed(server, workspace) -> None:
    """The job has its own copy of what it trains on; the plan says what that was."""
    play_and_judge(workspace, hours(1))
    server.faults.append(Fault("events", times=8))
    with pytest.raises(TransientError):
        train(with_training(workspace, remote_patience_s=1.0))
    with workspace.ledger.engine.begin() as conn:
        conn.execute(sa.update(t.contextualized_groups).values(group_id="another group"))

    made = train(workspace)

    assert made.windows == (str(hours(1)[0]),)
    assert len(server.jobs) == 1


def test_a_remote_step_without_a_plan_is_adopted_on_request(server, workspace) -> None:
    """A ledger restored from a backup: W&B stands at 1, the ledger at 0."""
    play_and_judge(workspace, hours(2))
    train(workspace)
    with workspace.ledger.engine.begin() as conn:
        for table in (t.consumed_windows, t.checkpoints, t.planned_batches):
            conn.execute(sa.delete(table))
    with pytest.raises(DataError, match=r"at babylon-mmo@1 before training step 1.*babylon-rl adopt-checkpoint"):
        train(workspace)

    shown = adopt_next_checkpoint(workspace, is_confirmed=False)
    assert workspace.ledger.checkpoints() == []
    assert adopt_next_checkpoint(workspace, is_confirmed=True).windows == shown.windows == (str(hours(1)[0]),)

    (adopted,) = workspace.ledger.checkpoints()
    assert (adopted.name, adopted.trainer, adopted.metrics) == ("babylon-mmo@1", "serverless", {"loss/train": 0.25})
    assert train(workspace).step == 2
    assert len(server.jobs) == 2


def test_the_command_says_what_it_would_record(server, workspace, monkeypatch) -> None:
    play_and_judge(workspace, hours(1))
    for name, value in environment_of(workspace).items():
        monkeypatch.setenv(name, value)
    server.faults.append(Fault("job", status=502))
    with pytest.raises(BabylonRLError):
        train(with_training(workspace, remote_patience_s=0.0))
    server.steps["model-1"] = [1]  # it was accepted after all

    refused = CliRunner().invoke(app, ["discard-plan"])
    shown = CliRunner().invoke(app, ["adopt-checkpoint"])
    assert "would pay for another" in str(refused.exception)
    assert shown.exit_code == 1
    assert "would record test-entity/babylon-agents/babylon-mmo:step1 as babylon-mmo@1" in shown.output
    assert workspace.ledger.checkpoints() == []

    assert CliRunner().invoke(app, ["adopt-checkpoint", "--yes"]).exit_code == 0
    assert [c.name for c in workspace.ledger.checkpoints()] == ["babylon-mmo@1"]


def test_what_cannot_be_adopted_is_refused_with_a_reason(server, workspace) -> None:
    with pytest.raises(DataError, match="nothing is to be adopted"):
        adopt_next_checkpoint(workspace, is_confirmed=True)
    server.steps["model-1"] = [1]
    with pytest.raises(DataError, match="fewer than 1 windows are ready"):
        adopt_next_checkpoint(workspace, is_confirmed=True)
    server.steps["model-1"] = [3]
    with pytest.raises(DataError, match=r"newest is 3, the ledger's last is 0.*BABYLON_LINEAGE"):
        adopt_next_checkpoint(workspace, is_confirmed=True)
    local = with_training(workspace, trainer="cpu")
    with pytest.raises(ConfigError, match="only those of `serverless`"):
        adopt_next_checkpoint(local, is_confirmed=True)


def test_over_every_fault_there_are_as_many_jobs_as_steps(server, workspace, tmp_path) -> None:
    """The whole section at once: each iteration meets another fault, and none is repeated by a person."""
    count = len(FAULTS) + len(KILLS) - 1 + len(REMOTE_KILLS)
    play_and_judge(workspace, hours(count))
    server.reads_to_finish = 2
    for fault in FAULTS.values():
        server.faults.append(Fault(**vars(fault)))
        train_unattended(workspace)
        server.faults.clear()
    for name, (point, nth) in KILLS.items():
        if name == "before the request":  # then no job exists, and only a person may say so: the test after this one
            continue
        assert train_in_process(workspace, tmp_path, point, nth, fault=Fault("none")) == -signal.SIGKILL
        train_unattended(workspace)
    for fault in REMOTE_KILLS.values():
        deadly = Fault(**{**vars(fault), "kills": []})
        server.faults.append(deadly)
        assert train_in_process(workspace, tmp_path, fault=deadly) == -signal.SIGKILL
        server.faults.clear()
        train_unattended(workspace)

    assert [c.step for c in workspace.ledger.checkpoints()] == list(range(1, count + 1))
    used = [w for c in workspace.ledger.checkpoints() for w in c.windows]
    assert sorted(used) == [str(w) for w in hours(count)]
    assert len(server.jobs) == count


def test_a_kill_before_the_request_never_sends_a_second(server, workspace, tmp_path) -> None:
    """Nothing tells it from a kill after the request, so nothing is sent until a person has looked."""
    play_and_judge(workspace, hours(1))
    assert train_in_process(workspace, tmp_path, *KILLS["before the request"], fault=Fault("none")) == -signal.SIGKILL
    assert (server.jobs, sent(workspace)) == ([], [(True, None)])

    with pytest.raises(BabylonRLError, match="never have existed"):
        train(with_training(workspace, remote_patience_s=0.0))

    assert server.jobs == []


def with_training(workspace: Workspace, **changes: object) -> Workspace:
    """The same workspace with other training settings."""
    return replace(workspace, settings=workspace.settings.changed(training=changes))
