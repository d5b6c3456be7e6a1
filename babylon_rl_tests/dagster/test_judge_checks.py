"""The checks on judging through Dagster: an unfit judge and a spent budget keep windows out, by name."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster_factories import FIRST, CountingJudge, spawn_windows

from babylon_rl.cli.runner import Runner
from babylon_rl.judging.audit.audit import audit
from babylon_rl.judging.hindsight_judge import HindsightJudge
from babylon_rl.judging.ruler.call_log import Call, CallLog
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.eligibility import State
from babylon_rl.store.judge_audits import latest_audit, write_audit
from babylon_rl.store.judge_calls import PostgresCallLog
from babylon_rl.types import Hindsight, Judgment, TrajectoryGroup
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import read_check_results


class PricedJudge(CountingJudge):
    """The real judge, as if each judgment cost a dollar."""

    def __init__(self, call_log: CallLog) -> None:
        super().__init__()
        self.call_log = call_log

    async def judge(self, group: TrajectoryGroup, hindsight: Hindsight) -> Judgment:
        call = Call(
            judgment_key=self.key(group, hindsight),
            slot="p0",
            window_id=group.window_id,
            group_id=group.group_id,
            judge_model=self.model,
            judge_version=self.version,
            prompt_tokens=1,
            reserved_usd=1.0,
        )
        self.call_log.begin(call)
        return await super().judge(group, hindsight)


def test_windows_of_the_self_audited_hindsight_judge_are_ready(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    spawn_windows(workspace, 1)
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    assert [r.window_id for r in workspace.ledger.ready()] == [str(FIRST)]
    audit = latest_audit(workspace.store.engine, "hindsight", "hindsight-1")
    assert audit is not None
    facts = read_check_results(workspace.store.engine, FIRST)["judge_is_fit"].facts
    assert facts["truth_agreement"] == 1.0
    assert {"false_positive_rate", "length_bias", "position_bias", "retest_noise"} <= facts.keys()


def test_windows_judged_by_an_unfit_judge_do_not_train(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    spawn_windows(workspace, 1)
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    with workspace.store.engine.begin() as conn:
        conn.execute(
            sa.text(
                "INSERT INTO babylon_rl.judge_audits SELECT judge_model, judge_version, now() + interval '1 s', groups, "
                "false, 0.5, length_bias, position_bias, retest_noise, truth_agreement, figures "
                "FROM babylon_rl.judge_audits"
            )
        )
    ran = runner.materialize("windows", FIRST, FIRST, resources=resources)
    assert ran.failed_checks == 1
    assert workspace.ledger.ready() == []


def test_a_new_audit_decides_about_windows_judged_before(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    """A window that an audit kept out stayed out for ever, though the judge was found fit the next day."""
    spawn_windows(workspace, 1)
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    engine, figures = workspace.store.engine, asyncio.run(audit(HindsightJudge()))
    assert figures.fit
    write_audit(engine, replace(figures, truth_agreement=0.0))
    assert workspace.ledger.ready() == []
    [state] = workspace.ledger.eligibility.states([FIRST])
    assert (state.state, state.failed_checks) == (State.KEPT_OUT, ("judge_is_fit",))
    assert read_check_results(engine, FIRST)["judge_is_fit"].facts["truth_agreement"] == 0.0
    write_audit(engine, figures)
    assert [r.window_id for r in workspace.ledger.ready()] == [str(FIRST)]
    write_audit(engine, replace(figures, judge_version="another", truth_agreement=0.0))
    assert len(workspace.ledger.ready()) == 1, "another judge's audit says nothing of it"


def test_a_check_says_that_the_budget_was_spent(
    workspace: Workspace, runner: Runner, resources: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(workspace.settings.judge.__dict__, "budget_usd", 1.5)
    spawn_windows(workspace, 2)
    judge = PricedJudge(PostgresCallLog(workspace.store.engine, budget_usd=1.5))
    ran = runner.materialize("windows", FIRST, FIRST.next(), resources=resources | {"judge": judge})
    assert [r.window_id for r in workspace.ledger.ready()] in ([str(FIRST)], [str(FIRST.next())])
    assert ran.failed_checks == 2
    left = HourWindow.parse(
        {str(FIRST), str(FIRST.next())}.difference(r.window_id for r in workspace.ledger.ready()).pop()
    )
    assert all(r.passed for r in read_check_results(workspace.store.engine, left).values()), "waiting is no failure"
    [state] = workspace.ledger.eligibility.states([left])
    assert (state.state, state.failures) == (State.OVER_BUDGET, 1)
    assert "JUDGE_BUDGET_USD" in str(state.explanation)
    assert state.not_before is not None
    tomorrow = state.not_before - workspace.now()
    assert (state.not_before.hour, state.not_before.minute, tomorrow <= timedelta(days=1)) == (0, 0, True)
    assert evaluated(runner.instance, "judging_stays_within_budget", left) == (False, dg.AssetCheckSeverity.WARN)


def evaluated(instance: dg.DagsterInstance, check: str, window: HourWindow) -> tuple[bool, dg.AssetCheckSeverity]:
    """What Dagster shows of a check on a window."""
    key = dg.AssetCheckKey(dg.AssetKey("ruler_scores"), check)
    records = instance.event_log_storage.get_asset_check_execution_history(key, limit=10)
    found = [r.event.dagster_event.asset_check_evaluation_data for r in records if r.event and r.event.dagster_event]
    [one] = [e for e in found if e.partition == str(window)]
    return one.passed, one.severity


def test_a_member_left_out_is_named_in_the_windows_metadata(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    spawn_windows(workspace, 1)
    with workspace.game.begin() as conn:
        conn.execute(sa.text("UPDATE trajectories SET final_pnl = NULL WHERE agent_id LIKE 'agent-1-%'"))
    assert runner.materialize("windows", FIRST, FIRST, resources=resources).failed_checks == 0
    assert [r.window_id for r in workspace.ledger.ready()] == [str(FIRST)]
    (event,) = runner.instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey("ruler_scores"), asset_partitions=[str(FIRST)]), limit=1
    ).records
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    left_out = {f"{FIRST}/agent-1-habits": "its P&L inside the hour is unknown"}
    assert (metadata["left_out"].value, metadata["dagster/row_count"].value) == (left_out, 5)
    assert read_check_results(workspace.store.engine, FIRST)["every_member_has_one_score"].facts["left_out"] == left_out
