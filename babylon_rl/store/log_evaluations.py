"""What held-out windows of the log say of a checkpoint, and which windows those are.

Held out of step k are the windows that may train and of whose hour no step up to k of the lineage has trained on anything;
a later step may have. No figure here is money: what a policy earns in a game that we cannot play is known from live windows only.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import sqlalchemy as sa

from babylon_rl.common.canonical import pack, unpack
from babylon_rl.database import tables as t
from babylon_rl.database.upsert import upsert
from babylon_rl.store.eligibility import OF_WINDOW, ReadyWindow
from babylon_rl.types import Json


class LogKind(StrEnum):
    """What a row of `log_evaluations` is."""

    HELD_OUT_LOG = "held_out_log"
    """Figures of held-out windows of the log."""
    NONE = "none"
    """Nothing could be said; the row has the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFigures:
    """One policy on the held-out windows, each figure a mean over windows; None: not known.

    Attributes:
        answers: Sampled on held-out prompts.
        invalid_rate: Share of them that are empty, or name no action where the logged answer names one.
        same_action_rate: Share of them that name the action of the judge's best member.
        ranks_best_first: Of each pair of the judge's best member and one with a lower score, the share in which the best
            one's answers are likelier, per token; 0.5 is chance.
        better_over_worse_nats: Log-likelihood per token of the members above the window's mean score, less that of those
            below it.
    """

    name: str
    answers: int
    invalid_rate: float | None = None
    same_action_rate: float | None = None
    ranks_best_first: float | None = None
    better_over_worse_nats: float | None = None


FIGURES: Final = ("ranks_best_first", "better_over_worse_nats", "same_action_rate", "invalid_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A figure of the checkpoint less the base's, paired by window: mean and 95 % bootstrap interval."""

    mean: float
    lo: float
    hi: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEvaluation:
    """A checkpoint beside its base on held-out windows of the log.

    Attributes:
        windows: Ids, in time order.
        changes: Figure → checkpoint less base.
        unknown: Figure → why it is None.
    """

    suite: str
    windows: tuple[str, ...]
    policy: LogFigures
    base: LogFigures
    changes: Mapping[str, Change] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)

    def facts(self) -> Json:
        """Small values for the asset's metadata."""
        facts: Json = {
            "evaluated": True,
            "evaluation": LogKind.HELD_OUT_LOG.value,
            "policy": self.policy.name,
            "suite": self.suite,
            "held_out_windows": len(self.windows),
            "answers_sampled": self.policy.answers,
        }
        for name in FIGURES:
            value, of_base = getattr(self.policy, name), getattr(self.base, name)
            facts[name] = None if value is None else round(value, 4)
            facts[f"base_{name}"] = None if of_base is None else round(of_base, 4)
            if (change := self.changes.get(name)) is not None:
                facts[f"{name}_change_ci95"] = f"{change.mean:+.4f} [{change.lo:+.4f}, {change.hi:+.4f}]"
            if name in self.unknown:
                facts[f"{name}_unknown"] = self.unknown[name]
        return facts

    def sentence(self) -> str:
        """What it says, for a person."""
        said = [
            f"{words} {getattr(self.policy, name):.3f} (base {getattr(self.base, name):.3f})"
            for name, words in _WORDS.items()
            if getattr(self.policy, name) is not None and getattr(self.base, name) is not None
        ]
        return f"on {len(self.windows)} held-out windows of the log: {', '.join(said)}; not in money"


_WORDS: Final = {
    "ranks_best_first": "ranks the judge's best first",
    "better_over_worse_nats": "nats per token of better over worse answers",
    "same_action_rate": "the best member's action",
    "invalid_rate": "invalid answers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NotEvaluated:
    """Why nothing can be said of a checkpoint.

    Attributes:
        reason: A sentence without its full stop.
        windows: Held-out windows at that time.
        try_again: Whether that may change without anybody's help.
    """

    reason: str
    windows: int = 0
    try_again: bool = False

    def facts(self) -> Json:
        """Small values for the asset's metadata."""
        return {"evaluated": False, "reason": self.reason, "held_out_windows": self.windows}

    def sentence(self) -> str:
        """The same in words."""
        return f"not evaluated: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRow:
    """The newest row of a checkpoint."""

    step: int
    result: LogEvaluation | NotEvaluated


def held_out_windows(engine: sa.Engine, lineage: str, step: int) -> list[ReadyWindow]:
    """Windows that may train and that no step up to `step` has trained on, in time order."""
    with engine.connect() as conn:
        rows = conn.execute(_HELD_OUT, {"lineage": lineage, "step": step}).mappings()
        return [ReadyWindow(**r) for r in rows]


@dataclass(frozen=True)
class _TurnPrompt:
    system: str


@dataclass(frozen=True)
class _MemberPrompts:
    turns: tuple[_TurnPrompt, ...]


@dataclass(frozen=True)
class _GroupPrompts:
    members: tuple[_MemberPrompts, ...]


def read_system_prompts(engine: sa.Engine, lineage: str, step: int) -> frozenset[str] | None:
    """Every system prompt that the steps up to `step` trained on; None where a window's group is no longer stored."""
    c, g = t.consumed_windows.c, t.contextualized_groups.c
    query = (
        sa.select(g.body)
        .select_from(t.consumed_windows.outerjoin(t.contextualized_groups, g.window_id == c.window_id))
        .where(c.lineage == lineage, c.step <= step)
    )
    prompts: set[str] = set()
    # Closed here: left before the end, the server's cursor would outlive the transaction.
    with engine.connect() as conn, closing(conn.execution_options(yield_per=50).scalars(query)) as bodies:
        for body in bodies:
            if body is None:
                return None
            prompts |= {turn.system for m in unpack(body, _GroupPrompts).members for turn in m.turns}
    return frozenset(prompts)


def read_log_evaluation(engine: sa.Engine, lineage: str, step: int, suite: str) -> LogEvaluation | None:
    """What was said of a checkpoint on a suite; None where nothing was."""
    c = t.log_evaluations.c
    query = sa.select(c.body).where(c.lineage == lineage, c.step == step, c.suite == suite)
    with engine.connect() as conn:
        body = conn.scalar(query)
    return None if body is None else unpack(body, LogEvaluation)


def read_log_rows(engine: sa.Engine, lineage: str) -> list[LogRow]:
    """The newest row of each checkpoint of a lineage that has one, by step."""
    c = t.log_evaluations.c
    query = (
        sa.select(c.step, c.body, c.reason, c.windows, c.try_again)
        .distinct(c.step)
        .where(c.lineage == lineage)
        .order_by(c.step, c.evaluated_at.desc())
    )
    with engine.connect() as conn:
        return [
            LogRow(
                step=r.step,
                result=NotEvaluated(reason=r.reason or "", windows=r.windows, try_again=r.try_again)
                if r.body is None
                else unpack(r.body, LogEvaluation),
            )
            for r in conn.execute(query)
        ]


def write_log_evaluation(
    engine: sa.Engine, lineage: str, step: int, suite: str, result: LogEvaluation | NotEvaluated
) -> None:
    """Keep what was said of a checkpoint on a suite, instead of what was said before."""
    said = isinstance(result, LogEvaluation)
    row: Json = {
        "lineage": lineage,
        "step": step,
        "suite": suite,
        "kind": (LogKind.HELD_OUT_LOG if said else LogKind.NONE).value,
        "windows": len(result.windows) if isinstance(result, LogEvaluation) else result.windows,
        "reason": None if isinstance(result, LogEvaluation) else result.reason,
        "try_again": not isinstance(result, LogEvaluation) and result.try_again,
        **{f: getattr(result.policy, f) if isinstance(result, LogEvaluation) else None for f in FIGURES},
        "body": pack(result) if said else None,
        "evaluated_at": datetime.now(UTC),
    }
    with engine.begin() as conn:
        upsert(conn, t.log_evaluations, [row])


# By the hour: scenarios of one hour share its markets.
_HELD_OUT = sa.text(f"""
    SELECT j.window_id, x.judgment_key, x.group_version FROM babylon_rl.window_judgments j
    CROSS JOIN LATERAL {OF_WINDOW.format("j.window_id")} x
    WHERE x.trainable
      AND NOT EXISTS (SELECT FROM babylon_rl.consumed_windows c
                      WHERE c.lineage = :lineage AND c.hour_id = x.hour_id AND c.step <= :step)
    ORDER BY j.window_id COLLATE "C" """)  # noqa: S608  # a constant
