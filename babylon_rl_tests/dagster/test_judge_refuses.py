"""A judge that refuses us, over HTTP and through Dagster: one red run says so, and the windows are judged once it accepts."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import dagster as dg
import pytest
from dagster_factories import FIRST, spawn_windows

from babylon_rl.cli.runner import Runner
from babylon_rl.defs.automation import prepare_missed_windows
from babylon_rl.errors import BabylonRLError
from babylon_rl.judging.ruler.endpoint import OpenAIEndpoint
from babylon_rl.judging.ruler.judge import RulerJudge, trading_rubric
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.eligibility import Reason, State
from babylon_rl.store.judge_calls import PostgresCallLog
from babylon_rl_tests.judging.judge_server import JudgeServer

KEY = "sk-never-shown"
WINDOWS = [FIRST.next(i) for i in range(3)]


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer() as server:
        yield server


def a_judge(workspace: Workspace, server: JudgeServer) -> RulerJudge:
    return RulerJudge(
        OpenAIEndpoint("gpt-4o-mini", api_key=KEY, base_url=server.url, timeout_s=20),
        model="openai/gpt-4o-mini",
        rubric=trading_rubric(),
        max_concurrency=1,
        call_log=PostgresCallLog(workspace.store.engine),
    )


@pytest.mark.parametrize(("mode", "said"), [("401", "OPENAI_API_KEY"), ("quota", "top the account up")])
def test_windows_wait_for_a_judge_that_refuses_us(
    workspace: Workspace, runner: Runner, resources: dict[str, object], server: JudgeServer, mode: str, said: str
) -> None:
    spawn_windows(workspace, 3)
    judge = a_judge(workspace, server)
    now = workspace.now()
    used = resources | {"judge": judge, "workspace": replace(workspace, now=lambda: now)}
    server.set_rules([("honest", 1, ""), (mode, None, "")])
    with pytest.raises(BabylonRLError, match=said) as refused:
        runner.materialize("windows", FIRST, WINDOWS[-1], resources=used)
    assert KEY not in str(refused.value)
    assert server.calls == 2, "one was judged, one was refused, and nobody asked for the third"
    states = workspace.ledger.eligibility.states(WINDOWS)
    waiting = [s for s in states if s.reason is Reason.JUDGE_DOWN]
    assert [(s.state, s.failures) for s in waiting] == [(State.JUDGE_FAILED, 1)] * 2
    assert all(said in str(s.explanation) and s.not_before == now + timedelta(minutes=1) for s in waiting)

    server.set_rules([])
    later = replace(workspace, now=lambda: now + timedelta(minutes=1))
    context = dg.build_sensor_context(instance=runner.instance, resources={"workspace": later})
    assert isinstance(prepare_missed_windows(context), dg.RunRequest)
    runner.materialize("windows", FIRST, WINDOWS[-1], resources=used | {"workspace": later})
    assert len(workspace.ledger.ready()) == 3
    assert server.calls == 4, "what was judged before is not paid for again"


def test_a_neighbour_that_is_due_does_not_make_us_pay_again(
    workspace: Workspace, runner: Runner, resources: dict[str, object], server: JudgeServer
) -> None:
    """A range that a sensor asks for goes over windows whose time has not come; only a person has those tried at once."""
    spawn_windows(workspace, 2)
    used = resources | {"judge": a_judge(workspace, server)}
    server.behave("broken", only=str(FIRST))
    runner.materialize("windows", FIRST, WINDOWS[1], resources=used)
    assert server.calls == 3 + 1  # three useless replies, and one of use
    [state] = workspace.ledger.eligibility.states([FIRST])
    assert (state.state, state.reason, state.failures) == (State.JUDGE_FAILED, Reason.JUDGE_FAILED, 1)
    runner.materialize("windows", FIRST, WINDOWS[1], resources=used, tags={"dagster/sensor_name": "any"})
    assert server.calls == 4
    assert workspace.ledger.eligibility.states([FIRST]) == [state]
    runner.materialize("windows", FIRST, WINDOWS[1], resources=used)
    assert server.calls == 7
