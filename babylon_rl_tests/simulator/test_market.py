import asyncio
import math
import random
import statistics
from dataclasses import replace

import pytest

from babylon_rl.simulator.market import Market, make_market
from babylon_rl.simulator.observation import observe
from babylon_rl.simulator.play import AgentSlot, oracle_pnl_usd, play
from babylon_rl.simulator.players import ScriptedPlayer
from babylon_rl.simulator.portfolio import FEE, MAX_EXPOSURE, START_BALANCE_USD, Order, Portfolio, parse_order
from babylon_rl.simulator.strategies import GUIDE_KINDS, STRATEGIES, reading
from babylon_rl.windows import HourWindow

FIRST = HourWindow.parse("2025-01-15T00:00")


def markets(n: int, seed: int = 3) -> list[Market]:
    return [make_market(FIRST.next(i), seed) for i in range(n)]


def pnl_of(name: str, n: int) -> list[float]:
    played = asyncio.run(play(markets(n), [AgentSlot("a", ScriptedPlayer(name))], seed=5))
    return [p.pnl_usd for p in played]


def test_the_same_seed_and_window_make_the_same_market() -> None:
    assert make_market(FIRST, 3) == make_market(FIRST, 3)
    assert make_market(FIRST, 3) != make_market(FIRST, 4)
    assert make_market(FIRST, 3) != make_market(FIRST.next(), 3)


def test_the_oracle_earns_clearly() -> None:
    pnl = [oracle_pnl_usd(m) for m in markets(300)]
    assert statistics.mean(pnl) > 400
    assert sum(p > 0 for p in pnl) > 0.9 * len(pnl)


def test_random_trading_loses_its_fees() -> None:
    """The mean loss is the fees paid, within three standard errors: no drift favours a coin."""
    fees, pnl = [], []
    for p in asyncio.run(play(markets(1500), [AgentSlot("a", ScriptedPlayer("noise"))], seed=5)):
        pnl.append(p.pnl_usd)
        fees.append(sum(m.result.get("feeUsd", 0.0) for m in p.moves))
    error = statistics.stdev(pnl) / math.sqrt(len(pnl))
    assert statistics.mean(fees) > 10
    assert abs(statistics.mean(pnl) + statistics.mean(fees)) < 3 * error


def test_reading_the_prompt_pays_and_fading_it_costs() -> None:
    assert statistics.mean(pnl_of("reader", 300)) > 200
    assert statistics.mean(pnl_of("contrarian", 300)) < -100


def test_an_observation_shows_nothing_hidden() -> None:
    """Two worlds that differ only in what is hidden look the same to an agent."""
    m = make_market(FIRST, 3)
    flipped = replace(
        m,
        resolves_yes=not m.resolves_yes,
        ticks=tuple(replace(t, regimes=dict.fromkeys(t.regimes, 0)) for t in m.ticks),
        closing=dict.fromkeys(m.closing, 1.0),
        closing_yes_price=0.5,
    )
    for tick in range(m.decisions):
        assert observe(m, Portfolio(), tick) == observe(flipped, Portfolio(), tick)


def test_money_is_conserved_but_for_fees() -> None:
    m = make_market(FIRST, 3)
    p = Portfolio()
    result = p.execute(m, 0, Order("BUY", "MUSK", 0.5))
    assert p.value_usd(m, 0) == pytest.approx(START_BALANCE_USD - 0.5 * START_BALANCE_USD * FEE)
    assert result["feeUsd"] == pytest.approx(10.0)


def test_exposure_stops_at_its_limit() -> None:
    m = make_market(FIRST, 3)
    p = Portfolio()
    for _ in range(4):
        p.execute(m, 0, Order("SELL", "ZUCK", 1.0))
    assert p.exposure(m, 0, "ZUCK") == pytest.approx(-MAX_EXPOSURE)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("not json", "not JSON"),
        ("[]", "expected an object"),
        ('{"action":"YOLO"}', "'YOLO' is unknown"),
        ('{"action":"BUY","ticker":"MUSK"}', "size None"),
        ('{"action":"BUY","ticker":"MUSK","size":true}', "size True"),
        ('{"action":"BUY","ticker":"MUSK","size":1.5}', "size 1.5"),
        ('{"action":"BUY","ticker":"DOGE","size":0.5}', "'DOGE' is not listed"),
        ('{"action":"BUY","ticker":["MUSK"],"size":0.5}', "is not listed"),
    ],
)
def test_an_illegal_answer_gets_one_clear_sentence(answer: str, fault: str) -> None:
    order, error = parse_order(answer, ("MUSK", "ZUCK"))
    assert order is None
    assert error is not None
    assert fault in error


def test_every_strategy_answers_legally_and_reads_honestly() -> None:
    m, r = make_market(FIRST, 3), random.Random(1)
    for name, act in STRATEGIES.items():
        for tick in range(m.decisions):
            seen = observe(m, Portfolio(), tick)
            order, error = parse_order(act(seen, r), m.tickers)
            assert order is not None, (name, error)
            if name in GUIDE_KINDS:
                assert reading(seen) in act(seen, r)


def test_more_decisions_change_the_grain_and_not_the_game() -> None:
    """Hourly drift and noise stay: the closing move's spread is the same for 3 and for 12 decisions."""

    def spread(decisions: int) -> float:
        ms = [make_market(FIRST.next(i), 3, decisions=decisions) for i in range(400)]
        return statistics.stdev(math.log(m.closing["MUSK"] / m.ticks[0].prices["MUSK"]) for m in ms)

    assert spread(12) == pytest.approx(spread(3), rel=0.15)
