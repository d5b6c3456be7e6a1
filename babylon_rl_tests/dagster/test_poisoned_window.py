"""One window that raises, in any asset: its siblings are prepared, its reason is stored, and it is tried again."""

from dataclasses import replace
from datetime import timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster_factories import FIRST, spawn_windows

from babylon_rl.cli.runner import Runner
from babylon_rl.database import tables as t
from babylon_rl.errors import BabylonRLError
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.eligibility import Reason, State
from babylon_rl_tests.factories import insert_row

BAD = FIRST.next()


def poison(workspace: Workspace) -> bytes:
    """Make the stored trajectories of one window unreadable; returns what one of them was."""
    x = t.window_trajectories
    with workspace.store.engine.begin() as conn:
        good = conn.execute(sa.select(x.c.trajectory_id, x.c.body).where(x.c.window_id == str(BAD))).first()
        assert good is not None
        conn.execute(sa.update(x).where(x.c.trajectory_id == good.trajectory_id).values(body=b"poison"))
    return bytes(good.body)


def heal(workspace: Workspace, body: bytes) -> None:
    x = t.window_trajectories
    with workspace.store.engine.begin() as conn:
        conn.execute(sa.update(x).where(x.c.body == b"poison").values(body=body))


def test_one_window_that_raises_costs_no_sibling_anything(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    spawn_windows(workspace, 3)
    runner.materialize("windows", FIRST, FIRST.next(2), resources=resources)
    for i in range(3):  # rows come late, so that every group is made anew
        insert_row(workspace.game, "late", window=FIRST.next(i))
    now = workspace.now()
    later = replace(workspace, now=lambda: now)
    for attempt, minutes in enumerate((5, 10, 20), start=1):
        runner.materialize("windows", FIRST, FIRST.next(2), assets=["raw_trajectories"], resources=resources)
        body = poison(workspace)
        runner.materialize(
            "windows",
            FIRST,
            FIRST.next(2),
            assets=["contextualized_groups", "ruler_scores"],
            resources=resources | {"workspace": later},
        )
        assert [r.window_id for r in workspace.ledger.ready()] == [str(FIRST), str(FIRST.next(2))]
        [state] = workspace.ledger.eligibility.states([BAD])
        assert (state.state, state.reason, state.stage) == (State.KEPT_OUT, Reason.ERROR, "contextualized_groups")
        assert (state.failures, state.not_before) == (attempt, now + timedelta(minutes=minutes))
        heal(workspace, body)
    assert "ZstdError" in str(state.explanation)
    runner.materialize("windows", FIRST, FIRST.next(2), resources=resources)
    assert len(workspace.ledger.ready()) == 3


def test_the_reason_stands_on_the_windows_own_partition(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    spawn_windows(workspace, 2)
    runner.materialize("windows", FIRST, BAD, resources=resources)
    poison(workspace)
    runner.materialize("windows", FIRST, BAD, assets=["contextualized_groups"], resources=resources)
    wanted = dg.AssetRecordsFilter(dg.AssetKey("contextualized_groups"), asset_partitions=[str(BAD)])
    event = runner.instance.fetch_materializations(wanted, limit=1).records[0].asset_materialization
    assert event is not None
    assert "ZstdError" in str(event.metadata["failed"].value)
    assert event.metadata["tried_again_at"].value is not None


def test_a_run_in_which_every_window_fails_is_red(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    spawn_windows(workspace, 2)
    runner.materialize("windows", FIRST, BAD, resources=resources)
    poison(workspace)
    with pytest.raises(BabylonRLError, match=r"contextualized_groups: .*1 of 1 windows failed"):
        runner.materialize("windows", BAD, BAD, assets=["contextualized_groups"], resources=resources)


def test_a_value_that_the_database_refuses_is_the_windows_own(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    """Its text is one line: the statement and its values say nothing more, and may hold anything."""
    spawn_windows(workspace, 2)
    with workspace.store.engine.begin() as conn:
        conn.execute(
            sa.text(f"ALTER TABLE babylon_rl.windows ADD CONSTRAINT odd CHECK (window_id <> '{BAD}' OR rows < 0)")
        )
    runner.materialize("windows", FIRST, BAD, assets=["raw_trajectories"], resources=resources)
    assert workspace.store.data_version(FIRST) is not None
    [state] = workspace.ledger.eligibility.states([BAD])
    assert (state.state, state.stage) == (State.KEPT_OUT, "raw_trajectories")
    assert str(state.explanation).startswith("CheckViolation: ")
    assert "INSERT" not in str(state.explanation)
