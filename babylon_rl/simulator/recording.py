"""Write played windows as the game would: one row per tick through the recorder, and the market's facts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from babylon_rl.errors import DataError
from babylon_rl.ingest.facts import write_facts
from babylon_rl.ingest.recorder import TrajectoryRecorder
from babylon_rl.simulator.market import Market, stable_seed
from babylon_rl.simulator.observation import SYSTEM_PROMPT
from babylon_rl.simulator.play import Move, Playthrough
from babylon_rl.simulator.portfolio import START_BALANCE_USD
from babylon_rl.windows import HOUR, HourWindow

_MS = timedelta(milliseconds=1)


@dataclass(slots=True)
class SimulatedTime:
    """The recorder's clock and id source: both follow the play, never the wall clock.

    An id is a hash of what it names, so the same play always has the same ids.
    """

    now: datetime
    about: tuple[object, ...] = ()
    _count: int = field(default=0)

    def set(self, now: datetime, *about: object) -> None:
        self.now, self.about, self._count = now, about, 0

    def clock(self) -> datetime:
        return self.now

    def new_id(self) -> str:
        """A decimal string above 2^53, as the game's snowflakes are."""
        self._count += 1
        return str((1 << 61) | (stable_seed("id", *self.about, self._count) & ((1 << 61) - 1)))


def recorded_windows(engine: sa.Engine, windows: Iterable[HourWindow]) -> set[str]:
    """Which of `windows` hold any row of `trajectories` already."""
    wanted = [str(w) for w in windows]
    query = sa.text("SELECT DISTINCT window_id FROM trajectories WHERE window_id = ANY(:w)")
    with engine.connect() as conn:
        return set(conn.scalars(query, {"w": wanted}))


def record_play(engine: sa.Engine, played: Sequence[Playthrough], *, seed: int) -> int:
    """Write a play in one transaction: rows, LLM calls and facts.

    Args:
        engine: The game's database, ours to write.
        played: Whole windows; each window must be complete in this one call.
        seed: Part of every id.

    Returns:
        The number of rows of `trajectories`.

    Raises:
        DataError: One of the windows holds rows already: an hour is played once.
    """
    markets = {p.market.window: p.market for p in played}
    if taken := sorted(recorded_windows(engine, markets)):
        raise DataError(
            f"window {taken[0]!r} holds recorded play already ({len(taken)} of {len(markets)} windows do); "
            "choose hours that nobody has played, or let the command choose"
        )
    write_market_facts(engine, markets.values())
    time = SimulatedTime(now=min(markets).start_at)
    recorder = TrajectoryRecorder(engine, clock=time.clock, new_id=time.new_id)
    rows = 0
    with recorder.batch():
        for p in played:
            balance = START_BALANCE_USD
            for move in p.moves:
                _record_move(recorder, time, p, move, balance_usd=balance, seed=seed)
                balance = move.balance_after_usd
                rows += 1
    return rows


def _record_move(
    recorder: TrajectoryRecorder, time: SimulatedTime, p: Playthrough, move: Move, *, balance_usd: float, seed: int
) -> None:
    market, agent, seen = p.market, p.slot.agent_id, move.observation
    time.set(market.at(move.tick), seed, market.window, agent, p.slot.player.name, move.tick)
    row = recorder.start_trajectory(agent_id=agent, metadata={"player": p.slot.player.name, "simulator": True})
    recorder.start_step(
        row,
        {
            "agentBalance": round(balance_usd, 2),
            "agentPnL": round(balance_usd - START_BALANCE_USD, 2),
            "openPositions": seen.open_positions,
            "activeMarkets": len(market.tickers) + 1,
            "timestamp": int(time.now.timestamp() * 1000),
        },
    )
    recorder.log_provider_access(
        row,
        provider="MARKETS",
        data={t: round(seen.prices[t], 4) for t in market.tickers},
        purpose="prices before the decision",
    )
    order = move.order
    action_type = "INVALID" if order is None else order.action
    recorder.log_llm_call(
        row,
        model=move.answer.model,
        model_version=move.answer.model_version,
        system_prompt=SYSTEM_PROMPT,
        user_prompt=seen.text,
        response=move.answer.text,
        temperature=move.answer.temperature,
        max_tokens=move.answer.max_tokens,
        finish_reason=move.answer.finish_reason,
        latency_ms=move.answer.latency_ms,
        action_type=action_type,
        prompt_tokens=move.answer.prompt_tokens,
        completion_tokens=move.answer.completion_tokens,
    )
    parameters: dict[str, object] = {}
    if order is not None and order.action != "HOLD":
        parameters = {"size": order.size} | ({"ticker": order.ticker} if order.ticker else {"market": market.market_id})
    recorder.complete_step(
        row,
        action_type=action_type,
        parameters=parameters,
        success=order is not None,
        result=move.result or None,
        error=move.error,
    )
    time.now = market.window.start_at + HOUR * (move.tick + 1) / market.decisions - _MS
    recorder.end_trajectory(
        row,
        final_balance=round(move.balance_after_usd, 2),
        final_pnl=round(move.balance_after_usd - START_BALANCE_USD, 2),
        is_training_data=p.slot.learner,
    )


def write_market_facts(engine: sa.Engine, markets: Iterable[Market]) -> None:
    """Write prices, resolutions and news, from which `sync-outcomes` computes outcomes once the hour is closed."""
    prices: list[tuple[str, datetime, float]] = []
    predictions: list[tuple[str, str, str, str | None, float | None]] = []
    news: list[tuple[datetime, str, str | None]] = []
    for m in markets:
        for i, tick in enumerate(m.ticks):
            prices += [(t, m.at(i), tick.prices[t]) for t in m.tickers]
            news.append((m.at(i), tick.headline.text, tick.headline.ticker))
            if tick.hint is not None:
                news.append((m.at(i), tick.hint.text, m.question_ticker))
        # The next hour opens at this instant with prices of its own, so the close is dated one millisecond before it.
        prices += [(t, m.window.end_at - _MS, m.closing[t]) for t in m.tickers]
        outcome = "YES" if m.resolves_yes else "NO"
        predictions.append((m.market_id, str(m.window), m.question, outcome, m.closing_yes_price))
    with engine.begin() as conn:
        write_facts(conn, prices=prices, predictions=predictions, news=news)
