"""Sixteen hours of a live game on a live clock: the real schedule and sensors, and nobody watching.

Outcomes land 20 minutes after each hour, a row of it 40 minutes after; the judge is down for three hours; one run in five
is killed at a random moment; the database server is killed twice in the middle of a run; one window cannot be grouped.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster_factories import open_forkserver

from babylon_rl.cli.services import prepare_dagster
from babylon_rl.database import game_tables
from babylon_rl.database.embedded import ensure_server
from babylon_rl.database.migrate import upgrade
from babylon_rl.definitions import build_defs
from babylon_rl.defs.automation import RANGE_END, RANGE_START, prepare_missed_windows, train_when_ready
from babylon_rl.ingest.outcomes import sync_window_outcomes
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl.simulator.spawn import AgentLineup, spawn
from babylon_rl.store.eligibility import Reason, State
from babylon_rl.types import Json
from babylon_rl.windows import HourWindow
from babylon_rl_tests.dagster import soak_run
from babylon_rl_tests.factories import a_row, insert_rows
from babylon_rl_tests.judging.judge_server import JudgeServer

FIRST: Final = HourWindow.parse("2025-01-15T00:00")
WINDOWS: Final = [FIRST.next(i) for i in range(16)]
POISONED: Final = WINDOWS[13]
TICK: Final = timedelta(minutes=10)
END: Final = FIRST.next(22).start_at
JUDGE_DOWN: Final = (FIRST.next(8).start_at, FIRST.next(11).start_at)
SERVER_DIES: Final = (FIRST.next(5).start_at, FIRST.next(12).start_at)
SEED: Final = 7
"""Of the moments at which runs are killed; how far a run has come by then depends on the machine."""


@dataclass(kw_only=True)
class Day:
    """The hours as they go by: the clock, what the game writes, and the runs that are asked for."""

    workspace: Workspace
    instance: dg.DagsterInstance
    judge: JudgeServer
    environment: dict[str, str]
    arrivals: list[tuple[datetime, sa.Table, Json]]
    now: datetime = FIRST.next().start_at + timedelta(minutes=5)
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    deaths_due: list[datetime] = field(default_factory=lambda: list(SERVER_DIES))
    counts: Counter[str] = field(default_factory=Counter)
    processes: Any = field(default_factory=open_forkserver)

    def go_by(self) -> None:
        while self.now < END:
            self.arrive()
            if self.now.minute == 5:
                self.tick_schedule()
            for sensor in (prepare_missed_windows, train_when_ready):
                self.tick(sensor)
            self.now += TICK

    def arrive(self) -> None:
        """What the game has written by now."""
        due = [a for a in self.arrivals if a[0] <= self.now]
        self.arrivals = [a for a in self.arrivals if a[0] > self.now]
        with self.workspace.game.begin() as conn:
            for _, table, row in due:
                conn.execute(sa.insert(table), [row])
        down = JUDGE_DOWN[0] <= self.now < JUDGE_DOWN[1]
        self.judge.set_rules([("500", None, "")] if down else [])

    def tick_schedule(self) -> None:
        with dg.build_schedule_context(instance=self.instance, scheduled_execution_time=self.now) as context:
            data = build_defs().resolve_schedule_def("hourly_windows").evaluate_tick(context)
        for request in data.run_requests or ():
            self.launch("windows", request, {"dagster/schedule_name": "hourly_windows"})

    def tick(self, sensor: dg.SensorDefinition) -> None:
        workspace = replace(self.workspace, now=lambda: self.now)
        with dg.build_sensor_context(instance=self.instance, resources={"workspace": workspace}) as context:
            try:
                said = sensor(context)
            except sa.exc.OperationalError:  # the server has just been killed: the daemon logs it and ticks again
                self.counts["ticks that found no database"] += 1
                return
        if isinstance(said, dg.RunRequest):
            job = "policy" if sensor is train_when_ready else "windows"
            self.launch(job, said, {"dagster/sensor_name": sensor.name})

    def launch(self, job: str, request: dg.RunRequest, tags: dict[str, str]) -> None:
        """Run what was requested, unless a run of that key exists: Dagster would not launch another."""
        # A span of windows says the same as one partition, and is what `materialize_range` sets.
        tags |= {name: value for name, value in request.tags.items() if not name.startswith("dagster/partition")}
        if request.run_key is not None:
            tags["dagster/run_key"] = request.run_key
            known = {"dagster/run_key": request.run_key}
            assert not self.instance.get_runs(dg.RunsFilter(tags=known)), f"{request.run_key} is never launched again"
        span = (tags.get(RANGE_START, request.partition_key), tags.get(RANGE_END, request.partition_key))
        assets = ["trained_checkpoint"] if job == "policy" else None
        process = self.processes.Process(
            target=soak_run.run,
            args=(self.environment, job, span, tags, assets, self.now.isoformat(), self.judge.url),
        )
        process.start()
        self.counts["runs"] += 1
        if self.deaths_due and self.deaths_due[0] <= self.now:
            self.kill_server()
            process.join(timeout=5)
        elif self.chance.random() < 0.2:
            process.join(timeout=self.chance.uniform(0.05, 1.5))
        else:
            process.join(timeout=60)
        if process.exitcode is None:
            process.kill()
            process.join()
            self.counts["runs killed"] += 1
        elif process.exitcode:
            self.counts["runs failed"] += 1

    def kill_server(self) -> None:
        """SIGKILL the postmaster in the middle of a run, and start it again, as `up` does."""
        self.deaths_due.pop(0)
        time.sleep(0.5)
        home = Path(self.environment["BABYLON_HOME"])
        postmaster = int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(postmaster, signal.SIGKILL)
        ensure_server(home)
        self.counts["server killed"] += 1


def record(workspace: Workspace) -> list[tuple[datetime, sa.Table, Json]]:
    """Play the hours, take everything out of the game's tables again, and say when each row will come."""
    spawn(workspace.game, WINDOWS, AgentLineup(learners=5, policy="habits", stand_in=True), seed=1)
    arrivals: list[tuple[datetime, sa.Table, Json]] = []
    rows, outcomes = game_tables.trajectories, game_tables.market_outcomes
    with workspace.game.begin() as conn:
        for w in WINDOWS:
            sync_window_outcomes(conn, w, now=w.end_at + timedelta(minutes=20))
        arrivals += _take(conn, rows, timedelta(0))
        arrivals += _take(conn, outcomes, timedelta(minutes=20))
        for table in ("price_facts", "prediction_facts", "news_facts"):
            conn.execute(sa.text(f"DELETE FROM babylon_rl.{table}"))
    insert_rows(workspace.game, [a_row("late-agent", window=w) for w in WINDOWS])
    with workspace.game.begin() as conn:
        return arrivals + _take(conn, rows, timedelta(minutes=40))


def _take(conn: sa.Connection, table: sa.Table, after: timedelta) -> list[tuple[datetime, sa.Table, Json]]:
    """Take all rows out of a table; each comes back so long after the end of its hour."""
    taken = [dict(r) for r in conn.execute(sa.delete(table).returning(*table.c)).mappings()]
    return [(HourWindow.parse(r["window_id"]).end_at + after, table, r) for r in taken]


def poison(workspace: Workspace) -> None:
    """Whatever is stored of one window's trajectories cannot be read back."""
    with workspace.game.begin() as conn:
        conn.execute(
            sa.text(
                "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS "
                f"$$ BEGIN IF NEW.window_id = '{POISONED}' THEN NEW.body = 'poison'; END IF; RETURN NEW; END $$"
            )
        )
        conn.execute(
            sa.text(
                "CREATE TRIGGER spoil BEFORE INSERT ON babylon_rl.window_trajectories FOR EACH ROW EXECUTE FUNCTION spoil()"
            )
        )


@pytest.fixture
def day(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, soak_home: Path) -> Iterator[Day]:
    environment = {"BABYLON_HOME": str(soak_home), "BABYLON_MIN_WINDOWS": "4"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    upgrade(settings.database)
    for name, value in prepare_dagster(settings).items():
        monkeypatch.setenv(name, value)
    with JudgeServer() as judge, open_workspace(settings) as workspace, dg.DagsterInstance.get() as instance:
        arrivals = record(workspace)
        poison(workspace)
        day = Day(workspace=workspace, instance=instance, judge=judge, environment=environment, arrivals=arrivals)
        yield day


@pytest.mark.timeout(600)
# Dagster's own schedule calls what it deprecates.
@pytest.mark.filterwarnings("ignore:Function `JobDefinition.run_request_for_partition`")
def test_sixteen_hours_of_everything_going_wrong(day: Day, capsys: pytest.CaptureFixture[str]) -> None:
    day.go_by()
    workspace, ledger = day.workspace, day.workspace.ledger
    states = {s.window_id: s for s in ledger.eligibility.states(WINDOWS)}
    with capsys.disabled():
        print(f"\n{dict(day.counts)}; states {dict(Counter(s.state.value for s in states.values()))}")  # noqa: T201

    poisoned = states.pop(str(POISONED))
    assert (poisoned.state, poisoned.reason, poisoned.stage) == (State.KEPT_OUT, Reason.ERROR, "contextualized_groups")
    assert "ZstdError" in str(poisoned.explanation)

    made = ledger.checkpoints()
    trained = [w for c in made for w in c.windows]
    assert len(trained) == len(set(trained))
    assert [c.step for c in made] == list(range(1, len(made) + 1))
    assert len(trained) == (len(WINDOWS) - 1) // 4 * 4, "every full batch has trained"
    assert {w for w, s in states.items() if s.consumed_step is None} == {r.window_id for r in ledger.ready()}
    assert all(s.state in (State.TRAINED, State.STALE, State.JUDGED) for s in states.values())
    assert ledger.unfinished_batch() is None

    with workspace.store.engine.connect() as conn:
        calls = conn.execute(
            sa.text(
                "SELECT judgment_key, slot, count(*) FILTER (WHERE state = 'replied') AS paid, "
                "count(*) FILTER (WHERE state IN ('asked', 'lost')) AS in_flight FROM babylon_rl.judge_calls GROUP BY 1, 2"
            )
        ).all()
        rows = set(conn.scalars(sa.text("SELECT id FROM trajectories")))
        accounted = list(conn.scalars(sa.text("SELECT source_id FROM babylon_rl.row_outcomes")))
    assert [c for c in calls if c.paid > 1] == [], "no judgment was paid for twice"
    assert sum(c.in_flight for c in calls) <= 2 * (day.counts["runs killed"] + day.counts["runs failed"])
    assert sorted(accounted) == sorted(rows)
    assert day.counts["server killed"] == 2
    assert day.counts["runs killed"] >= 5
