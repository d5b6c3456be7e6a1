"""May this window train? One SQL answer, asked by training, export, `check-windows` and `explain`.

What belongs here: reading a window's state. What is the same for every lineage is the view
`babylon_rl.trainable_windows`, what a lineage did with a window is added by `babylon_rl.window_states` (migration 0011).
A window is an hour, or one scenario of an hour whose rows name scenarios.
How a state is worded for people is `pipeline/readiness.py` and `export/explain.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa

from babylon_rl.common.canonical import from_json
from babylon_rl.database import tables as t
from babylon_rl.windows import HourWindow


class Reason(StrEnum):
    """Why a window may not train; of several, the first in this order."""

    ERROR = "error"
    """Preparing it raised an exception."""
    NOT_READ = "not_read"
    """Rows are recorded, and `raw_trajectories` has not read them."""
    CHANGED = "changed"
    """Rows or outcomes came or were rewritten since it was read."""
    STALE = "stale"
    """Its rows or outcomes were read again, and differ from those that its group was made from."""
    CHECK_FAILED = "check_failed"
    """A required check failed on its group or on its current judgment."""
    TOO_FEW_AGENTS = "too_few_agents"
    """It has no group, because it had fewer usable agents than grouping asked for."""
    NOT_GROUPED = "not_grouped"
    """It was read and not grouped since."""
    WAITING_FOR_OUTCOMES = "waiting_for_outcomes"
    """No market of it has an outcome, so no judge was asked."""
    JUDGE_FAILED = "judge_failed"
    """The judge gave its group nothing usable."""
    JUDGE_DOWN = "judge_down"
    """The judge was out of reach, or refused us."""
    OVER_BUDGET = "over_budget"
    """The day's judging budget was spent."""
    NOT_JUDGED = "not_judged"
    """Its group has no current judgment."""
    CHECKS_MISSING = "checks_missing"
    """A required check did not run on its group or its current judgment."""


class State(StrEnum):
    """How far a window has come in a lineage; exactly one at a time. Computed by `babylon_rl.window_states`."""

    RECORDED = "recorded"
    """Its rows wait to be read and grouped, for the first time or again."""
    GROUPED = "grouped"
    """It has a group, which no judge was asked about."""
    WAITING_FOR_OUTCOMES = "waiting_for_outcomes"
    JUDGE_FAILED = "judge_failed"
    """No judgment came: the reply could not be used, or the judge is down."""
    OVER_BUDGET = "over_budget"
    TOO_FEW_AGENTS = "too_few_agents"
    KEPT_OUT = "kept_out"
    """A required check failed, or preparing it raised an exception."""
    JUDGED = "judged"
    """It may train, or only its checks are missing."""
    PLANNED = "planned"
    """It is part of the batch whose training is under way or was interrupted."""
    TRAINED = "trained"
    STALE = "stale"
    """It was trained on, and its rows or outcomes have changed since."""
    DROPPED_OUT = "dropped_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowState:
    """How far one window has come.

    Attributes:
        hour_id: Its hour: the partition.
        reason: Why no lineage may train on it; None: it may train.
        stage: The asset or check that could not prepare it, where the reason is one that is tried again.
        explanation: What that try said; where checks failed, what they found.
        version: Rises with every change of its rows and outcomes: `<rows>.<outcomes>`.
        failures: Tries in a row that failed for that reason.
        not_before: It is not tried again by itself before; None: at once, or never by itself.
        agents: Usable agents; of a window that was not read, agents with rows that may train.
        failed_checks: Required checks that failed, by name.
        missing_checks: Required checks that did not run, by name.
        consumed_step: The checkpoint of this lineage that trained on it.
        planned_step: The unfinished checkpoint of this lineage that it is planned for.
        dropped: Whether dropout left it out of this lineage.
    """

    window_id: str
    hour_id: str
    state: State
    reason: Reason | None
    stage: str | None
    explanation: str | None
    version: str
    failures: int
    not_before: datetime | None
    agents: int
    group_id: str | None
    judgment_key: str | None
    failed_checks: tuple[str, ...]
    missing_checks: tuple[str, ...]
    consumed_step: int | None
    planned_step: int | None
    dropped: bool

    @property
    def trainable(self) -> bool:
        """Whether it may train, in a lineage that has not used it."""
        return self.reason is None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpreparedWindow:
    """A window that reading, grouping, judging or checking can advance.

    Attributes:
        version: As in `WindowState`.
        not_before: As in `WindowState`.
        rows_only: It cannot train: the lineage has used or dropped it, or it has too few agents. Its rows are read, so that
            each has its outcome.
    """

    window: HourWindow
    reason: Reason
    version: str
    not_before: datetime | None
    rows_only: bool

    def is_due(self, now: datetime) -> bool:
        """Whether it may be tried by itself."""
        return self.not_before is None or self.not_before <= now


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyWindow:
    """A window that this lineage may train on and has not used, with what it would train on."""

    window_id: str
    judgment_key: str
    group_version: str


class Eligibility:
    """What one lineage may train on."""

    def __init__(self, engine: sa.Engine, lineage: str) -> None:
        self.engine = engine
        self.lineage = lineage

    def ready(self, up_to: HourWindow | None = None) -> list[ReadyWindow]:
        """Windows that may train and that the lineage has neither used nor dropped, oldest first."""
        with self.engine.connect() as conn:
            rows = conn.execute(_READY, self._parameters(up_to=None if up_to is None else str(up_to))).mappings()
            return [ReadyWindow(**r) for r in rows]

    def trainable_groups(
        self, conn: sa.Connection, first: HourWindow | None, last: HourWindow | None
    ) -> tuple[list[str], int]:
        """Of all groups of a range of hours: ids of the windows that may train, and how many may not.

        Args:
            conn: A transaction whose snapshot is read.
            first: First window; None: from the beginning.
            last: Last window, included; None: to the end.

        Returns:
            Window ids in time order, whether a lineage has used them or not; and the number of the others.
        """
        bounds = {"first": None if first is None else str(first), "last": None if last is None else str(last)}
        rows = conn.execute(_GROUPS, self._parameters(**bounds)).all()
        trainable = [r.window_id for r in rows if r.trainable]
        return trainable, len(rows) - len(trainable)

    def states(self, windows: Sequence[HourWindow], *, min_agents: int | None = None) -> list[WindowState]:
        """The states of those of `windows` that are known, in time order; an hour gives those of all its windows.

        Args:
            windows: Hours, or single scenarios of hours.
            min_agents: Agents that a group needs now: a window that had too few for a higher minimum is `not_grouped`.
        """
        hours = sorted({str(w.hour) for w in windows})
        asked = {str(w) for w in windows}
        with self.engine.connect() as conn:
            rows = conn.execute(_STATES, self._parameters(hours=hours, min_agents=min_agents)).mappings().all()
            found = [_read_state(r) for r in rows if r["window_id"] in asked or r["hour_id"] in asked]
            causes = _read_causes(conn, [s for s in found if s.reason is Reason.CHECK_FAILED])
        return [replace(s, explanation=causes[s.window_id]) if s.window_id in causes else s for s in found]

    def unprepared(self, min_agents: int) -> list[UnpreparedWindow]:
        """Recorded hours that preparing can advance, now or at their time, in time order.

        One that a check keeps out, or that has too few usable agents, returns here when its rows or outcomes change; one
        that cannot train, only when rows came that no outcome accounts for.
        """
        with self.engine.connect() as conn:
            rows = conn.execute(_UNPREPARED, self._parameters(min_agents=min_agents)).all()
        found = [
            UnpreparedWindow(
                window=HourWindow.parse(r.hour_id),
                reason=Reason(r.reason),
                version=r.version,
                not_before=r.not_before,
                rows_only=r.rows_only,
            )
            for r in rows
        ]
        found.sort(key=_in_order_of_need, reverse=True)
        return sorted({u.window: u for u in found}.values(), key=lambda u: u.window)  # of an hour the first one needed

    def still_fit(self, windows: Sequence[ReadyWindow]) -> bool:
        """Whether each of `windows` may still train, with the same judgment of the same group."""
        with self.engine.connect() as conn:
            rows = conn.execute(_CURRENT, {"windows": [w.window_id for w in windows]}).mappings()
            return {ReadyWindow(**r) for r in rows} == set(windows)

    def _parameters(self, **more: object) -> dict[str, object]:
        return {"lineage": self.lineage, **more}


def _read_causes(conn: sa.Connection, failed: Sequence[WindowState]) -> dict[str, str]:
    """Window id → what its failed checks found, in the sentences that they gave."""
    if not failed:
        return {}
    c = t.check_results.c
    names = {s.window_id: s.failed_checks for s in failed}
    query = sa.select(c.window_id, c.check_name, c.facts).where(c.window_id.in_(list(names)), ~c.passed)
    causes: dict[str, list[str]] = {}
    for r in conn.execute(query.order_by(c.window_id, c.check_name)):
        reason = from_json(r.facts, dict).get("reason")
        if r.check_name in names[r.window_id] and reason:
            causes.setdefault(r.window_id, []).append(str(reason))
    return {w: "; ".join(reasons) for w, reasons in causes.items()}


def _in_order_of_need(u: UnpreparedWindow) -> tuple[bool, float, str]:
    return u.rows_only, 0.0 if u.not_before is None else u.not_before.timestamp(), u.reason


def _read_state(r: sa.RowMapping) -> WindowState:
    lists = {name: tuple(r[name]) for name in ("failed_checks", "missing_checks")}
    reason = None if r["reason"] is None else Reason(r["reason"])
    return WindowState(**{**r, **lists, "state": State(r["state"]), "reason": reason})


# Few windows are asked for out of many. `OFFSET 0` keeps the planner, which knows nothing about young tables, from
# computing the state of every window first.
# The view's row of one window; `{0}` is an expression of its id.
OF_WINDOW = """(SELECT * FROM babylon_rl.trainable_windows y
                  WHERE y.hour_id = left({0}, 16) AND y.window_id = {0} OFFSET 0)"""
# Of a row `x` of the view `trainable_windows`.
IS_CONSUMED = """EXISTS (SELECT FROM babylon_rl.consumed_windows c
                         WHERE c.lineage = :lineage AND c.window_id IN (x.window_id, x.hour_id)
                           AND (c.window_id = x.window_id OR c.whole_hour))"""
IS_DROPPED = """EXISTS (SELECT FROM babylon_rl.dropped_windows d
                        WHERE d.lineage = :lineage AND d.window_id = x.window_id)"""
_READY = sa.text(f"""
    SELECT j.window_id, x.judgment_key, x.group_version FROM babylon_rl.window_judgments j
    CROSS JOIN LATERAL {OF_WINDOW.format("j.window_id")} x
    WHERE x.trainable AND NOT {IS_CONSUMED} AND NOT {IS_DROPPED}
      AND (CAST(:up_to AS text) IS NULL OR x.hour_id <= :up_to)
    ORDER BY j.window_id COLLATE "C" """)  # noqa: S608  # constants, here and below
_GROUPS = sa.text(f"""
    SELECT g.window_id, x.trainable FROM babylon_rl.contextualized_groups g
    CROSS JOIN LATERAL {OF_WINDOW.format("g.window_id")} x
    WHERE (CAST(:first AS text) IS NULL OR g.hour_id >= :first)
      AND (CAST(:last AS text) IS NULL OR g.hour_id <= :last)
    ORDER BY g.window_id COLLATE "C" """)  # noqa: S608
_STATES = sa.text("""
    SELECT x.window_id, x.hour_id, x.stage, x.explanation, x.version, x.failures, x.not_before, x.agents, x.group_id,
           x.judgment_key, x.failed_checks, x.missing_checks, x.consumed_step, x.planned_step, x.dropped,
           CASE WHEN n.asked_again AND x.state = 'too_few_agents' THEN 'recorded' ELSE x.state END AS state,
           CASE WHEN n.asked_again THEN 'not_grouped' ELSE x.reason END AS reason
    FROM babylon_rl.window_states(:lineage) x
    CROSS JOIN LATERAL (SELECT coalesce(x.reason = 'too_few_agents' AND x.agents >= CAST(:min_agents AS integer),
                                        false) AS asked_again) n
    WHERE x.hour_id = ANY(:hours)
    ORDER BY x.window_id COLLATE "C" """)
_CURRENT = sa.text(f"""
    SELECT x.window_id, x.judgment_key, x.group_version
    FROM unnest(CAST(:windows AS text[])) AS w(window_id)
    CROSS JOIN LATERAL {OF_WINDOW.format("w.window_id")} x
    WHERE x.trainable""")  # noqa: S608
_UNPREPARED = sa.text(f"""
    SELECT x.hour_id, x.version, x.not_before, false AS rows_only,
           CASE WHEN x.reason = 'too_few_agents' THEN 'not_grouped' ELSE x.reason END AS reason
    FROM babylon_rl.window_summary s
    JOIN babylon_rl.trainable_windows x ON x.hour_id = s.window_id
    WHERE s.agents >= :min_agents AND x.reason <> 'check_failed'
      AND (x.reason <> 'too_few_agents' OR x.agents >= :min_agents)
      AND NOT {IS_CONSUMED} AND NOT {IS_DROPPED}
    UNION ALL
    SELECT s.window_id, v.version, r.not_before, true, CASE WHEN w.window_id IS NULL THEN 'not_read' ELSE 'changed' END
    FROM babylon_rl.window_summary s
    LEFT JOIN babylon_rl.windows w ON w.window_id = s.window_id
    CROSS JOIN LATERAL (SELECT s.changes || '.' || s.outcome_changes AS version) v
    LEFT JOIN babylon_rl.window_retries r
           ON r.window_id = s.window_id AND r.kind = 'error' AND r.version = v.version
    WHERE s.changes > coalesce(w.changes_seen, CASE WHEN w.window_id IS NULL THEN 0 ELSE s.changes END)
      AND (s.agents < :min_agents
           OR EXISTS (SELECT FROM babylon_rl.consumed_windows c
                      WHERE c.lineage = :lineage AND c.hour_id = s.window_id)
           OR EXISTS (SELECT FROM babylon_rl.dropped_windows d
                      WHERE d.lineage = :lineage AND d.hour_id = s.window_id))""")  # noqa: S608
