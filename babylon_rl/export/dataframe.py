"""A window as a table for notebooks: all that is known about each turn, hindsight included.

For analysis, not for training: `export/dataset.py` exports what trains, without hindsight.
"""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from babylon_rl.errors import DataError
from babylon_rl.store.hours import windows_of
from babylon_rl.store.row_outcomes import row_outcomes_of
from babylon_rl.store.windows import Store
from babylon_rl.training.rewards import rewards_of
from babylon_rl.types import Json, Judgment, RowOutcome, Trajectory
from babylon_rl.windows import HourWindow

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: Final[Mapping[str, str]] = {
    "window_id": "string",
    "agent_id": "string",
    "archetype": "string",
    "trajectory_id": "string",
    "turn_index": "int64",
    "policy_version": "string",
    "temperature": "Float64",
    "system": "string",
    "prompt": "string",
    "response": "string",
    "score": "Float64",
    "reward": "Float64",
    "explanation": "string",
    "judge": "string",
    "judgment_key": "string",
    "start_balance_usd": "Float64",
    "pnl_usd": "Float64",
    "action_type": "string",
    "success": "boolean",
    "status": "string",
    "reason": "string",
    "group_id": "string",
    "source_rows": "int64",
}
"""Column → pandas type. Types with a missing value of their own: unknown is `<NA>`, never 0."""


def window_frame(store: Store, window_id: str) -> "pd.DataFrame":
    """Read one ingested window.

    Args:
        store: Our schema.
        window_id: A UTC hour such as `2025-01-15T10:00`, or one scenario of it.

    Returns:
        `COLUMNS`, a row per turn by agent and time, all trajectories of the window, grouped or not. `score`,
        `reward` (rank in the group), `pnl_usd` and `status` are the trajectory's, repeated on its turns;
        `source_rows` counts the rows it was stitched from. `frame.attrs["row_outcomes"]` counts
        the rows of the window by outcome, rows without a turn included.

    Raises:
        DataError: The text is no window, or the window was never ingested.
    """
    import pandas as pd

    window = HourWindow.parse(window_id)
    if store.data_version(window) is None:
        raise DataError(_explain_unknown(store, window), facts={"window_id": str(window)})
    outcomes = row_outcomes_of(store.engine, window)
    outcome_of_row = {o.source_id: o for o in outcomes}
    judgments = {str(w): store.judgment(w) for w in windows_of(store.engine, [window])[window]}
    records = [
        r
        for t in store.trajectories(window)
        for r in _make_records(t, outcome_of_row.get(t.row_ids[0]) if t.row_ids else None, judgments.get(t.window_id))
    ]
    frame = pd.DataFrame.from_records(records, columns=list(COLUMNS)).astype(dict(COLUMNS))
    counts = Counter(f"{o.status}/{o.reason}" for o in outcomes)
    frame.attrs = {"window_id": str(window), "rows": len(outcomes), "row_outcomes": dict(sorted(counts.items()))}
    return frame


def _make_records(t: Trajectory, outcome: RowOutcome | None, judgment: Judgment | None) -> list[Json]:
    scores = {} if judgment is None else {s.trajectory_id: s for s in judgment.scores}
    rewards = {} if judgment is None else rewards_of(judgment)
    score = scores.get(t.trajectory_id)
    left_out = None if judgment is None else judgment.left_out.get(t.trajectory_id)
    whole: Json = {
        "window_id": t.window_id,
        "agent_id": t.agent_id,
        "archetype": t.archetype,
        "trajectory_id": t.trajectory_id,
        "score": None if score is None else score.value,
        "reward": rewards.get(t.trajectory_id),
        "explanation": score.explanation if score is not None else left_out and f"Left out of the ranking: {left_out}.",
        "judge": None if judgment is None else f"{judgment.judge_model} {judgment.judge_version}",
        "judgment_key": None if judgment is None else judgment.key,
        "start_balance_usd": t.start_balance_usd,
        "pnl_usd": t.pnl_usd,
        "status": None if outcome is None else outcome.status.value,
        "reason": None if outcome is None else outcome.reason.value,
        "group_id": None if outcome is None else outcome.group_id,
        "source_rows": len(t.row_ids),
    }
    return [
        {
            **whole,
            "turn_index": i,
            "policy_version": turn.policy_version,
            "temperature": turn.temperature,
            "system": turn.system,
            "prompt": turn.user,
            "response": turn.response,
            "action_type": _as_text(decision.get("actionType")),
            "success": _as_bool(decision.get("success")),
        }
        for i, (turn, decision) in enumerate(zip(t.turns, t.decisions, strict=True))
    ]


def _as_text(value: Any) -> str | None:
    """The value if it is text: a field of the game's action objects may have any type."""
    return value if isinstance(value, str) else None


def _as_bool(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _explain_unknown(store: Store, window: HourWindow) -> str:
    known = store.ingested()
    if not known:
        return (
            f"window {str(window)!r} is unknown: nothing was ingested yet; "
            f"run `babylon-rl materialize --from {window} --to {window}`"
        )
    return (
        f"window {str(window)!r} was never ingested; expected one of {len(known)} from {known[0]} to {known[-1]}; "
        f"run `babylon-rl materialize --from {window} --to {window}` to read its rows"
    )
