import asyncio
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judging_factories import OUTCOMES, PNLS, a_pair, an_action, reversed_pair, with_decisions

from babylon_rl.common.canonical import to_json
from babylon_rl.errors import DataError
from babylon_rl.judging import hindsight_judge as formula
from babylon_rl.judging.hindsight_judge import HindsightJudge, attained_shares
from babylon_rl.simulator import portfolio
from babylon_rl.types import PredictionOutcome, StockOutcome, WindowOutcomes


def advantages(values: list[float]) -> list[float]:
    mean, std = statistics.fmean(values), statistics.pstdev(values)
    return [(v - mean) / std for v in values]


def values_of(pnls: tuple[float | None, ...], **more: object) -> list[float]:
    return [s.value for s in attained_shares(*a_pair(pnls, **more))]  # type: ignore[arg-type]


def test_a_score_is_the_share_of_the_hours_possible_gain() -> None:
    # TRUMP moved 7 %: best bet 1.5 x 7 % = 10.5 %; three YES stakes at even odds 15 % beat it. B = 10,000.
    best, worst = 1500.0, -1500.0 - 0.002 * 3 * 10_000
    expected = [(p - worst) / (best - worst) for p in PNLS]
    assert values_of(PNLS) == pytest.approx(expected, abs=1e-12)

    only_stocks = replace(OUTCOMES, predictions=())
    best, worst = 1050.0, -1050.0 - 60.0
    expected = [(p - worst) / (best - worst) for p in PNLS]
    assert values_of(PNLS, outcomes=only_stocks) == pytest.approx(expected, abs=1e-12)


def test_the_formulas_limits_are_those_of_the_embedded_game() -> None:
    assert (formula.FEE, formula.MAX_EXPOSURE, formula.PREDICTION_STAKE) == (
        portfolio.FEE,
        portfolio.MAX_EXPOSURE,
        portfolio.PREDICTION_SHARE,
    )


money = st.floats(-30_000, 30_000, allow_nan=False).map(lambda x: round(x, 2))


@settings(max_examples=150, deadline=None)
@given(st.lists(money, min_size=5, max_size=9).filter(lambda p: max(p) - min(p) > 1.0))
def test_advantages_of_scores_are_those_of_pnl(pnls: list[float]) -> None:
    values = values_of(tuple(pnls))
    assert all(0 <= v <= 1 for v in values)
    assert advantages(values) == pytest.approx(advantages(pnls), abs=1e-6)


def test_the_order_of_members_and_markets_changes_no_byte() -> None:
    judge, pair = HindsightJudge(), a_pair()
    one, other = asyncio.run(judge.judge(*pair)), asyncio.run(judge.judge(*reversed_pair(pair)))
    assert to_json(one) == to_json(other)
    assert one.scores[0].trajectory_id < one.scores[-1].trajectory_id


def test_an_invalid_decision_takes_its_part_of_the_share_away() -> None:
    plain = attained_shares(*a_pair())
    bad = an_action(success=False, error="the answer is not JSON")
    scored = attained_shares(*with_decisions(a_pair(), 3, an_action(), bad, an_action()))
    assert scored[3].value == pytest.approx(plain[3].value * 2 / 3)
    assert "1 of 3 decisions was invalid" in scored[3].explanation
    assert [s.value for i, s in enumerate(scored) if i != 3] == [s.value for i, s in enumerate(plain) if i != 3]
    all_bad = attained_shares(*with_decisions(a_pair(), 3, bad, bad, bad))
    assert all_bad[3].value == 0.0 < min(s.value for i, s in enumerate(all_bad) if i != 3)


@pytest.mark.parametrize(
    "logged", [{"success": False}, {"success": False, "error": None}, {"success": False, "error": ""}]
)
def test_a_hold_logged_as_unsuccessful_is_a_valid_decision(logged: dict[str, object]) -> None:
    hold = an_action(actionType="HOLD", **logged)
    assert attained_shares(*with_decisions(a_pair(), 0, hold, hold, hold)) == attained_shares(*a_pair())


def test_every_explanation_is_one_sentence_with_numbers() -> None:
    judgment = asyncio.run(HindsightJudge().judge(*a_pair()))
    assert (judgment.judge_model, judgment.judge_version) == ("hindsight", "hindsight-1")
    assert (judgment.prompt_tokens, judgment.cost_usd) == (0, 0.0)
    assert judgment.scores[3].explanation == (
        "No LLM judged: it earned +$610.25 where the hour held -$1,560.00 to +$1,500.00, a share of 0.709."
    )
    assert all(s.explanation.startswith("No LLM judged") for s in judgment.scores)


def test_zero_pnl_is_a_number_and_not_unknown() -> None:
    assert len(set(values_of((0.0, 0.0, 0.0, 0.0, 1.0)))) == 2


@pytest.mark.parametrize(
    "outcomes",
    [
        WindowOutcomes(window_id="w"),
        WindowOutcomes(
            window_id="w",
            stocks=(StockOutcome(ticker="A", start_price=0.0, end_price=1.0, change_pct=None),),
            predictions=(PredictionOutcome(market_id="q", question="?", outcome=None, final_probability=0.4),),
        ),
    ],
)
def test_a_group_without_truth_is_refused(outcomes: WindowOutcomes) -> None:
    with pytest.raises(DataError, match="sync-outcomes"):
        attained_shares(*a_pair(outcomes=outcomes))


def test_one_known_balance_is_enough_and_none_is_not() -> None:
    assert values_of(PNLS, balances=(None, 10_000.0, None, 5_000.0, None)) == values_of(PNLS)
    with pytest.raises(DataError, match="0 of 5 start balances"):
        values_of(PNLS, balances=(None,) * 5)


def test_an_hour_in_which_nothing_moved_still_judges() -> None:
    flat = WindowOutcomes(
        window_id="w", stocks=(StockOutcome(ticker="A", start_price=1.0, end_price=1.0, change_pct=0.0),)
    )
    assert values_of((0.0, 0.0, 0.0), outcomes=flat) == [1.0, 1.0, 1.0]
    assert values_of((0.0, -20.0, 5.0), outcomes=flat) == pytest.approx([60 / 65, 40 / 65, 1.0])
