"""Rows → outcomes → groups → scores through Dagster, over one window and over ranges."""

import hashlib

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster_factories import FIRST, CountingJudge, spawn_windows

from babylon_rl.cli.runner import Runner
from babylon_rl.common.canonical import pack
from babylon_rl.database import tables as t
from babylon_rl.defs.assets import WINDOW_ASSETS
from babylon_rl.errors import ConfigError
from babylon_rl.pipeline.checks import CHECKS
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.types import GroupMember, Turn
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import read_check_results

KEPT = (
    t.windows,
    t.window_trajectories,
    t.row_outcomes,
    t.window_outcomes,
    t.contextualized_groups,
    t.judgments,
    t.window_judgments,
    t.check_results,
)


def everything_kept(workspace: Workspace) -> str:
    """A hash over all rows that the assets keep, timestamps of judging included."""
    h = hashlib.sha256()
    with workspace.store.engine.connect() as conn:
        for table in KEPT:
            for row in conn.execute(sa.select(table).order_by(*table.primary_key.columns)):
                h.update(repr(tuple(row)).encode())
    return h.hexdigest()


def test_a_range_is_one_run_with_one_check_result_per_window(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    spawn_windows(workspace, 3)
    spawn_windows(workspace, 1, agents=3, first=FIRST.next(3))

    ran = runner.materialize("windows", FIRST, FIRST.next(4), resources=resources)

    assert ran.materializations == 4 * 5
    for asset in WINDOW_ASSETS:
        latest = runner.instance.get_latest_storage_id_by_partition(
            asset.key, dg.DagsterEventType.ASSET_MATERIALIZATION, None
        )
        assert sorted(latest) == [str(FIRST.next(i)) for i in range(5)]
    assert [r.window_id for r in workspace.ledger.ready()] == [str(FIRST.next(i)) for i in range(3)]
    for i in range(5):  # nothing was judged in the last two, so there is nothing that the checks of judgments are about
        kept = read_check_results(workspace.store.engine, FIRST.next(i)).keys()
        assert kept == {c.name for c in CHECKS if i < 3 or not c.is_about_judgment}


def test_each_checks_result_is_current_for_its_partition(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    """A plain AssetCheckResult in a range run writes one row without a partition: the tempting cleanup of `asset_check`."""
    spawn_windows(workspace, 2)
    runner.materialize("windows", FIRST, FIRST.next(), resources=resources)
    latest = runner.instance.get_latest_storage_id_by_partition(
        dg.AssetKey("ruler_scores"), dg.DagsterEventType.ASSET_MATERIALIZATION, None
    )
    records = runner.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey("ruler_scores"), "scores_are_not_all_equal"), limit=10
    )
    evaluations = [r.event.dagster_event.asset_check_evaluation_data for r in records if r.event]
    assert {e.partition: e.target_materialization_data.storage_id for e in evaluations} == latest
    assert all(e.passed and not e.blocking for e in evaluations)


def test_materializing_again_writes_the_same_bytes(
    workspace: Workspace, runner: Runner, resources: dict[str, object], judge: CountingJudge
) -> None:
    spawn_windows(workspace, 3)
    runner.materialize("windows", FIRST, FIRST.next(2), resources=resources)
    before = everything_kept(workspace)
    assert len(judge.asked) == 3

    runner.materialize("windows", FIRST, FIRST.next(2), resources=resources)
    runner.materialize("windows", FIRST.next(), FIRST.next(), resources=resources)

    assert everything_kept(workspace) == before
    assert len(judge.asked) == 3


def test_every_source_row_ends_in_exactly_one_outcome(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    spawn_windows(workspace, 2)
    spawn_windows(workspace, 1, agents=4, first=FIRST.next(2))
    with workspace.game.begin() as conn:
        conn.execute(sa.text("UPDATE trajectories SET steps_json = '[]' WHERE id = (SELECT min(id) FROM trajectories)"))
        conn.execute(
            sa.text("UPDATE trajectories SET steps_json = '[{\"a\"' WHERE id = (SELECT max(id) FROM trajectories)")
        )
    runner.materialize("windows", FIRST, FIRST.next(2), resources=resources)
    with workspace.game.connect() as conn:
        rows = set(conn.scalars(sa.text("SELECT id FROM trajectories")))
        ends = conn.execute(sa.text("SELECT source_id, status, reason FROM babylon_rl.row_outcomes")).all()
    assert {e.source_id for e in ends} == rows
    assert len(ends) == len(rows) == 2 * 6 * 3 + 4 * 3
    counted = {(e.status, e.reason) for e in ends}
    assert {("grouped", "has_turn"), ("quarantined", "no_steps"), ("quarantined", "bad_json")} <= counted


def test_a_rejected_window_stays_out_and_its_siblings_train(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    """A message that nobody logged is put into one stored group, as a leak would be."""
    spawn_windows(workspace, 3)
    runner.materialize("windows", FIRST, FIRST.next(2), resources=resources)
    bad = FIRST.next()
    group = workspace.store.group(bad)
    assert group is not None
    leaked = GroupMember(
        trajectory_id=group.members[0].trajectory_id,
        agent_id=group.members[0].agent_id,
        turns=(Turn(system="You trade.", user="GROUND TRUTH: MUSK rose 7 %", response="{}"),),
    )
    with workspace.store.engine.begin() as conn:
        conn.execute(
            sa.update(t.contextualized_groups)
            .where(t.contextualized_groups.c.window_id == str(bad))
            .values(
                body=pack(
                    type(group)(
                        group_id=group.group_id, window_id=group.window_id, members=(leaked, *group.members[1:])
                    )
                )
            )
        )

    ran = runner.materialize("windows", FIRST, FIRST.next(2), resources=resources)

    assert ran.failed_checks == 1
    results = read_check_results(workspace.store.engine, bad)
    assert [name for name, result in results.items() if not result.passed] == ["groups_hold_only_what_was_logged"]
    assert results["groups_hold_only_what_was_logged"].facts["not_logged"] == [f"{bad}/agent-1-habits turn 0"]
    assert [r.window_id for r in workspace.ledger.ready()] == [str(FIRST), str(FIRST.next(2))]


def test_a_window_without_outcomes_is_not_judged_and_says_why(
    workspace: Workspace, runner: Runner, resources: dict[str, object], judge: CountingJudge
) -> None:
    spawn_windows(workspace, 2)
    with workspace.game.begin() as conn:
        conn.execute(sa.text("DELETE FROM babylon_rl.price_facts WHERE at < '2025-01-15T01:00Z'"))
        conn.execute(sa.text("DELETE FROM babylon_rl.prediction_facts WHERE window_id = '2025-01-15T00:00'"))
    ran = runner.materialize("windows", FIRST, FIRST.next(), resources=resources)
    assert ran.failed_checks >= 1
    assert [r.window_id for r in workspace.ledger.ready()] == [str(FIRST.next())]
    (event,) = list(
        runner.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey("ruler_scores"), asset_partitions=[str(FIRST)]), limit=1
        ).records
    )
    assert "sync-outcomes" in str(event.asset_materialization.metadata["failed"].value)


def test_an_empty_hour_is_materialized_as_empty(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    assert workspace.store.data_version(FIRST) is not None
    assert workspace.store.group(FIRST) is None
    assert workspace.ledger.ready() == []


def test_a_window_outside_the_partitions_is_refused(runner: Runner, resources: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="set BABYLON_START or choose another window"):
        runner.materialize("windows", HourWindow.parse("1999-01-01T00:00"), FIRST, resources=resources)


def test_too_few_agents_make_no_group_until_the_setting_says_so(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    spawn_windows(workspace, 1, agents=4)
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    assert workspace.ledger.ready() == []
    runner.materialize(
        "windows", FIRST, FIRST, resources=resources, config={"contextualized_groups": {"min_agents": 4}}
    )
    assert [r.window_id for r in workspace.ledger.ready()] == [str(FIRST)]
