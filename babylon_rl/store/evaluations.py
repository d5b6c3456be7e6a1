"""Evaluations: the results of each checkpoint of a lineage on a suite of held-out windows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from babylon_rl.common.canonical import pack, unpack
from babylon_rl.database import tables as t
from babylon_rl.database.upsert import insert_missing

if TYPE_CHECKING:  # it imports numpy
    from babylon_rl.common.statistics import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResult:
    """One policy on the held-out windows.

    Attributes:
        pnl_usd: P&L per window, in the suite's order; pairs with any other result of the suite.
        invalid_rate: Share of answers that were no legal action.
    """

    name: str
    pnl_usd: tuple[float, ...]
    invalid_rate: float

    @property
    def mean_pnl_usd(self) -> float:
        return sum(self.pnl_usd) / len(self.pnl_usd)

    @property
    def win_rate(self) -> float:
        return sum(p > 0 for p in self.pnl_usd) / len(self.pnl_usd)


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveRow:
    """One evaluated checkpoint of the lineage."""

    step: int
    result: PolicyResult


def read_evaluation(engine: sa.Engine, lineage: str, step: int, suite: str) -> PolicyResult | None:
    """The result of a checkpoint on a suite, or None when it has not played it."""
    c = t.evaluations.c
    query = sa.select(c.body).where(c.lineage == lineage, c.step == step, c.suite == suite)
    with engine.connect() as conn:
        body = conn.scalar(query)
    return None if body is None else unpack(body, PolicyResult)


def write_evaluation(
    engine: sa.Engine,
    lineage: str,
    step: int,
    suite: str,
    result: PolicyResult,
    *,
    base: PolicyResult,
    lift: "Interval",
) -> None:
    """Keep the result of a checkpoint on a suite, with its lift over the base. An earlier result stays as it is."""
    row = {
        "lineage": lineage,
        "step": step,
        "suite": suite,
        "base_mean_pnl_usd": base.mean_pnl_usd,
        "mean_pnl_usd": result.mean_pnl_usd,
        "lift_usd": lift.mean,
        "lift_lo_usd": lift.lo,
        "lift_hi_usd": lift.hi,
        "body": pack(result),
    }
    with engine.begin() as conn:
        insert_missing(conn, t.evaluations, [row])


@dataclass(frozen=True, slots=True, kw_only=True)
class Lift:
    """A checkpoint's P&L less its base's, in US dollars a held-out window, with its 95 % interval."""

    mean: float
    lo: float
    hi: float


def read_lifts(engine: sa.Engine, lineage: str, suite: str) -> dict[int, Lift]:
    """Step → lift of each evaluated checkpoint of a lineage on a suite."""
    c = t.evaluations.c
    query = sa.select(c.step, c.lift_usd, c.lift_lo_usd, c.lift_hi_usd).where(
        c.lineage == lineage, c.suite == suite, c.step > 0
    )
    with engine.connect() as conn:
        return {r.step: Lift(mean=r.lift_usd, lo=r.lift_lo_usd, hi=r.lift_hi_usd) for r in conn.execute(query)}


def read_curve(engine: sa.Engine, lineage: str, suite: str) -> list[CurveRow]:
    """Every evaluated checkpoint of a lineage on a suite, by step."""
    c = t.evaluations.c
    query = sa.select(c.step, c.body).where(c.lineage == lineage, c.suite == suite).order_by(c.step)
    with engine.connect() as conn:
        return [CurveRow(step=step, result=unpack(body, PolicyResult)) for step, body in conn.execute(query)]
