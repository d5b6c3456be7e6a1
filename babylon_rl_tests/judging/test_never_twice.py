"""Never paid twice: SIGKILL at every persistence point; the log of calls, the day's budget, and the views over them."""

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from judge_server import JudgeServer
from judging_factories import Pair, a_pair, a_ruler

from babylon_rl.database import tables as t
from babylon_rl.judging.judge import BudgetSpentError
from babylon_rl.judging.ruler.call_log import Call, CallStatus
from babylon_rl.pipeline.score import score_windows
from babylon_rl.pipeline.window_result import WindowResult
from babylon_rl.store.judge_calls import PostgresCallLog
from babylon_rl.store.windows import Store
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import a_workspace

SCRIPT = Path(__file__).with_name("killed_judging.py")
FIRST = HourWindow.parse("2025-01-15T00:00")

# Every transaction that judging commits, each before and after its commit. A test holds this list to be complete.
POINTS = [
    f"{what}/{side}"
    for what in ("insert judge_calls", "update judge_calls", "insert judgments", "insert window_judgments")
    for side in ("before", "after")
]


def fill(engine: sa.Engine, windows: int) -> list[HourWindow]:
    """Windows with a group each, as `contextualized_groups` leaves them."""
    store = Store(engine)
    hours = [FIRST.next(i) for i in range(windows)]
    for w in hours:
        group, h = a_pair(window=str(w))
        store.write_ingest(w, [], [], rows=0)
        store.write_groups(w, [(group, h)], [], made_from=store.group_sources(w).made_from)
    return hours


def child(url: str, judge: str, point: str, nth: int, concurrency: int = 1) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), url, judge, str(concurrency), point, str(nth)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=SCRIPT.parents[2],
        env={"PYTHONPATH": str(SCRIPT.parents[2]), "PATH": ""},
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, done.stdout.split("\n")


def asked(server: JudgeServer) -> Counter[str]:
    return Counter(p["messages"][1]["content"] for p in server.payloads)


def test_a_killed_judging_repeats_at_most_the_call_in_flight(
    engine: sa.Engine, database_url: str, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """100 groups, one request in flight: killed at each point in turn, always somewhere else in the run."""
    fill(engine, 100)
    lines = []
    repeated = 0
    for i, point in enumerate(POINTS):
        # set_current_judgment comes once all groups of a run are judged; all other points from the first group on
        status, _ = child(database_url, server.url, point, 3 if "window_judgments" in point else 5 + i)
        assert status == -signal.SIGKILL, point
        now = sum(n - 1 for n in asked(server).values())
        assert now - repeated <= 1, point
        lines.append(f"{point}: {server.calls} calls so far, {now - repeated} repeated")
        repeated = now
    status, output = child(database_url, server.url, "", 0)
    assert (status, output[-2]) == (0, "judged 100")
    calls = server.calls
    assert len(asked(server)) == 100
    assert calls - 100 <= len(POINTS)

    status, output = child(database_url, server.url, "", 0)
    assert (status, output[-2], server.calls) == (0, "judged 100", calls), "an unchanged re-run makes no call"
    with engine.connect() as conn:
        assert conn.scalar(sa.text("SELECT count(DISTINCT judgment_key) FROM babylon_rl.judgments")) == 100
        assert conn.scalar(sa.text("SELECT count(*) FROM babylon_rl.window_judgments")) == 100
        held = conn.scalar(sa.text("SELECT sum(unanswered) FROM babylon_rl.judge_costs"))
        assert held is not None
        assert held <= len(POINTS)  # a killed request may have been paid for: its reservation stands
    with capsys.disabled():
        print("\n" + "\n".join(lines) + f"\n{len(POINTS)} kills over 100 groups: {calls} calls, 0 groups lost")  # noqa: T201


def test_the_list_of_persistence_points_is_complete(engine: sa.Engine, database_url: str, server: JudgeServer) -> None:
    fill(engine, 2)
    status, output = child(database_url, server.url, "", 0)
    assert status == 0
    assert {line for line in output if "/" in line} == set(POINTS)


def test_with_many_in_flight_a_kill_repeats_at_most_those(
    engine: sa.Engine, database_url: str, server: JudgeServer
) -> None:
    fill(engine, 24)
    server.delay_s = 0.02
    status, _ = child(database_url, server.url, "insert judgments/before", 7, concurrency=6)
    assert status == -signal.SIGKILL
    server.delay_s = 0.0
    status, output = child(database_url, server.url, "", 0, concurrency=6)
    assert (status, output[-2]) == (0, "judged 24")
    assert server.calls - len(asked(server)) <= 6


# ── replies, passes and re-asks ────────────────────────────────────────────────────────────────────


async def judge_with(server: JudgeServer, call_log: PostgresCallLog, pair: Pair, **more: object) -> object:
    async with a_ruler(server.url, call_log=call_log, **more) as judge:  # type: ignore[arg-type]
        return await judge.judge(*pair)


def test_a_pass_that_was_answered_is_not_asked_again(engine: sa.Engine, server: JudgeServer) -> None:
    call_log = PostgresCallLog(engine)
    pair = a_pair()
    server.behave("honest", times=1)
    server.behave("401")
    with pytest.raises(Exception, match="OPENAI_API_KEY"):
        asyncio.run(judge_with(server, call_log, pair, passes=3))
    assert server.calls == 2
    server._rules.clear()
    judgment = asyncio.run(judge_with(server, call_log, pair, passes=3))
    assert server.calls == 4  # passes two and three
    assert judgment.details["requests"] == 3  # type: ignore[attr-defined]


def test_requests_of_an_interrupted_attempt_count(engine: sa.Engine, server: JudgeServer) -> None:
    call_log, pair = PostgresCallLog(engine), a_pair()
    server.behave("nan", times=2)
    server.behave("401", times=1)
    with pytest.raises(Exception, match="OPENAI_API_KEY"):
        asyncio.run(judge_with(server, call_log, pair))
    server.behave("nan", times=1)
    with pytest.raises(Exception, match="in 3 asks"):
        asyncio.run(judge_with(server, call_log, pair))
    assert server.calls == 4  # two faulty, one refused, and the third ask of the same attempt
    judgment = asyncio.run(judge_with(server, call_log, pair))
    assert server.calls == 5
    assert judgment.details["requests"] == 4  # type: ignore[attr-defined]  # and all four were paid for


# ── budget and views ───────────────────────────────────────────────────────────────────────────────


def run(
    engine: sa.Engine,
    server: JudgeServer,
    windows: list[HourWindow],
    *,
    budget_usd: float | None = None,
    concurrency: int = 8,
) -> dict[HourWindow, WindowResult]:
    judge = a_ruler(server.url, call_log=PostgresCallLog(engine, budget_usd=budget_usd))
    return asyncio.run(score_windows(a_workspace(engine), judge, windows, concurrency=concurrency))


def test_the_budget_stops_before_the_request_that_crosses_it(engine: sa.Engine, server: JudgeServer) -> None:
    windows = fill(engine, 6)
    first = run(engine, server, windows[:1])
    with engine.connect() as conn:
        reserved = conn.scalar(sa.select(t.judge_calls.c.reserved_usd))
        paid = conn.scalar(sa.select(t.judge_calls.c.cost_usd))
    assert reserved is not None
    assert paid is not None
    assert 0 < paid < reserved
    assert first[windows[0]].facts["window_cost_usd"] == pytest.approx(paid)

    budget = 2.5 * paid + reserved  # room for two beside what is paid: the last one may cost all that it reserves
    done = run(engine, server, windows, budget_usd=budget, concurrency=1)
    judged = [w for w in windows if done[w].count]
    assert len(judged) == 3
    assert server.calls == 3
    left = done[windows[5]].facts
    assert left["state"] == "over_budget"
    assert "JUDGE_BUDGET_USD" in left["failed"]
    assert "raise the budget" in left["failed"]
    with engine.connect() as conn:
        assert conn.scalar(sa.text("SELECT sum(cost_usd) FROM babylon_rl.judge_costs")) <= budget

    with engine.begin() as conn:  # a day goes by
        conn.execute(sa.text("UPDATE babylon_rl.judge_calls SET day = day - 1"))
    done = run(engine, server, windows, budget_usd=budget, concurrency=1)
    assert server.calls == 6
    assert all(done[w].count for w in windows)


def test_many_that_ask_at_once_cannot_cross_the_budget_together(engine: sa.Engine, server: JudgeServer) -> None:
    windows = fill(engine, 12)
    server.delay_s = 0.05
    reserve = 0.0040
    done = run(engine, server, windows, budget_usd=3 * reserve, concurrency=12)
    with engine.connect() as conn:
        rows = (
            conn.execute(sa.select(t.judge_calls.c.reserved_usd).where(t.judge_calls.c.state != "denied"))
            .scalars()
            .all()
        )
    assert sum(rows) <= 3 * reserve
    assert 0 < len(rows) == server.calls < 12
    assert sum(s.facts.get("state") == "over_budget" for s in done.values()) == 12 - server.calls


def a_call(**change: object) -> Call:
    known = Call(
        judgment_key="k",
        slot="p0",
        window_id=str(FIRST),
        group_id="g",
        judge_model="m",
        judge_version="v",
        prompt_tokens=10,
        reserved_usd=1.0,
    )
    return replace(known, **change)  # type: ignore[arg-type]


def test_a_refused_request_gives_back_its_reservation(engine: sa.Engine) -> None:
    now = datetime(2025, 1, 15, 23, 59, tzinfo=UTC)
    call_log = PostgresCallLog(engine, budget_usd=2.5, now=lambda: now)
    call_log.end(call_log.begin(a_call()), CallStatus.LOST)
    call_log.end(call_log.begin(a_call()), CallStatus.REFUSED)
    call_log.begin(a_call())  # killed: never ended
    with pytest.raises(BudgetSpentError, match=r"\$2\.0000 of JUDGE_BUDGET_USD \$2\.5"):
        call_log.begin(a_call())
    midnight = PostgresCallLog(engine, budget_usd=2.5, now=lambda: datetime(2025, 1, 16, tzinfo=UTC))
    assert midnight.begin(a_call())


def test_timeouts_are_lost_and_error_statuses_are_not_owed(engine: sa.Engine, server: JudgeServer) -> None:
    server.behave("hang", times=1)
    server.behave("500", times=1)
    asyncio.run(judge_with(server, PostgresCallLog(engine), a_pair(), timeout_s=0.3))
    with engine.connect() as conn:
        states = list(conn.scalars(sa.select(t.judge_calls.c.state).order_by(t.judge_calls.c.serial)))
        row = conn.execute(sa.text("SELECT * FROM babylon_rl.judge_costs")).mappings().one()
    assert states == ["lost", "refused", "replied"]
    assert (row["calls"], row["unanswered"], row["kept_groups"]) == (2, 1, 0)


def test_the_views_say_what_was_judged_and_what_it_cost(engine: sa.Engine, server: JudgeServer) -> None:
    windows = fill(engine, 3)
    server.behave("nan", times=1)
    run(engine, server, windows, concurrency=1)
    with engine.connect() as conn:
        rows = (
            conn.execute(
                sa.text(
                    "SELECT trajectory_id, window_id, group_id, score, judge_model, judge_version, explanation, judged_at, "
                    "tokens, cost_usd FROM babylon_rl.judgments ORDER BY window_id, trajectory_id"
                )
            )
            .mappings()
            .all()
        )
        costs = conn.execute(sa.text("SELECT * FROM babylon_rl.judge_costs ORDER BY window_id")).mappings().all()
    assert len(rows) == 15
    assert all(r["judged_at"] and r["explanation"] and 0 <= r["score"] <= 1 for r in rows)
    for i, w in enumerate(windows):
        mine = [r for r in rows if r["window_id"] == str(w)]
        cost = costs[i]
        assert sum(r["cost_usd"] for r in mine) == pytest.approx(cost["cost_usd"])
        assert sum(r["tokens"] for r in mine) == cost["prompt_tokens"] + cost["completion_tokens"]
        assert (cost["calls"], cost["kept_groups"]) == (2 if i == 0 else 1, 1)
        assert cost["cost_usd_per_kept_group"] == pytest.approx(cost["cost_usd"])
        assert cost["day"] == datetime.now(UTC).date()
