"""Small judged batches, as the pipeline would hand them over: real markets, real prompts, scripted answers."""

import random
from dataclasses import replace

from babylon_rl.simulator.market import make_market
from babylon_rl.simulator.observation import SYSTEM_PROMPT, observe
from babylon_rl.simulator.portfolio import Portfolio, parse_order
from babylon_rl.simulator.strategies import habits
from babylon_rl.training.trainer import ScoredGroup, TrainingBatch
from babylon_rl.types import GroupMember, TrajectoryGroup, Turn
from babylon_rl.windows import HourWindow

FIRST = HourWindow.parse("2025-01-15T10:00")
LINEAGE = "test-line"


def a_group(
    hours: int = 0,
    *,
    agents: int = 5,
    decisions: int = 2,
    version: str | None = None,
    temperature: float | None = 1.0,
    scores: dict[int, float] | None = None,
) -> ScoredGroup:
    """One window played by scripted agents; scores rise with the agent's number unless they are given."""
    window = FIRST.next(hours)
    market = make_market(window, 7, decisions=decisions)
    members = []
    for agent in range(agents):
        r, portfolio, turns = random.Random(f"{hours}/{agent}"), Portfolio(), []
        for tick in range(decisions):
            seen = observe(market, portfolio, tick)
            said = habits(seen, r)
            order, _ = parse_order(said, market.tickers)
            if order:
                portfolio.execute(market, tick, order)
            turns.append(
                Turn(
                    system=SYSTEM_PROMPT,
                    user=seen.text,
                    response=said,
                    policy_version=version,
                    temperature=temperature,
                )
            )
        members.append(
            GroupMember(trajectory_id=f"{window}/agent-{agent}", agent_id=f"agent-{agent}", turns=tuple(turns))
        )
    group = TrajectoryGroup(group_id=str(window), window_id=str(window), members=tuple(members))
    told = scores or {i: i / (agents - 1) for i in range(agents)}
    return ScoredGroup(
        group=group,
        scores={m.trajectory_id: told[i] for i, m in enumerate(members)},
        judgment_key=f"judgment-{hours}",
    )


def a_batch(*groups: ScoredGroup, step: int = 1, lineage: str = LINEAGE, seed: int = 1) -> TrainingBatch:
    made = groups or (a_group(0), a_group(1))
    return TrainingBatch(
        lineage=lineage, step=step, window_id=max(g.group.window_id for g in made), groups=tuple(made), seed=seed
    )


def with_turns(scored: ScoredGroup, **changes: object) -> ScoredGroup:
    """The same group with every turn changed."""
    members = tuple(replace(m, turns=tuple(replace(t, **changes) for t in m.turns)) for m in scored.group.members)
    return replace(scored, group=replace(scored.group, members=members))
