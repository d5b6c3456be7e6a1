"""A member whose P&L is unknown is left out of the keyless judge's ranking with a reason; its siblings train."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from judge_server import JudgeServer
from judging_factories import PNLS, a_pair, a_ruler
from one_hour import WINDOW, judge_window, prepare, state, write_outcome

from babylon_rl.export.dataframe import window_frame
from babylon_rl.export.dataset import export, schema
from babylon_rl.export.explain import explain
from babylon_rl.judging.hindsight_judge import HindsightJudge, attained_shares
from babylon_rl.judging.judge import TooFewRankedError
from babylon_rl.pipeline.check_rules import one_score_per_member
from babylon_rl.pipeline.foreign_windows import set_aside_foreign_windows
from babylon_rl.pipeline.rejudge import rejudge
from babylon_rl.pipeline.train import load_rewarded_group
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.eligibility import Reason
from babylon_rl.training.trainer import TrainingBatch, check_batch
from babylon_rl.types import Json
from babylon_rl_tests.factories import a_json_call, a_json_step, a_row, a_workspace, insert_rows, read_check_results

NOW = WINDOW.end_at + timedelta(hours=1)
UNKNOWN = f"{WINDOW}/agent-1"
EARNED = (120.0, None, 0.0, 610.25, -300.0)


@pytest.fixture
def workspace(engine: sa.Engine) -> Workspace:
    return replace(a_workspace(engine), now=lambda: NOW)


def record(workspace: Workspace, earned: tuple[float | None, ...], steps: dict[int, list[Json]] | None = None) -> None:
    """An hour of agents that earned so much, and the outcome of one market."""
    rows = [
        a_row(f"agent-{i}", window=WINDOW, final_pnl=pnl, **({"steps_json": steps[i]} if steps and i in steps else {}))
        for i, pnl in enumerate(earned)
    ]
    insert_rows(workspace.game, rows)
    write_outcome(workspace, WINDOW.end_at + timedelta(minutes=5))


def test_siblings_score_as_if_the_unknown_one_were_not_there() -> None:
    group, hindsight = a_pair((120.0, None, 0.0, 610.25, -300.0))
    judgment = asyncio.run(HindsightJudge().judge(group, hindsight))
    assert judgment.left_out == {"2025-01-15T10:00/agent-1": "its P&L inside the hour is unknown"}
    alone = (
        replace(group, members=tuple(m for m in group.members if m.agent_id != "agent-1")),
        replace(hindsight, members=tuple(h for h in hindsight.members if h.pnl_usd is not None)),
    )
    assert list(judgment.scores) == attained_shares(*alone)


@pytest.mark.parametrize("pnl", [float("nan"), float("inf"), None])
def test_no_number_is_no_pnl(pnl: float | None) -> None:
    group, hindsight = a_pair()
    members = (replace(hindsight.members[0], pnl_usd=pnl), *hindsight.members[1:])
    judged = asyncio.run(HindsightJudge().judge(group, replace(hindsight, members=members)))
    assert (len(judged.scores), list(judged.left_out)) == (4, ["2025-01-15T10:00/agent-0"])


def test_one_known_pnl_ranks_nobody_and_the_agents_are_named() -> None:
    with pytest.raises(
        TooFewRankedError, match=r"P&L of agent-1, agent-2 .* leaves 1 of 3 members .* needs 2\. .*rows"
    ):
        attained_shares(*a_pair((5.0, None, None)))


def test_a_judgment_that_leaves_nobody_out_is_stored_as_before() -> None:
    judgment = asyncio.run(HindsightJudge().judge(*a_pair(PNLS)))
    assert (judgment.details, judgment.left_out) == ({}, {})


def test_a_window_with_one_unknown_pnl_trains_on_the_others(workspace: Workspace) -> None:
    record(workspace, EARNED)
    prepare(workspace)
    result = judge_window(workspace, HindsightJudge())
    assert (result.count, result.facts["left_out"]) == (4, {UNKNOWN: "its P&L inside the hour is unknown"})
    assert all(r.passed for r in read_check_results(workspace.store.engine, WINDOW).values())
    [ready] = workspace.ledger.ready()
    rewarded = load_rewarded_group(workspace, ready.window_id, ready.judgment_key)
    assert [m.agent_id for m in rewarded.group.members] == ["agent-0", "agent-2", "agent-3", "agent-4"]
    assert list(rewarded.rewards.values()) == pytest.approx([2 / 3, 1 / 3, 1.0, 0.0])
    check_batch(TrainingBatch(lineage="l", step=1, window_id=str(WINDOW), groups=(rewarded,)))


def test_export_has_no_reward_for_it_and_says_why(workspace: Workspace, tmp_path: Path) -> None:
    record(workspace, EARNED)
    prepare(workspace)
    judge_window(workspace, HindsightJudge())
    export(workspace, str(tmp_path / "turns.jsonl"), format="jsonl", with_hindsight=True)
    rows = [json.loads(line) for line in (tmp_path / "turns.jsonl").read_text().splitlines()]
    by_agent = {r["agent_id"]: r for r in rows}
    left = by_agent.pop("agent-1")
    assert (left["score"], left["reward"], left["advantage"]) == (None, None, None)
    assert left["left_out"] == "its P&L inside the hour is unknown"
    assert [(r["left_out"], r["compared"]) for r in by_agent.values()] == [(None, 4)] * 4
    assert {r["reward"] for r in by_agent.values()} == {0.0, 1 / 3, 2 / 3, 1.0}
    export(workspace, str(tmp_path / "groups.parquet"), format="parquet", what="groups")
    assert {"left_out", "reward"} <= {f.name for f in schema("groups").field("members").type.value_type}
    frame = window_frame(workspace.store, str(WINDOW)).set_index("agent_id")
    assert frame.reward.isna().to_dict() == {f"agent-{i}": i == 1 for i in range(5)}
    assert frame.explanation["agent-1"] == "Left out of the ranking: its P&L inside the hour is unknown."


def test_its_row_says_that_it_was_left_out(workspace: Workspace) -> None:
    record(workspace, EARNED)
    prepare(workspace)
    judge_window(workspace, HindsightJudge())
    told = " ".join(explain(workspace, UNKNOWN))
    assert "1 grouped (has_turn)" in told
    assert "left it out of the ranking: its P&L inside the hour is unknown. So nothing trains on it" in told
    assert "scored it" in " ".join(explain(workspace, f"{WINDOW}/agent-0"))
    assert explain(workspace, UNKNOWN)[-1].endswith("its 4 siblings are ranked without it.")

    planned = workspace.ledger.plan(WINDOW, 1, learning_rate=None)
    assert planned is not None
    workspace.ledger.record(planned, trainer="cpu", base_model="b", path="p", manifest={}, metrics={})
    assert explain(workspace, UNKNOWN)[-1] == "Checkpoint babylon-mmo@1 was trained on its siblings."
    assert explain(workspace, f"{WINDOW}/agent-0")[-1] == "Checkpoint babylon-mmo@1 was trained on it."


def test_an_llm_still_scores_it_and_the_two_are_compared(workspace: Workspace, server: JudgeServer) -> None:
    record(workspace, EARNED)
    prepare(workspace)
    judge_window(workspace, HindsightJudge())
    [again] = rejudge(workspace, a_ruler(server.url), [WINDOW]).windows
    assert again.new is not None
    assert (len(again.new.scores), again.new.left_out, again.tau) == (5, {}, 1.0)
    assert '{"result":{"pnl_usd":null,' in server.prompt()


def test_its_turns_are_no_own_turns_of_the_batch(workspace: Workspace) -> None:
    """Else a batch refused for other models' turns would be planned again, and refused, for ever."""
    other = [a_json_step(llmCalls=[a_json_call(model="gpt-4o", modelVersion="gpt-4o")])]
    record(workspace, (5.0, None, 7.0), steps={0: other, 2: other})
    prepare(workspace, min_agents=3)
    judge_window(workspace, HindsightJudge())
    assert [r.window_id for r in workspace.ledger.ready()] == [str(WINDOW)]
    rules = {"min_own_share": 0.3}  # one turn of three is own, none of those that train
    strict = replace(workspace, settings=workspace.settings.changed(training=rules))
    assert set_aside_foreign_windows(strict, "refused") == [WINDOW]


def test_too_few_known_are_tried_again_when_rows_change(workspace: Workspace) -> None:
    record(workspace, (5.0, None, None, None, None))
    prepare(workspace)
    judge_window(workspace, HindsightJudge())
    waits = state(workspace)
    assert waits.reason is Reason.JUDGE_FAILED
    assert "the P&L of agent-1, agent-2, agent-3, agent-4 inside the window is unknown" in (waits.explanation or "")
    assert waits.not_before is not None
    assert waits.not_before > NOW + timedelta(days=300)
    month = replace(workspace, now=lambda: NOW + timedelta(days=30))
    assert judge_window(month, HindsightJudge(), unattended=True).facts["waits"] is True

    insert_rows(workspace.game, [a_row("agent-1", window=WINDOW, tick=1, final_pnl=40.0)])
    prepare(workspace)
    assert state(workspace).not_before is None
    assert judge_window(month, HindsightJudge(), unattended=True).count == 2
    assert state(workspace).trainable


@pytest.mark.parametrize(
    ("scored", "left_out", "passes"),
    [
        ([0, 1, 2, 3], {4: "why"}, True),
        ([0, 1, 2], {4: "why"}, False),  # one is missing without a reason
        ([0, 1, 2, 3, 4], {4: "why"}, False),  # scored and left out
        ([0], {1: "why", 2: "why", 3: "why", 4: "why"}, False),  # compared with nobody
        ([0, 1, 2, 3, 4], {9: "why"}, False),  # a stranger
    ],
)
def test_the_check_wants_a_score_or_a_reason(scored: list[int], left_out: dict[int, str], passes: bool) -> None:
    group, hindsight = a_pair()
    whole = asyncio.run(HindsightJudge().judge(group, hindsight))
    details = {"left_out": {f"2025-01-15T10:00/agent-{i}": why for i, why in left_out.items()}}
    judgment = replace(whole, scores=tuple(whole.scores[i] for i in scored), details=details)
    assert one_score_per_member(group, judgment).passed is passes
