"""Valid records for tests: a test names only the fields that it is about."""

import itertools
import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from babylon_rl.common.canonical import from_json
from babylon_rl.database import game_tables
from babylon_rl.database import tables as t
from babylon_rl.grouping.groups import make_groups
from babylon_rl.ingest.reader import stream_window
from babylon_rl.ingest.rows import EnvironmentState, LlmCall, SourceRow, Step
from babylon_rl.pipeline.checks import CHECKS
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.settings import Settings
from babylon_rl.store.check_results import read_check_subjects, write_check_results
from babylon_rl.store.ledger import Ledger
from babylon_rl.store.windows import Store
from babylon_rl.types import CheckResult, GroupMember, Json, RowOutcome, Trajectory, TrajectoryGroup, Turn
from babylon_rl.windows import HourWindow

WINDOW = HourWindow.parse("2025-01-15T10:00")
JUDGMENT_CHECKS = frozenset(check.name for check in CHECKS if check.is_about_judgment)
# "After Test Data Generation", as the game's guide for operators prints it.
GUIDE_SQL = """
SELECT
  window_id,
  COUNT(DISTINCT agent_id) as agents,
  AVG(final_pnl) as avg_pnl
FROM trajectories
WHERE window_id IS NOT NULL
GROUP BY window_id
ORDER BY window_id DESC
LIMIT 5;
"""
_serial = itertools.count(1_900_000_000_000_000_000)


def a_turn(response: str = '{"action":"HOLD"}', *, user: str = "Markets: …", system: str = "You trade.") -> Turn:
    return Turn(system=system, user=user, response=response, policy_version="babylon-mmo@0", temperature=1.0)


def a_trajectory(agent: str = "agent-1", window: HourWindow = WINDOW, **changes: Any) -> Trajectory:
    known: dict[str, Any] = {
        "trajectory_id": f"{window}/{agent}",
        "agent_id": agent,
        "window_id": str(window),
        "row_ids": (f"row-{agent}",),
        "turns": (a_turn(user=f"Markets seen by {agent}"),),
        "decisions": ({"actionType": "HOLD", "parameters": {}, "success": True, "step": 0, "at": None},),
        "start_balance_usd": 10_000.0,
        "pnl_usd": 0.0,
        "game_knowledge": {},
    }
    return Trajectory(**(known | changes))


def a_member(agent: str, window: HourWindow = WINDOW, turns: Sequence[Turn] | None = None) -> GroupMember:
    own = tuple(turns) if turns is not None else (a_turn(user=f"Markets seen by {agent}"),)
    return GroupMember(trajectory_id=f"{window}/{agent}", agent_id=agent, turns=own)


def a_group(*agents: str, window: HourWindow = WINDOW) -> TrajectoryGroup:
    """A group of the named agents (five when none is named)."""
    names = sorted(agents or [f"agent-{i}" for i in range(1, 6)])
    return TrajectoryGroup(
        group_id=f"{window}#test", window_id=str(window), members=tuple(a_member(n, window) for n in names)
    )


def make_group(window: HourWindow, trajectories: Iterable[Trajectory], *, min_agents: int) -> TrajectoryGroup | None:
    """The one group of an hour whose rows name no scenario, or None where too few agents can train."""
    groups = make_groups(window, trajectories, min_agents=min_agents)
    assert len(groups) <= 1
    return groups[0] if groups else None


def a_call(response: str = '{"action":"HOLD"}', purpose: str = "action", **changes: Any) -> LlmCall:
    known = {"system_prompt": "You trade.", "user_prompt": "Markets: …", "model_version": "babylon-mmo@0"}
    return LlmCall(purpose=purpose, response=response, **(known | changes))


def a_step(number: int = 0, *, calls: Iterable[LlmCall] | None = None, **changes: Any) -> Step:
    known: dict[str, Any] = {
        "at_ms": int((WINDOW.start_at + timedelta(minutes=20 * number)).timestamp() * 1000),
        "environment": EnvironmentState(balance_usd=10_000.0, lifetime_pnl_usd=0.0),
        "action": {"actionType": "HOLD", "parameters": {}, "success": True},
    }
    own = (a_call(),) if calls is None else tuple(calls)
    return Step(llm_calls=own, **(known | changes))


def a_source_row(agent: str = "agent-1", *steps: Step, tick: int = 0, **changes: Any) -> SourceRow:
    source_id = str(next(_serial))
    start = WINDOW.start_at + timedelta(minutes=20 * tick)
    known: dict[str, Any] = {
        "source_id": source_id,
        "trajectory_id": f"t-{source_id}",
        "window_id": str(WINDOW),
        "start_at": start,
        "end_at": start + timedelta(minutes=1),
        "final_pnl": 0.0,
        "final_balance": 10_000.0,
        "metadata": {},
    }
    return SourceRow(agent_id=agent, steps=steps or (a_step(tick),), **(known | changes))


# ── as the game's tables hold them ─────────────────────────────────────────────────────────────────


def a_json_call(response: str = '{"action":"HOLD"}', purpose: str = "action", **changes: Any) -> Json:
    """One entry of `llmCalls`."""
    call: Json = {
        "model": "babylon-mmo",
        "modelVersion": "babylon-mmo@0",
        "systemPrompt": "You trade.",
        "userPrompt": "Markets: …",
        "response": response,
        "temperature": 1.0,
        "maxTokens": 64,
        "purpose": purpose,
    }
    return call | changes


def a_json_step(number: int = 0, *, at: datetime | None = None, **changes: Any) -> Json:
    """One entry of `stepsJson`."""
    at = at or WINDOW.start_at + timedelta(minutes=20 * number)
    step: Json = {
        "stepNumber": number,
        "timestamp": int(at.timestamp() * 1000),
        "environmentState": {"agentBalance": 10_000, "agentPnL": 0, "openPositions": 0},
        "providerAccesses": [],
        "llmCalls": [a_json_call()],
        "action": {"actionType": "HOLD", "parameters": {}, "success": True},
        "reward": 0,
    }
    return step | changes


def a_row(agent: str = "agent-1", *, tick: int = 0, window: HourWindow = WINDOW, **changes: Any) -> Json:
    """A row of `trajectories`: one tick of one agent. `steps_json` may be given as a list."""
    source_id = str(next(_serial))
    start = window.start_at + timedelta(minutes=20 * tick)
    row: Json = {
        "id": source_id,
        "trajectory_id": f"t-{source_id}",
        "agent_id": agent,
        "start_time": start.replace(tzinfo=None),
        "end_time": start.replace(tzinfo=None) + timedelta(minutes=1),
        "window_id": str(window),
        "scenario_id": str(window),
        "steps_json": [a_json_step(at=start)],
        "reward_components_json": "{}",
        "metrics_json": "{}",
        "metadata_json": "{}",
        "total_reward": 0.0,
        "episode_length": 1,
        "final_status": "completed",
        "final_balance": 10_000.0,
        "final_pnl": 0.0,
        "is_training_data": True,
        "is_evaluation": False,
    }
    row |= changes
    for column in ("steps_json", "metadata_json"):
        if not isinstance(row[column], str):
            row[column] = json.dumps(row[column])
    return row


def insert_row(engine: sa.Engine, agent: str = "agent-1", **changes: Any) -> Json:
    """Write `a_row(agent, **changes)` and return it."""
    row = a_row(agent, **changes)
    insert_rows(engine, [row])
    return row


def insert_rows(engine: sa.Engine, rows: Sequence[Json]) -> None:
    with engine.begin() as conn:
        conn.execute(sa.insert(game_tables.trajectories), list(rows))


def read_rows(conn: sa.Connection, window: HourWindow = WINDOW) -> tuple[list[SourceRow], list[RowOutcome]]:
    """Every usable row of a window, by start time and id, and the outcomes of those set aside."""
    agents = list(stream_window(conn, window))
    rows = [r for a in agents for r in a.rows]
    return sorted(rows, key=lambda r: (r.start_at, r.source_id)), [o for a in agents for o in a.set_aside]


def read_check_results(engine: sa.Engine, window: HourWindow) -> dict[str, CheckResult]:
    """The stored results of a window's checks, by check name."""
    c = t.check_results.c
    query = sa.select(c.check_name, c.passed, c.facts).where(c.window_id == str(window)).order_by(c.check_name)
    with engine.connect() as conn:
        return {r.check_name: CheckResult(passed=r.passed, facts=from_json(r.facts, dict)) for r in conn.execute(query)}


def insert_call_log(engine: sa.Engine, trajectory_id: str, **changes: Any) -> Json:
    """Write a row of `llm_call_logs`."""
    own = str(next(_serial))
    row: Json = {
        "id": own,
        "trajectory_id": trajectory_id,
        "step_id": "step-0",
        "call_id": f"c-{own}",
        "timestamp": WINDOW.start_at.replace(tzinfo=None),
        "model": "babylon-mmo",
        "purpose": "action",
        "system_prompt": "You trade.",
        "user_prompt": "Markets: …",
        "response": '{"action":"HOLD"}',
        "metadata": '{"modelVersion":"babylon-mmo@2"}',
    }
    row |= changes
    with engine.begin() as conn:
        conn.execute(sa.insert(game_tables.llm_call_logs), [row])
    return row


def a_workspace(engine: sa.Engine) -> Workspace:
    """A workspace on one database, with the settings' defaults."""
    settings = Settings.load()
    return Workspace(settings=settings, game=engine, store=Store(engine), ledger=Ledger(engine, settings.lineage))


def store_check_result(engine: sa.Engine, window: HourWindow, name: str, *, passed: bool) -> None:
    """Keep the result of a check about what is current now; a check of a judgment that is not there keeps none."""
    about = read_check_subjects(engine, [window])[window]
    subject = about.judgment if name in JUDGMENT_CHECKS else about.group
    write_check_results(engine, name, {window: CheckResult(passed=passed, facts={})}, about={window: subject})
