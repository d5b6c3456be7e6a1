"""A window whose outcomes do not come is judged by P&L alone once patience is over, says so, and is judged anew when they come."""

import asyncio
import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from judge_server import JudgeServer
from judging_factories import a_pair, a_ruler
from one_hour import WINDOW, current, judge_window, prepare, state, write_outcome

from babylon_rl.errors import ConfigError
from babylon_rl.export.dataset import export
from babylon_rl.export.explain import explain
from babylon_rl.judging.hindsight_judge import HindsightJudge
from babylon_rl.judging.judge import NoOutcomesError
from babylon_rl.pipeline.readiness import readiness
from babylon_rl.pipeline.rejudge import rejudge
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.settings import Settings
from babylon_rl.store.eligibility import Reason
from babylon_rl.types import Judgment, WindowOutcomes
from babylon_rl_tests.factories import a_row, a_workspace, insert_rows

END = WINDOW.end_at + timedelta(hours=24)
EARNED = (120.0, -80.5, 0.0, 610.25, None)


@pytest.fixture
def workspace(engine: sa.Engine) -> Workspace:
    """An hour of five agents without any market outcome, in a database where nobody computes them."""
    insert_rows(engine, [a_row(f"agent-{i}", window=WINDOW, final_pnl=pnl) for i, pnl in enumerate(EARNED)])
    workspace = at(a_workspace(engine), WINDOW.end_at + timedelta(minutes=10))
    prepare(workspace)
    return workspace


def at(workspace: Workspace, now: datetime, **settings: object) -> Workspace:
    """The workspace with its clock set to `now`, and with other settings of the judge."""
    return replace(workspace, now=lambda: now, settings=workspace.settings.changed(judge=settings))


def test_a_window_without_outcomes_waits_while_there_is_patience(workspace: Workspace, server: JudgeServer) -> None:
    judge_window(workspace, a_ruler(server.url))
    waits = state(workspace)
    assert (waits.reason, server.calls) == (Reason.WAITING_FOR_OUTCOMES, 0)
    assert "From 2025-01-16 11:00 UTC it is judged by P&L alone" in (waits.explanation or "")


def test_the_next_try_is_not_after_the_end_of_patience(workspace: Workspace, server: JudgeServer) -> None:
    for n in range(8):  # the wait has grown to an hour
        judge_window(at(workspace, END - timedelta(hours=9 - n)), a_ruler(server.url))
    judge_window(at(workspace, END - timedelta(minutes=7)), a_ruler(server.url))
    assert state(workspace).not_before == END
    judge_window(at(workspace, END), a_ruler(server.url), unattended=True)
    assert state(workspace).trainable


def test_after_patience_it_is_judged_by_pnl_and_marked(
    workspace: Workspace, server: JudgeServer, tmp_path: Path
) -> None:
    late = at(workspace, END)
    result = judge_window(late, a_ruler(server.url))
    assert (result.count, result.facts["outcomes"], server.calls) == (5, "none", 1)
    judgment = current(late)
    assert (judgment.details["outcomes"], judgment.outcomes) == ("none", "none")
    assert judgment.judge_version == a_ruler(server.url).version  # an audit of the judge counts
    assert state(late).trainable
    export(late, str(tmp_path / "x.jsonl"), format="jsonl")
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [r["outcomes"] for r in rows] == ["none"] * 5
    export(late, str(tmp_path / "g.jsonl"), format="jsonl", what="groups")
    assert json.loads((tmp_path / "g.jsonl").read_text())["outcomes"] == "none"
    told = " ".join(explain(late, f"{WINDOW}/agent-0"))
    assert "made by P&L alone, because no market outcome was known" in told


def test_the_prompt_says_plainly_that_outcomes_are_unknown(workspace: Workspace, server: JudgeServer) -> None:
    judge_window(at(workspace, END), a_ruler(server.url))
    system, user = (m["content"] for m in server.payloads[-1]["messages"])
    assert "# No outcome of this hour is known" in system
    assert '{"outcomes":"none","meaning":"No market outcome of this hour is known."}' in user
    assert '"pnl_usd":610.25' in user


def test_a_prompt_with_outcomes_does_not_mention_it(server: JudgeServer) -> None:
    async def ask() -> Judgment:
        async with a_ruler(server.url) as judge:
            return await judge.judge_without_outcomes(*a_pair())

    judgment = asyncio.run(ask())
    assert judgment.outcomes == "known"
    assert all("No outcome of this hour" not in m["content"] for m in server.payloads[-1]["messages"])


def test_outcomes_that_come_later_make_another_judgment(workspace: Workspace, server: JudgeServer) -> None:
    late = at(workspace, END)
    judge_window(late, a_ruler(server.url))
    alone, version = current(late), state(late).version
    write_outcome(late, END + timedelta(hours=2))
    later = at(workspace, END + timedelta(hours=3))
    prepare(later)
    assert state(later).version != version
    assert state(later).reason is Reason.NOT_JUDGED
    result = judge_window(later, a_ruler(server.url))
    judgment = current(later)
    assert (judgment.key != alone.key, judgment.outcomes, "outcomes" in result.facts) == (True, "known", False)
    assert server.calls == 2
    assert later.store.find_judgment(alone.key) == alone  # beside the old one


def test_never_waits_and_trusts_no_judgment_made_so(workspace: Workspace, server: JudgeServer) -> None:
    month = END + timedelta(days=30)
    never = at(workspace, month, outcomes_patience="never")
    judge_window(never, a_ruler(server.url))
    assert (state(never).reason, server.calls) == (Reason.WAITING_FOR_OUTCOMES, 0)
    assert "P&L alone" not in (state(never).explanation or "")

    with_patience = at(workspace, month)
    judge_window(with_patience, a_ruler(server.url))
    assert current(with_patience).outcomes == "none"
    with workspace.store.engine.begin() as conn:
        conn.execute(sa.text("DELETE FROM babylon_rl.window_judgments"))
    judge_window(never, a_ruler(server.url))
    assert workspace.store.judgment(WINDOW) is None
    judge_window(with_patience, a_ruler(server.url))  # and it is not paid again
    assert (current(with_patience).outcomes, server.calls) == ("none", 1)


def test_the_keyless_judge_waits_whatever_the_patience(workspace: Workspace) -> None:
    late = at(workspace, END + timedelta(days=30), outcomes_patience=0.0)
    judge_window(late, HindsightJudge())
    assert state(late).reason is Reason.WAITING_FOR_OUTCOMES
    assert "P&L alone" not in (state(late).explanation or "")


def test_rejudge_goes_by_the_same_patience(workspace: Workspace, server: JudgeServer) -> None:
    [early] = rejudge(workspace, a_ruler(server.url), [WINDOW]).windows
    assert "no outcomes" in (early.failed or "")
    [late] = rejudge(at(workspace, END), a_ruler(server.url), [WINDOW]).windows
    assert late.new is not None
    assert late.new.outcomes == "none"


def test_without_outcomes_and_pnl_there_is_nothing_to_judge_by(server: JudgeServer) -> None:
    group, hindsight = a_pair((1.0, None, None), outcomes=WindowOutcomes(window_id="w"))

    async def ask() -> Judgment:
        async with a_ruler(server.url) as judge:
            return await judge.judge_without_outcomes(group, hindsight)

    with pytest.raises(NoOutcomesError, match="P&L of 1 of its 3 members is known"):
        asyncio.run(ask())
    assert server.calls == 0


@pytest.mark.parametrize(("value", "hours"), [("never", "never"), ("6", 6.0), ("0.5", 0.5), ("0", 0.0)])
def test_patience_is_a_number_of_hours_or_never(value: str, hours: object) -> None:
    assert Settings.load(BABYLON_OUTCOMES_PATIENCE=value).judge.outcomes_patience == hours


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "soon", "1000000"])
def test_patience_of_another_form_is_refused_by_name(value: str) -> None:
    with pytest.raises(ConfigError, match="BABYLON_OUTCOMES_PATIENCE"):
        Settings.load(BABYLON_OUTCOMES_PATIENCE=value)


def test_check_windows_asks_for_outcomes_only_until_then(workspace: Workspace, server: JudgeServer) -> None:
    def next_step(now: datetime) -> str | None:
        return readiness(at(workspace, now), min_agents=5, min_windows=1, now=now).next_step

    assert "sync-outcomes" in (next_step(END) or "")
    judge_window(at(workspace, END), a_ruler(server.url))
    assert next_step(END) is None
