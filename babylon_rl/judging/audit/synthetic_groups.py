"""Seeded synthetic groups with known P&L: judges are audited on them, and prompts are measured with them.

The world is small enough to compute everything: prices move by step, agents go long or short, and the record has the
result of each decision. So the P&L of any changed behaviour can be computed. The game's simulator is not used (it knows
its market's hidden state, and judging must not import it); sizes follow the game's logged prompts.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from babylon_rl.judging.judge import pair_with_hindsight
from babylon_rl.types import (
    GroupMember,
    Hindsight,
    Json,
    MemberHindsight,
    PredictionOutcome,
    StockOutcome,
    TrajectoryGroup,
    Turn,
    WindowOutcomes,
)
from babylon_rl.windows import HourWindow

BALANCE_USD: Final = 10_000.0
FEE: Final = 0.002
_NAMES: Final = [
    "MUSK",
    "TRUMP",
    "ZUCK",
    "BEZOS",
    "ALTMN",
    "COOK",
    "NADLA",
    "HUANG",
    "SUNDR",
    "DORSY",
    "THIEL",
    "WOZNK",
    "BUFFT",
    "DALIO",
    "SOROS",
    "ACKMN",
    "CATHI",
    "SAYLR",
    "VITLK",
    "SBFTX",
    "BRNKR",
    "POWEL",
    "YELEN",
    "LAGRD",
]
_EVENTS: Final = (
    "{} is said to have signed a supply contract that analysts had ruled out",
    "A filing shows that an insider of {} sold a third of his shares last week",
    "{} postpones its keynote; organisers cite scheduling, rivals cite the product",
    "Regulators ask {} for documents about last year's merger, two people say",
    "{} beats estimates by a hair and guides lower for the coming quarter",
)
Move = tuple[str, float]  # ticker and signed size: +0.4 is long with 40 % of the balance; 0 is HOLD


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticGroup:
    """A group, its hindsight, and the world they came from.

    Attributes:
        prices: One dict a step and one after the last: `steps + 1` of them.
        moves: What each trajectory did, one move a step.
    """

    group: TrajectoryGroup
    hindsight: Hindsight
    prices: tuple[dict[str, float], ...]
    moves: dict[str, tuple[Move, ...]]

    @property
    def truth(self) -> dict[str, float]:
        """P&L in US dollars by trajectory id: the order in which a fit judge ranks members."""
        return {h.trajectory_id: float(h.pnl_usd or 0.0) for h in self.hindsight.members}

    def pnl_of(self, moves: Sequence[Move]) -> float:
        """P&L in US dollars that a sequence of moves would have had, fees included."""
        return round(sum(_compute_pnl_usd(m, self.prices[i], self.prices[i + 1]) for i, m in enumerate(moves)), 2)

    def with_moves(self, trajectory_id: str, moves: Sequence[Move]) -> "SyntheticGroup":
        """The same hour, had one agent done something else: its answers, its record and its P&L change, nothing more."""
        answers = [write_answer(m, i, self.prices) for i, m in enumerate(moves)]
        changed = self.with_answers(trajectory_id, answers)
        members = tuple(
            replace(h, pnl_usd=self.pnl_of(moves), decisions=_record_decisions(moves, self.prices))
            if h.trajectory_id == trajectory_id
            else h
            for h in self.hindsight.members
        )
        return replace(
            changed,
            hindsight=replace(self.hindsight, members=members),
            moves={**self.moves, trajectory_id: tuple(moves)},
        )

    def with_answers(self, trajectory_id: str, answers: Sequence[str]) -> "SyntheticGroup":
        """The same hour and record, with other answers of one agent."""
        members = tuple(
            replace(
                m, turns=tuple(msgspec.structs.replace(t, response=a) for t, a in zip(m.turns, answers, strict=True))
            )
            if m.trajectory_id == trajectory_id
            else m
            for m in self.group.members
        )
        return replace(self, group=replace(self.group, members=members))

    def answers(self, trajectory_id: str) -> list[str]:
        return [t.response for m in self.group.members if m.trajectory_id == trajectory_id for t in m.turns]

    def inverted(self) -> "SyntheticGroup":
        """The same behaviour in a world where everything went the other way."""
        stocks = tuple(
            replace(
                s,
                start_price=s.end_price,
                end_price=s.start_price,
                change_pct=None if s.change_pct is None else -s.change_pct,
            )
            for s in self.hindsight.outcomes.stocks
        )
        members = tuple(
            replace(
                h,
                pnl_usd=None if h.pnl_usd is None else -h.pnl_usd,
                decisions=tuple(
                    {**d, "result": {"pnl": -d["result"]["pnl"]}} if isinstance(d.get("result"), dict) else d
                    for d in h.decisions
                ),
            )
            for h in self.hindsight.members
        )
        outcomes = replace(self.hindsight.outcomes, stocks=stocks)
        return replace(self, hindsight=replace(self.hindsight, outcomes=outcomes, members=members))

    def with_new_id(self, n: int) -> "SyntheticGroup":
        """The same hour under another group id: a judge's ids, order and cache key are drawn anew."""
        group_id = f"{self.group.group_id}~{n}"
        return replace(
            self,
            group=replace(self.group, group_id=group_id),
            hindsight=replace(self.hindsight, group_id=group_id),
        )


def make_synthetic_group(
    seed: int, *, agents: int = 6, steps: int = 4, tickers: int = 4, news: int = 1, note: bool = False
) -> SyntheticGroup:
    """Make one hour.

    Args:
        seed: Same seed, same bytes.
        agents: Members; their skill (how often they are right) is spread evenly, so that their P&L differs.
        steps: Decisions of each.
        tickers: Prices shown at each step, at most 24.
        news: Headlines shown at each step.
        note: Agents also give reasons, and each is shown messages of its own.
    """
    r = random.Random(seed)  # noqa: S311  # makes data, guards nothing
    window = HourWindow.parse("2025-01-01T00:00").next(seed % 50_000)
    names = r.sample(_NAMES, tickers)
    prices: list[dict[str, float]] = [{n: round(r.uniform(20, 400), 2) for n in names}]
    for _ in range(steps):
        prices.append({n: round(p * (1 + r.gauss(0, 0.02)), 2) for n, p in prices[-1].items()})
    headlines = [r.choice(_EVENTS).format(r.choice(names)) + f" ({i})" for i in range(steps + news)]
    questions = [f"Will {n} announce a new venture before {window.next(24 + i)}?" for i, n in enumerate(names[:6])]
    shown = [_describe_market(names, prices, headlines, questions, i, news, r) for i in range(steps)]
    moves: dict[str, tuple[Move, ...]] = {}
    members, hindsights = [], []
    for a, skill in enumerate(r.sample([i / (agents - 1) for i in range(agents)], agents)):
        trajectory_id = f"{window}/agent-{a}"
        own = tuple(_choose_move(names, prices, i, skill, r) for i in range(steps))
        moves[trajectory_id] = own
        turns, balance = [], BALANCE_USD
        for i, m in enumerate(own):
            private = [f"Step {i + 1}/{steps} balance {balance:.2f} pnl {balance - BALANCE_USD:+.2f}"]
            private.append(f"positions: {own[i - 1][0]} {own[i - 1][1]:+.2f}" if i else "positions: none")
            if note:
                private.append(f"Message for you: {r.choice(headlines).lower()}, did you see? ({r.randrange(10**6)})")
            turns.append(
                Turn(
                    system="You trade in Babylon. Answer with one JSON action.",
                    user=shown[i] + "\n".join(private),
                    response=write_answer(m, i, prices, note=note),
                )
            )
            balance += _compute_pnl_usd(m, prices[i], prices[i + 1])
        members.append(
            GroupMember(trajectory_id=trajectory_id, agent_id=trajectory_id.split("/")[1], turns=tuple(turns))
        )
        hindsights.append(
            MemberHindsight(
                trajectory_id=trajectory_id,
                start_balance_usd=BALANCE_USD,
                pnl_usd=round(balance - BALANCE_USD, 2),
                decisions=_record_decisions(own, prices),
                game_knowledge={},
            )
        )
    group_id = f"{window}#exam{seed}"  # part of every key: another name would pay for known replies again
    outcomes = WindowOutcomes(
        window_id=str(window),
        stocks=tuple(
            StockOutcome(
                ticker=n,
                start_price=prices[0][n],
                end_price=prices[-1][n],
                change_pct=round(100 * (prices[-1][n] / prices[0][n] - 1), 2),
            )
            for n in sorted(names)
        ),
        predictions=tuple(
            PredictionOutcome(market_id=f"q{i}", question=q, outcome=r.choice(("YES", "NO")))
            for i, q in enumerate(questions)
        ),
    )
    synthetic = SyntheticGroup(
        group=TrajectoryGroup(group_id=group_id, window_id=str(window), members=tuple(members)),
        hindsight=Hindsight(group_id=group_id, window_id=str(window), outcomes=outcomes, members=tuple(hindsights)),
        prices=tuple(prices),
        moves=moves,
    )
    pair_with_hindsight(synthetic.group, synthetic.hindsight)
    return synthetic


def write_answer(move: Move, step: int, prices: Sequence[dict[str, float]], *, note: bool = False) -> str:
    """An agent's answer for a move: one JSON action, with a reason if `note`."""
    ticker, size = move
    action: Json = {"action": "HOLD"} if size == 0 else {"action": "LONG" if size > 0 else "SHORT", "ticker": ticker}
    if size:
        action["size"] = abs(size)
    if note:
        action["reason"] = (
            f"{ticker} stands at {prices[step][ticker]:.2f} after the last headlines; I expect the move to go on "
            f"and size it at {abs(size):.2f} of the balance, which leaves room for two more entries."
        )
    return json.dumps(action)


def _compute_pnl_usd(move: Move, now: dict[str, float], then: dict[str, float]) -> float:
    ticker, size = move
    return BALANCE_USD * (size * (then[ticker] / now[ticker] - 1) - FEE * abs(size))


def _choose_move(
    names: Sequence[str], prices: Sequence[dict[str, float]], i: int, skill: float, r: random.Random
) -> Move:
    ticker = r.choice(names)
    up = prices[i + 1][ticker] > prices[i][ticker]
    right = r.random() < 0.1 + 0.85 * skill
    return ticker, round((1 if up == right else -1) * r.uniform(0.2, 0.9), 2)


def _record_decisions(moves: Sequence[Move], prices: Sequence[dict[str, float]]) -> tuple[Json, ...]:
    records: list[dict[str, Any]] = []
    for i, (ticker, size) in enumerate(moves):
        action: dict[str, Any] = {"actionType": "HOLD", "parameters": {}, "success": True}
        if size:
            action = {
                "actionType": "OPEN_PERP_POSITION",
                "parameters": {"ticker": ticker, "side": "long" if size > 0 else "short", "size": abs(size)},
                "success": True,
                "result": {"pnl": round(_compute_pnl_usd((ticker, size), prices[i], prices[i + 1]), 2)},
            }
        records.append(action | {"step": i})
    return tuple(records)


def _describe_market(
    names: Sequence[str],
    prices: Sequence[dict[str, float]],
    headlines: Sequence[str],
    questions: Sequence[str],
    step: int,
    news: int,
    r: random.Random,
) -> str:
    before = prices[max(0, step - 1)]
    lines = ["Markets:"]
    lines += [
        f"{n} {prices[step][n]:.2f} ({100 * (prices[step][n] / before[n] - 1):+.2f}%) 24h vol {r.randrange(10**5, 10**7)}"
        for n in names
    ]
    lines += ["Prediction markets:", *(f"Q: {q} YES {r.randrange(5, 95)}%" for q in questions)]
    lines += ["News:", *(f"- {h}" for h in headlines[step : step + news])]
    return "\n".join(lines) + "\n"
