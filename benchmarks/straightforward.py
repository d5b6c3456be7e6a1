"""The straightforward reader that ours is compared with: asyncpg, `json.loads`, pydantic.

It returns what ours returns: the decisions of each agent of a window in time order, its P&L inside the window, and the
group's id, a hash of what trains.
"""

import hashlib
import json
from typing import Any

import asyncpg
from pydantic import BaseModel, ConfigDict, Field

from babylon_rl.windows import HourWindow


class Call(BaseModel):
    model_config = ConfigDict(populate_by_name=True, extra="ignore")
    system_prompt: str = Field(alias="systemPrompt")
    user_prompt: str = Field(alias="userPrompt")
    response: str
    purpose: str
    model: str | None = None
    model_version: str | None = Field(default=None, alias="modelVersion")
    temperature: float | None = None
    max_tokens: int | None = Field(default=None, alias="maxTokens")


class Environment(BaseModel):
    model_config = ConfigDict(extra="allow")
    agentBalance: float | None = None  # noqa: N815
    agentPnL: float | None = None  # noqa: N815


class Provider(BaseModel):
    providerName: str  # noqa: N815
    data: dict[str, Any]
    purpose: str


class StepModel(BaseModel):
    stepNumber: int  # noqa: N815
    timestamp: int
    environmentState: Environment  # noqa: N815
    providerAccesses: list[Provider] = []  # noqa: N815
    llmCalls: list[Call] = []  # noqa: N815
    action: dict[str, Any]
    reward: float | None = None


class TrajectoryModel(BaseModel):
    trajectory_id: str
    agent_id: str
    window_id: str
    final_pnl: float | None
    steps: list[StepModel]


async def read_group(conn: asyncpg.Connection, window: HourWindow) -> tuple[str, dict[str, dict[str, Any]]]:
    """The group's id, and its members by agent."""
    rows = await conn.fetch(
        "SELECT * FROM trajectories WHERE window_id = $1 AND is_training_data AND NOT is_evaluation "
        "ORDER BY agent_id, start_time",
        str(window),
    )
    agents: dict[str, dict[str, Any]] = {}
    for row in rows:
        t = TrajectoryModel.model_validate({**row, "steps": json.loads(row["steps_json"])})
        agent = agents.setdefault(t.agent_id, {"turns": [], "decisions": [], "entered_with": None, "pnl": None})
        for s in t.steps:
            if agent["entered_with"] is None:
                agent["entered_with"] = s.environmentState.agentPnL
            for c in s.llmCalls:
                if c.purpose == "action":
                    agent["turns"].append(
                        {
                            "system": c.system_prompt,
                            "user": c.user_prompt,
                            "response": c.response,
                            "policy_version": c.model_version,
                            "temperature": c.temperature,
                        }
                    )
                    agent["decisions"].append(s.action)
        if t.final_pnl is not None and agent["entered_with"] is not None:
            agent["pnl"] = t.final_pnl - agent["entered_with"]
    trains = [[a, agents[a]["turns"]] for a in sorted(agents)]
    return hashlib.sha256(json.dumps(trains, sort_keys=True).encode()).hexdigest(), agents
