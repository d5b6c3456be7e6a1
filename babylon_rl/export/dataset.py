"""Judged groups as Parquet or JSONL, for trainers that are not ours: the same data, the same bytes.

What belongs here: which windows are exported, in which columns, and one atomic write. What does not: the values of the
columns (`export/rows.py`).

A window is exported when it may train (judged, every required check passed), whether a checkpoint has used it or not.
Hindsight is exported only with `with_hindsight`, in columns called `hindsight_…`.

Columns of `turns`, one row per decision of an agent:

    prompt, completion           messages [{role, content}]: TRL's conversational prompt-completion (SFT); `prompt`
                                 alone is its prompt-only form (GRPO)
    data_source, prompt, ability, reward_model, extra_info      verl's five; `ground_truth` is null: a recorded answer
                                 has a reward, a new one must be judged by a reward function of your own
    response                     the agent's answer as text: the content of `completion`
    score                        the judge's number in [0, 1]; comparable inside its group only
    reward                       what our trainer receives: the score's rank in its group, in [0, 1]
    advantage, compared          GRPO's, one for all turns of a trajectory, over the `compared` ranked members of its group
    turn_weight                  1 / turns of the trajectory: weighted so, every trajectory counts the same
    left_out                     why the judge did not rank the member; then score, reward and advantage are null
    outcomes                     `known`, or `none`: the judge knew P&L and no market outcome
    group_id, window_id, trajectory_id, agent_id, archetype, turn_index, policy_version, temperature, judgment_key, judge

and of `groups`, one row per window: its ids, and `members` with their score, reward and turns (`messages` whole).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import sqlalchemy as sa

from babylon_rl.common.files import atomic_file
from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.errors import DataError
from babylon_rl.export.rows import JudgedGroup, group_row, turn_rows
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.groups import read_judged_group
from babylon_rl.training.rewards import grpo_advantages, rewards_of
from babylon_rl.types import Json
from babylon_rl.windows import HourWindow

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

Format = Literal["parquet", "jsonl"]
What = Literal["turns", "groups"]

ROWS_AT_ONCE: Final = 2_000
CHARS_AT_ONCE: Final = 16_000_000  # a row group ends at whichever comes first; fixed, since it shapes the bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """Counts of one export.

    Attributes:
        left_out: Grouped windows of the range that may not train: not judged, kept out by a check, or changed since.
    """

    windows: int
    rows: int
    left_out: int


def export(
    workspace: Workspace,
    out: str,
    *,
    format: Format,
    what: What = "turns",
    first: HourWindow | None = None,
    last: HourWindow | None = None,
    with_hindsight: bool = False,
    progress: Progress = ignore_progress,
) -> Exported:
    """Write every window of a range that may train, in time order; memory holds one window and one row group.

    Args:
        workspace: Its ledger knows the required checks.
        out: A path, or an fsspec URL such as `s3://bucket/turns.parquet`. It appears whole or not at all.
        format: `parquet` or `jsonl`.
        what: A row per turn, or a row per group.
        first: First window; None: from the beginning.
        last: Last window, included; None: to the end.
        with_hindsight: Add what became of the agents, and the judge's explanations.
        progress: Called with the number of windows, and after each window.

    Raises:
        DataError: No window of the range may train; nothing is written.
        ConfigError: The path cannot be written to.
    """
    columns = schema(what, with_hindsight=with_hindsight)
    # One snapshot: a window that is grouped anew meanwhile is exported as it was when the export began.
    snapshot = workspace.store.engine.connect().execution_options(isolation_level="REPEATABLE READ")
    with snapshot as conn, conn.begin():
        conn.execute(sa.text("SET TRANSACTION READ ONLY"))
        windows, left_out = workspace.ledger.eligibility.trainable_groups(conn, first, last)
        if not windows:
            raise DataError(_explain_nothing(first, last, left_out), facts={"left_out": left_out})
        progress(0, total=len(windows))
        rows = _make_rows(conn, windows, what, with_hindsight, progress)
        with atomic_file(out) as file:
            written = (_write_parquet if format == "parquet" else _write_jsonl)(file, columns, rows)
    logger.info("exported windows=%d rows=%d left_out=%d format=%s", len(windows), written, left_out, format)
    return Exported(windows=len(windows), rows=written, left_out=left_out)


def schema(what: What, *, with_hindsight: bool = False) -> "pa.Schema":
    """Columns and types.

    Parquet carries them. For JSONL give `datasets.Features.from_arrow_schema` of it to `load_dataset(features=…)`:
    without it, the JSON loader takes a column that begins with nulls for one of nulls. It reads `window_id` as a time
    in any case; `group_id` begins with the same hour and stays text.
    """
    import pyarrow as pa

    text, real, count = pa.string(), pa.float64(), pa.int64()
    messages = pa.list_(pa.struct([("role", text), ("content", text)]))
    policy = [("policy_version", text), ("temperature", real)]
    judged = [("judgment_key", text), ("judge", text), ("outcomes", text)]
    outcome = [
        ("hindsight_start_balance_usd", real),
        ("hindsight_pnl_usd", real),
        ("hindsight_game_knowledge_json", text),
        ("hindsight_explanation", text),
    ]
    if what == "groups":
        turn = [("messages", messages), ("advantage", real), ("compared", count), ("turn_weight", real), *policy]
        member = [("trajectory_id", text), ("agent_id", text), ("archetype", text), ("score", real), ("reward", real)]
        member.append(("left_out", text))
        if with_hindsight:
            turn.append(("hindsight_decision_json", text))
            member += outcome
        member.append(("turns", pa.list_(pa.struct(turn))))
        columns = [("group_id", text), ("window_id", text), *judged, ("members", pa.list_(pa.struct(member)))]
    else:
        columns = [
            ("data_source", text),
            ("prompt", messages),
            ("completion", messages),
            ("response", text),
            ("score", real),
            ("reward", real),
            ("left_out", text),
            ("advantage", real),
            ("compared", count),
            ("turn_weight", real),
            ("group_id", text),
            ("window_id", text),
            ("trajectory_id", text),
            ("agent_id", text),
            ("archetype", text),
            ("turn_index", count),
            *policy,
            *judged,
            ("ability", text),
            ("reward_model", pa.struct([("style", text), ("ground_truth", text)])),
            (
                "extra_info",
                pa.struct(
                    [
                        ("index", count),
                        ("group_id", text),
                        ("trajectory_id", text),
                        ("turn_index", count),
                        ("response", text),
                        ("reward", real),
                    ]
                ),
            ),
        ]
        if with_hindsight:
            columns += [*outcome, ("hindsight_decision_json", text)]
    if with_hindsight:
        columns.append(("hindsight_outcomes_json", text))
    return pa.schema(columns)


def _read_judged(conn: sa.Connection, window_id: str, *, with_hindsight: bool) -> JudgedGroup:
    group, hindsight, judgment = read_judged_group(conn, window_id, with_hindsight=with_hindsight)
    scores = {s.trajectory_id: s.value for s in judgment.scores}
    rewards = rewards_of(judgment)
    ranked = [m.trajectory_id for m in group.members if m.trajectory_id in rewards]
    advantages = dict(zip(ranked, grpo_advantages([rewards[m] for m in ranked]), strict=True))
    return JudgedGroup(
        group=group,
        judgment_key=judgment.key,
        judge=f"{judgment.judge_model} {judgment.judge_version}",
        outcomes=judgment.outcomes,
        left_out=judgment.left_out,
        scores=scores,
        rewards=rewards,
        explanations={s.trajectory_id: s.explanation for s in judgment.scores},
        advantages=advantages,
        hindsight=hindsight,
    )


def _make_rows(
    conn: sa.Connection,
    windows: Sequence[str],
    what: What,
    with_hindsight: bool,
    progress: Progress,
) -> Iterator[Json]:
    index = 0
    for window_id in windows:
        judged = _read_judged(conn, window_id, with_hindsight=with_hindsight)
        if what == "groups":
            yield group_row(judged)
        else:
            for row in turn_rows(judged):
                row["extra_info"] = {"index": index, **row["extra_info"]}
                index += 1
                yield row
        progress()


def _write_parquet(file: Any, columns: "pa.Schema", rows: Iterator[Json]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    written = 0
    with pq.ParquetWriter(file, columns, compression="zstd") as writer:
        for batch in _batch_rows(rows):
            writer.write_table(pa.Table.from_pylist(batch, schema=columns))
            written += len(batch)
    return written


def _write_jsonl(file: Any, columns: "pa.Schema", rows: Iterator[Json]) -> int:
    import msgspec

    encoder, written = msgspec.json.Encoder(), 0
    for row in rows:
        file.write(encoder.encode({name: row[name] for name in columns.names}) + b"\n")
        written += 1
    return written


def _batch_rows(rows: Iterator[Json]) -> Iterator[list[Json]]:
    batch: list[Json] = []
    chars = 0
    for row in rows:
        batch.append(row)
        chars += _count_chars(row)
        if len(batch) >= ROWS_AT_ONCE or chars >= CHARS_AT_ONCE:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _count_chars(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_count_chars, value.values()))
    return sum(map(_count_chars, value)) if isinstance(value, list) else 8


def _explain_nothing(first: HourWindow | None, last: HourWindow | None, left_out: int) -> str:
    range_ = f"from {first or 'the beginning'} to {last or 'the end'}"
    if left_out:
        return (
            f"no window {range_} may train: {left_out} are grouped but not judged, kept out by a check, or changed since; "
            "`babylon-rl check-windows` shows which, `babylon-rl materialize --from … --to …` judges them"
        )
    return (
        f"no window {range_} is grouped; run `babylon-rl materialize --from … --to …` over the hours to export, "
        "or choose other hours"
    )
