"""How much is recorded, and how much of it may still train: what `check-windows` counts.

Counted from the summaries that are kept per window, and from the few windows with an entry that can keep them out, so it
costs the same with a million rows as with a thousand.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from babylon_rl.store.eligibility import IS_CONSUMED, IS_DROPPED, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedWindow:
    """One window as it is recorded in the game's table.

    Attributes:
        rows: Rows that may train.
        agents: Distinct agents of those rows.
        outcomes: Whether its market outcomes are known.
    """

    window_id: str
    rows: int
    agents: int
    avg_pnl_usd: float | None
    outcomes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCounts:
    """How many windows are recorded.

    Attributes:
        windows: Hours with rows that may train.
        with_enough_agents: Windows with enough agents: usable ones where they were read.
        spent: Of those, used or dropped out by this lineage.
        left_out: Of those that are not spent, how many a reason keeps from training until something changes or its time
            comes: a failed check, an exception, a judge or outcomes that are waited for.
        without_outcomes: Hours of windows that are neither spent, nor kept out by a check, nor judged (by P&L alone), without
            market outcomes.
        oldest_without_outcomes: Id of the oldest of them.
    """

    windows: int
    with_enough_agents: int
    spent: int
    left_out: Mapping[Reason, int]
    without_outcomes: int
    oldest_without_outcomes: str | None

    @property
    def waiting(self) -> int:
        """Windows that wait for outcomes, for a judge, or after an exception: none of them is given up."""
        return sum(n for reason, n in self.left_out.items() if reason is not Reason.CHECK_FAILED)

    @property
    def unused(self) -> int:
        """Windows that may train, or that preparing them now can make so."""
        return self.with_enough_agents - self.spent - sum(self.left_out.values())


def newest_recorded(engine: sa.Engine, count: int) -> list[RecordedWindow]:
    """The newest windows with rows that may train, in time order."""
    with engine.connect() as conn:
        rows = conn.execute(_NEWEST, {"count": count}).mappings().all()
    return [RecordedWindow(**r) for r in reversed(rows)]


def count_recorded(engine: sa.Engine, lineage: str, min_agents: int) -> RecordedCounts:
    """Count what is recorded; costs as much as the windows that are used or kept out, not as all recorded ones."""
    parameters = {"lineage": lineage, "min_agents": min_agents}
    with engine.connect() as conn:
        windows, enough, without_outcomes = conn.execute(_COUNTS, parameters).one()
        scenarios = conn.scalar(_MORE_SCENARIOS) or 0
        spent = conn.scalar(_SPENT, parameters) or 0
        left_out = {Reason(r.reason): r.windows for r in conn.execute(_LEFT_OUT, parameters)}
        left = without_outcomes - (conn.scalar(_DONE_WITHOUT_OUTCOMES, parameters) or 0)
        oldest = conn.scalar(_OLDEST_WITHOUT_OUTCOMES, parameters) if left else None
    return RecordedCounts(
        windows=windows,
        with_enough_agents=enough + scenarios - left_out.pop(Reason.TOO_FEW_AGENTS, 0),
        spent=spent,
        left_out=left_out,
        without_outcomes=left,
        oldest_without_outcomes=oldest,
    )


_NEWEST = sa.text("""
    SELECT window_id, rows, agents, avg_pnl_usd, outcomes FROM babylon_rl.window_summary
    WHERE rows > 0 ORDER BY window_id DESC LIMIT :count""")
_COUNTS = sa.text("""
    SELECT coalesce(sum(windows) FILTER (WHERE agents > 0), 0)::int,
           coalesce(sum(windows) FILTER (WHERE agents >= :min_agents), 0)::int,
           coalesce(sum(windows) FILTER (WHERE agents >= :min_agents AND NOT outcomes), 0)::int
    FROM babylon_rl.window_counts""")
# Hours with several windows: how many more those are.
_MORE_SCENARIOS = sa.text("""
    SELECT (count(*) - count(DISTINCT hour_id))::int FROM babylon_rl.contextualized_groups
    WHERE hour_id IN (SELECT hour_id FROM babylon_rl.contextualized_groups WHERE window_id <> hour_id)""")
_SPENT_WINDOWS = """
    SELECT window_id, hour_id FROM babylon_rl.consumed_windows WHERE lineage = :lineage
    UNION SELECT window_id, hour_id FROM babylon_rl.dropped_windows WHERE lineage = :lineage"""
_SPENT = sa.text(f"""
    SELECT count(*)::int FROM ({_SPENT_WINDOWS}) x
    CROSS JOIN LATERAL (SELECT * FROM babylon_rl.window_summary y WHERE y.window_id = x.hour_id OFFSET 0) s
    WHERE s.agents >= :min_agents""")  # noqa: S608
# Only windows with an entry somewhere can have such a reason.
_LEFT_OUT_WINDOWS = f"""
    SELECT x.window_id, x.hour_id, x.reason
    FROM (SELECT left(window_id, 16) AS hour_id FROM babylon_rl.check_results WHERE NOT passed
          UNION SELECT left(window_id, 16) FROM babylon_rl.window_retries
          UNION SELECT window_id FROM babylon_rl.windows WHERE agents < :min_agents) f
    CROSS JOIN LATERAL (SELECT * FROM babylon_rl.trainable_windows y WHERE y.hour_id = f.hour_id OFFSET 0) x
    CROSS JOIN LATERAL (SELECT * FROM babylon_rl.window_summary y WHERE y.window_id = f.hour_id OFFSET 0) s
    WHERE s.agents >= :min_agents AND NOT {IS_CONSUMED} AND NOT {IS_DROPPED}
      AND (x.reason IN ('error', 'check_failed', 'waiting_for_outcomes', 'judge_failed', 'judge_down', 'over_budget')
           OR x.reason = 'too_few_agents' AND x.agents < :min_agents)"""  # noqa: S608
_LEFT_OUT = sa.text(f"SELECT reason, count(*)::int AS windows FROM ({_LEFT_OUT_WINDOWS}) x GROUP BY reason")  # noqa: S608
_DONE_HOURS = f"""
    SELECT hour_id FROM ({_SPENT_WINDOWS}) x
    UNION SELECT hour_id FROM ({_LEFT_OUT_WINDOWS}) x WHERE reason IN ('check_failed', 'too_few_agents')
    UNION SELECT left(window_id, 16) FROM babylon_rl.window_judgments"""  # noqa: S608
_DONE_WITHOUT_OUTCOMES = sa.text(f"""
    SELECT count(*)::int FROM ({_DONE_HOURS}) x
    CROSS JOIN LATERAL (SELECT * FROM babylon_rl.window_summary y WHERE y.window_id = x.hour_id OFFSET 0) s
    WHERE s.agents >= :min_agents AND NOT s.outcomes""")  # noqa: S608
_OLDEST_WITHOUT_OUTCOMES = sa.text(f"""
    SELECT s.window_id FROM babylon_rl.window_summary s
    WHERE NOT s.outcomes AND s.agents >= :min_agents AND s.window_id NOT IN ({_DONE_HOURS})
    ORDER BY s.window_id LIMIT 1""")  # noqa: S608
