"""The log of a judge's requests, in our database and under the day's budget.

A request is written, with the most it can cost, in the transaction that holds the day's lock: every process sees the
reservations of all others, so concurrent requests cannot exceed the budget together. A
request that was sent and never answered (the process was killed, the server hung) keeps its reservation: it may have
been paid for.
"""

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime

import sqlalchemy as sa

from babylon_rl.database import tables as t
from babylon_rl.database.locks import Lock, lock_transaction
from babylon_rl.judging.judge import BudgetSpentError
from babylon_rl.judging.ruler.call_log import Call, CallStatus
from babylon_rl.judging.ruler.completion import Reply

logger = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


class PostgresCallLog:
    """A `CallLog` in the table `judge_calls`.

    Attributes:
        budget_usd: US dollars a UTC day, over all judges and processes of this database; None: no limit.
    """

    def __init__(
        self, engine: sa.Engine, *, budget_usd: float | None = None, now: Callable[[], datetime] = _now
    ) -> None:
        self.engine = engine
        self.budget_usd = budget_usd
        self._now = now

    def replies(self, judgment_key: str, slot: str) -> list[Reply]:
        c = t.judge_calls.c
        query = (
            sa.select(c.reply, c.finish_reason, c.prompt_tokens, c.completion_tokens)
            .where(c.judgment_key == judgment_key, c.slot == slot, c.state == CallStatus.REPLIED)
            .order_by(c.serial)
        )
        with self.engine.connect() as conn:
            rows = conn.execute(query).all()
        return [
            Reply(
                text=r.reply or "",
                finish_reason=r.finish_reason,
                prompt_tokens=r.prompt_tokens or 0,
                completion_tokens=r.completion_tokens or 0,
            )
            for r in rows
        ]

    def begin(self, call: Call) -> str:
        call_id = uuid.uuid4().hex
        day = self._now().astimezone(UTC).date()
        try:
            self._reserve(call, call_id, day)
        except BudgetSpentError:
            with self.engine.begin() as conn:  # not sent, but written: an asset check reports it
                conn.execute(sa.insert(t.judge_calls), [_make_row(call, call_id, day, CallStatus.DENIED)])
            raise
        return call_id

    def _reserve(self, call: Call, call_id: str, day: date) -> None:
        with self.engine.begin() as conn:
            if self.budget_usd is not None:
                lock_transaction(conn, Lock.JUDGE_BUDGET, str(day))
                spent = _sum_spent(conn, day)
                if spent + call.reserved_usd > self.budget_usd:
                    raise BudgetSpentError(
                        f"group {call.group_id!r} was not judged: ${spent:.4f} of JUDGE_BUDGET_USD ${self.budget_usd:g} "
                        f"are spent or reserved on {day} (UTC), and this request could cost ${call.reserved_usd:.4f}; "
                        "raise the budget, or wait for the next UTC day",
                        facts={
                            "group_id": call.group_id,
                            "spent_usd": spent,
                            "could_cost_usd": call.reserved_usd,
                            "budget_usd": self.budget_usd,
                        },
                    )
            conn.execute(sa.insert(t.judge_calls), [_make_row(call, call_id, day, CallStatus.ASKED)])

    def end(self, call_id: str, status: CallStatus, reply: Reply | None = None, cost_usd: float | None = None) -> None:
        values: dict[str, object] = {"state": status, "ended_at": self._now(), "cost_usd": cost_usd}
        if reply is not None:
            values |= {
                "reply": reply.text,
                "finish_reason": reply.finish_reason,
                "prompt_tokens": reply.prompt_tokens,
                "completion_tokens": reply.completion_tokens,
            }
        with self.engine.begin() as conn:
            conn.execute(sa.update(t.judge_calls).where(t.judge_calls.c.call_id == call_id).values(**values))


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowCost:
    """What judging one window cost, over all judges and days.

    Attributes:
        denied: The last request for it was not sent, because it could have crossed the budget.
    """

    calls: int
    cost_usd: float
    denied: bool


def cost_of(engine: sa.Engine, window_id: str) -> WindowCost:
    """What judging a window cost so far, failed requests that were paid for included."""
    query = sa.text(
        "SELECT coalesce(sum(calls), 0)::integer AS calls, coalesce(sum(cost_usd), 0) AS cost_usd "
        "FROM babylon_rl.judge_costs WHERE window_id = :w"
    )
    c = t.judge_calls.c
    last = sa.select(c.state).where(c.window_id == window_id).order_by(c.serial.desc()).limit(1)
    with engine.connect() as conn:
        r = conn.execute(query, {"w": window_id}).one()
        state = conn.scalar(last)
    return WindowCost(calls=r.calls, cost_usd=float(r.cost_usd), denied=state == CallStatus.DENIED)


def _make_row(call: Call, call_id: str, day: date, status: CallStatus) -> dict[str, object]:
    return {
        "call_id": call_id,
        "judgment_key": call.judgment_key,
        "slot": call.slot,
        "window_id": call.window_id,
        "group_id": call.group_id,
        "judge_model": call.judge_model,
        "judge_version": call.judge_version,
        "day": day,
        "state": status,
        "expected_tokens": call.prompt_tokens,
        "reserved_usd": call.reserved_usd,
    }


def _sum_spent(conn: sa.Connection, day: date) -> float:
    """What a UTC day's requests cost, with what is reserved for those without an answer."""
    c = t.judge_calls.c
    total = sa.func.coalesce(sa.func.sum(sa.func.coalesce(c.cost_usd, c.reserved_usd)), 0.0)
    return float(
        conn.scalar(sa.select(total).where(c.day == day, c.state.not_in((CallStatus.REFUSED, CallStatus.DENIED))))
        or 0.0
    )
