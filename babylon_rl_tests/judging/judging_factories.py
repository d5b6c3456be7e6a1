"""Groups and hindsight for tests of judges, and judges whose retry policy records its waits instead of sleeping."""

from dataclasses import replace
from typing import Any

from babylon_rl.judging.audit.synthetic_groups import SyntheticGroup, make_synthetic_group
from babylon_rl.judging.ruler.endpoint import OpenAIEndpoint
from babylon_rl.judging.ruler.judge import RulerJudge, trading_rubric
from babylon_rl.judging.ruler.retry import RetryPolicy
from babylon_rl.types import (
    GroupMember,
    Hindsight,
    MemberHindsight,
    PredictionOutcome,
    StockOutcome,
    TrajectoryGroup,
    Turn,
    WindowOutcomes,
)

WINDOW = "2025-01-15T10:00"
KEY = "sk-test-THISMUSTNOTSHOW"
PNLS = (120.0, -80.5, 0.0, 610.25, -300.0)

OUTCOMES = WindowOutcomes(
    window_id=WINDOW,
    stocks=(
        StockOutcome(ticker="MUSK", start_price=50.0, end_price=52.0, change_pct=4.0),
        StockOutcome(ticker="$TRUMP", start_price=100.0, end_price=93.0, change_pct=-7.0, news=("A leak",)),
        StockOutcome(ticker="ZUCK", start_price=0.0, end_price=1.0, change_pct=None),
    ),
    predictions=(PredictionOutcome(market_id="q1", question="Will MUSK tweet?", outcome="YES", final_probability=0.9),),
)

Pair = tuple[TrajectoryGroup, Hindsight]


def an_action(**change: Any) -> dict[str, Any]:
    return {"actionType": "BUY", "parameters": {"ticker": "MUSK", "size": 0.3}, "success": True, **change}


def a_pair(
    pnls: tuple[float | None, ...] = PNLS,
    *,
    window: str = WINDOW,
    balances: tuple[float | None, ...] | None = None,
    outcomes: WindowOutcomes = OUTCOMES,
    responses: dict[int, str] | None = None,
) -> Pair:
    """A group of `len(pnls)` agents with three turns each, and its hindsight."""
    given = responses or {}
    ids = [f"{window}/agent-{i}" for i in range(len(pnls))]
    members = tuple(
        GroupMember(
            trajectory_id=t,
            agent_id=t.split("/")[1],
            turns=tuple(
                Turn(system="You trade.", user=f"Step {n}/3 agent {i}", response=given.get(i, '{"action":"HOLD"}'))
                for n in (1, 2, 3)
            ),
        )
        for i, t in enumerate(ids)
    )
    hindsight = tuple(
        MemberHindsight(
            trajectory_id=t,
            start_balance_usd=10_000.0 if balances is None else balances[i],
            pnl_usd=pnls[i],
            decisions=tuple(an_action() for _ in range(3)),
            game_knowledge={},
        )
        for i, t in enumerate(ids)
    )
    group = TrajectoryGroup(group_id=f"{window}/g", window_id=window, members=members)
    return group, Hindsight(
        group_id=group.group_id, window_id=window, outcomes=replace(outcomes, window_id=window), members=hindsight
    )


def reversed_pair(pair: Pair) -> Pair:
    """The same group, its members and markets the other way round."""
    group, h = pair
    turned = replace(h.outcomes, stocks=h.outcomes.stocks[::-1], predictions=h.outcomes.predictions[::-1])
    return replace(group, members=group.members[::-1]), replace(h, members=h.members[::-1], outcomes=turned)


def logged_size_group(seed: int) -> SyntheticGroup:
    """Eight agents × fifteen decisions with prompts as long as the game's logged ones (some 100,000 tokens plain)."""
    return make_synthetic_group(seed, agents=8, steps=15, tickers=24, news=6, note=True)


def with_decisions(pair: Pair, member: int, *decisions: dict[str, Any]) -> Pair:
    group, h = pair
    members = tuple(replace(m, decisions=decisions) if i == member else m for i, m in enumerate(h.members))
    return group, replace(h, members=members)


class Waits(list[float]):
    """A sleep that only records its durations."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


def a_ruler(url: str, *, waits: Waits | None = None, timeout_s: float = 20.0, **more: Any) -> RulerJudge:
    """The judge as `open_judge` builds it, impatient enough for a test."""
    endpoint = OpenAIEndpoint("gpt-4o-mini", api_key=KEY, base_url=url, timeout_s=timeout_s)
    retry_policy = RetryPolicy(tries=3, sleep=waits if waits is not None else Waits())
    more = {"model": "openai/gpt-4o-mini", "rubric": trading_rubric(), "retry_policy": retry_policy} | more
    return RulerJudge(endpoint, **more)
