"""The judge that needs no key: arithmetic on outcomes. **No LLM judges here**, and every score says so.

One number, nothing mixed: which share of what the hour held did this agent attain?

    best  = B · max(L · max|change|, P)      the best single bet of the hour, all decisions on it
    worst = −best − f · D · B                the same bet the wrong way round, and fees all the way
    share = (pnl − low) / (high − low)       low = min(worst, least pnl), high = max(best, most pnl)
    score = share · valid decisions / decisions

B is the largest start balance in the group and D the most decisions of a member, so that `low` and `high` are the same
for all members: inside a group the share is a straight line in P&L, and GRPO's normalised advantages are those of P&L.
L is the exposure the game allows in one ticker (1.5, or D when less), P what a size-1 stake in a resolved YES/NO
market wins or loses at even odds (0.05 a decision, at most everything), f the fee (0.2 % of what is traded).
What a member did earn or lose was attainable, whatever the formula says: `low` and `high` widen to it, nothing is clipped.
An invalid decision attains nothing: it takes its part of the share away. A HOLD is a valid decision however logged.

Limits. It reads P&L, so luck is judged as skill; it sees no timing, no risk and no reasons. `change` is the hour's
net move, so a round trip in a flat hour may beat `best` (and then widens it). The odds at which a YES/NO share was
bought are not in the outcomes. A member with a smaller balance than the largest can attain less. A member whose P&L
is unknown is left out, as if the group were its siblings alone. What it cannot judge it refuses: no outcomes (without
them nothing says how much of an hour's gain an invalid decision cost), fewer than two known P&Ls, no balance of any.
"""

import math
from typing import Final

from babylon_rl.errors import DataError
from babylon_rl.judging.judge import (
    FEWEST_RANKED,
    ConnectionlessJudge,
    NoOutcomesError,
    TooFewRankedError,
    has_known_pnl,
    judgment_key,
    pair_with_hindsight,
    require_outcomes,
    validate_scores,
)
from babylon_rl.types import Hindsight, Json, Judgment, MemberHindsight, Score, TrajectoryGroup, WindowOutcomes

FEE: Final = 0.002
MAX_EXPOSURE: Final = 1.5
PREDICTION_STAKE: Final = 0.05
UNKNOWN_PNL: Final = "its P&L inside the hour is unknown"
# Part of every key: a changed constant is another judgment beside the old one.
FORMULA: Final = (
    f"share of attainable P&L, L={MAX_EXPOSURE}, P={PREDICTION_STAKE}, f={FEE}, frame widened to members, x valid share"
)


class HindsightJudge(ConnectionlessJudge):
    """Deterministic, order-blind, free. Satisfies `Judge`."""

    def __init__(self) -> None:
        self.model = "hindsight"
        self.version = "hindsight-1"

    def key(self, group: TrajectoryGroup, hindsight: Hindsight) -> str:
        return judgment_key(group, hindsight, model=self.model, version=self.version, rubric=FORMULA)

    async def judge(self, group: TrajectoryGroup, hindsight: Hindsight) -> Judgment:
        scores = attained_shares(group, hindsight)
        left_out = [h.trajectory_id for h in hindsight.members if not has_known_pnl(h)]
        return Judgment(
            key=self.key(group, hindsight),
            group_id=group.group_id,
            window_id=group.window_id,
            judge_model=self.model,
            judge_version=self.version,
            scores=validate_scores(group, scores, left_out=left_out),
            details={"left_out": dict.fromkeys(sorted(left_out), UNKNOWN_PNL)} if left_out else {},
        )


def attained_shares(group: TrajectoryGroup, hindsight: Hindsight) -> list[Score]:
    """Score a group by the formula above.

    Returns:
        One score per member whose P&L is known, by trajectory id; permuting members changes no bit of it.

    Raises:
        TooFewRankedError: The P&L of fewer than two members is known.
        DataError: Outcomes or every balance is unknown.
    """
    everybody = [h for _, h in pair_with_hindsight(group, hindsight)]
    require_outcomes(group, hindsight)
    hindsights = [h for h in everybody if has_known_pnl(h)]
    if len(hindsights) < min(FEWEST_RANKED, len(everybody)):
        raise _too_few_ranked(group, [h.trajectory_id for h in everybody if not has_known_pnl(h)])
    pnls = [h.pnl_usd for h in hindsights if h.pnl_usd is not None]
    balance = _find_largest_balance(group, hindsights)
    decisions = max(1, *(len(h.decisions) for h in hindsights))
    best = balance * best_bet(group, hindsight.outcomes, decisions)
    low = min(-best - FEE * decisions * balance, *pnls)
    high = max(best, *pnls)
    return [_score(h, pnl, low, high) for h, pnl in zip(hindsights, pnls, strict=True)]


def best_bet(group: TrajectoryGroup, outcomes: WindowOutcomes, decisions: int) -> float:
    """What the best single bet of the hour earned, as a share of the balance, before fees.

    Raises:
        NoOutcomesError: No price change and no resolution is known.
    """
    moves = [abs(s.change_pct) / 100 for s in outcomes.stocks if s.change_pct is not None]
    bets = [min(MAX_EXPOSURE, decisions) * m for m in moves if math.isfinite(m)]
    if any(p.outcome is not None for p in outcomes.predictions):
        bets.append(min(1.0, PREDICTION_STAKE * decisions))
    if not bets:
        raise NoOutcomesError(
            f"group {group.group_id!r} has outcomes, but no price change and no resolution among them, so nothing says "
            "what was attainable; run `babylon-rl sync-outcomes` again once prices and questions are settled",
            facts={"group_id": group.group_id, "window": group.window_id},
        )
    return max(bets)


def is_invalid(action: Json) -> bool:
    """Whether a decision was refused by the game. One writer logs HOLD as `success: false`, without an error."""
    return action.get("success") is False and bool(action.get("error"))


def _too_few_ranked(group: TrajectoryGroup, unknown: list[str]) -> TooFewRankedError:
    agents = [m.agent_id for m in group.members if m.trajectory_id in unknown]
    named = ", ".join(agents[:10]) + (f" and {len(agents) - 10} more" if len(agents) > 10 else "")
    return TooFewRankedError(
        f"group {group.group_id!r}: the P&L of {named} inside the window is unknown, which leaves "
        f"{len(group.members) - len(unknown)} of {len(group.members)} members to rank; the hindsight judge scores P&L and needs "
        f"{FEWEST_RANKED}. It is judged when rows with `agentPnL` or `finalPnL` come, or by an LLM: set JUDGE_MODEL and "
        "materialize `ruler_scores`",
        facts={"group_id": group.group_id, "trajectory_ids": unknown[:20]},
    )


def _find_largest_balance(group: TrajectoryGroup, hindsights: list[MemberHindsight]) -> float:
    known = [h.start_balance_usd for h in hindsights if h.start_balance_usd is not None]
    balance = max((b for b in known if math.isfinite(b)), default=0.0)
    if balance <= 0:
        raise DataError(
            f"group {group.group_id!r}: {len(known)} of {len(hindsights)} start balances are known and none is above 0, so "
            "nothing says what was attainable; expected `agentBalance` in a step's environment of one member at least",
            facts={"group_id": group.group_id, "trajectory_ids": [h.trajectory_id for h in hindsights][:20]},
        )
    return balance


def _score(member: MemberHindsight, pnl: float, low: float, high: float) -> Score:
    # low <= pnl <= high by construction; the clamp is for the last bit of a float.
    share = min(1.0, max(0.0, (pnl - low) / (high - low)))
    total, invalid = len(member.decisions), sum(map(is_invalid, member.decisions))
    value = share * (total - invalid) / total if total else share
    explanation = (
        f"No LLM judged: it earned {_usd(pnl)} where the hour held {_usd(low)} to {_usd(high)}, a share of {share:.3f}"
    )
    if invalid:
        was = "was" if invalid == 1 else "were"
        explanation += f", and {invalid} of {total} decisions {was} invalid, which leaves {value:.3f}"
    return Score(trajectory_id=member.trajectory_id, value=value, explanation=explanation + ".")


def _usd(amount: float) -> str:
    return f"{'-' if amount < 0 else '+'}${abs(amount):,.2f}"
