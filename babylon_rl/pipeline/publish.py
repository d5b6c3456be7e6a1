"""Publish into the game's own tables what we did with its rows: batches, models, rewards. Twice writes nothing twice.

Written are the rows of `training_batches`, `trained_models` and `reward_judgments` whose ids begin with our mark, and the
reward columns of `trajectories`; no other row and no other column. All of it in one transaction: a killed run wrote nothing.
`docs/publish.md` says what each column means. No number is said of a game that it was not measured in.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from babylon_rl.database.locks import Lock, lock_transaction
from babylon_rl.database.ownership import created_by_us
from babylon_rl.errors import ConfigError, DataError
from babylon_rl.ingest.published_tables import PublishedTable, PublishedTables, describe_row, find_published_tables
from babylon_rl.pipeline.published_values import (
    Measured,
    RowJudgment,
    make_batch_row,
    make_model_row,
    make_row_judgments,
    read_measured,
)
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.ledger_identity import read_ledger_id
from babylon_rl.store.publishable import read_batches, stream_judged_rows
from babylon_rl.types import Json, policy_name

logger = logging.getLogger(__name__)

MARK: Final = "babylon_rl"
# What of a model's row changes after it was written; its batch's row only gains what was measured since.
_CHANGING: Final = (
    "status",
    "deployed_at",
    "archived_at",
    "avg_reward",
    "eval_metrics",
    "agents_using",
    "total_inferences",
)


@dataclass(slots=True, kw_only=True)
class TableCounts:
    """What was written into one table, or would be.

    Attributes:
        kept: Rows under one of our keys that another writer wrote; they stay as they are.
        gone: Rows that were read once and that the table does not hold any more.
        example: The first row, by the table's own names of its columns.
    """

    table: str
    new: int = 0
    changed: int = 0
    given: int = 0
    kept: int = 0
    gone: int = 0
    example: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unchanged(self) -> int:
        return self.given - self.new - self.changed - self.kept - self.gone

    def sentence(self, *, dry_run: bool) -> str:
        verb = "would be " if dry_run else ""
        parts = [
            f"{self.new:,} {verb}written",
            f"{self.changed:,} {verb}updated",
            f"{self.unchanged:,} already as they are",
        ]
        if self.table == "trajectories":
            parts = parts[1:]
        if self.kept:
            parts.append(f"{self.kept:,} of another writer left alone")
        if self.gone:
            parts.append(f"{self.gone:,} no longer there")
        return f"{self.table}: {', '.join(parts)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What one publication did, or would do.

    Attributes:
        notes: Sentences about what the game has no place for, or our role no right to.
        changed_windows: Windows that were grouped anew since they trained: their rows keep what they had.
    """

    tables: Sequence[TableCounts]
    notes: Sequence[str]
    changed_windows: int
    dry_run: bool

    @property
    def is_unchanged(self) -> bool:
        return not any(c.new or c.changed for c in self.tables)


def publish(workspace: Workspace, *, dry_run: bool = False, into_foreign_game: bool = False) -> Publication:
    """Write what is known of the workspace's lineage and of all judged rows into the game's tables.

    Args:
        workspace: Its ledger and judgments are read; its game is written.
        dry_run: Count what would be written, and write nothing; needs no right to write.
        into_foreign_game: Write although our migrations did not create the tables.

    Raises:
        ConfigError: The tables are another game's and that was not asked for, our role may not write one of them, or there
            is none of them.
        DataError: Another writer's row has the id of one of our batches or models.
    """
    with workspace.game.connect() as conn, conn.begin() as transaction:
        lock_transaction(conn, Lock.PUBLISH, "all")
        found = find_published_tables(conn)
        is_ours = workspace.game is workspace.store.engine and created_by_us(conn, *found.tables)
        _require_writable(found, is_ours=is_ours, dry_run=dry_run, into_foreign_game=into_foreign_game)
        writer = _Writer(workspace, conn, found, dry_run=dry_run)
        writer.write_batches(read_measured(workspace, is_ours=is_ours))
        writer.write_rewards()
        if dry_run:
            transaction.rollback()
    notes = [*found.absent]
    if dry_run:
        notes += [f"our role could not write: {sentence}" for sentence in found.denied]
        if not is_ours and not into_foreign_game:
            notes.append("these tables are another game's: only --into-foreign-game writes them")
    done = Publication(
        tables=list(writer.counts.values()), notes=notes, changed_windows=writer.changed_windows, dry_run=dry_run
    )
    logger.info(
        "published lineage=%s new=%d changed=%d dry_run=%s",
        workspace.settings.lineage,
        sum(c.new for c in done.tables),
        sum(c.changed for c in done.tables),
        dry_run,
    )
    return done


def _require_writable(found: PublishedTables, *, is_ours: bool, dry_run: bool, into_foreign_game: bool) -> None:
    if not found.tables:
        raise ConfigError(f"nothing can be published: {'; '.join(found.absent)}; check DATABASE_URL (and its ?schema=)")
    if dry_run:
        return
    if not is_ours and not into_foreign_game:
        raise ConfigError(
            "publish writes into the game's tables, and those of DATABASE_URL are another game's: our migrations did not create "
            "them, so nothing was written; look at what would be written with --dry-run, then repeat with --into-foreign-game"
        )
    if found.is_read_only:
        raise ConfigError(
            "publish writes into the game's tables, and this connection to DATABASE_URL may only read (a standby, or "
            "default_transaction_read_only); nothing was written; name the primary, or a role that may write"
        )
    if found.denied:
        raise ConfigError(
            f"publish may not write into {len(found.denied)} of the game's tables; nothing was written; as their owner run: "
            + " ".join(found.denied)
        )


# ── writing ────────────────────────────────────────────────────────────────────────────────────────


class _Writer:
    """One publication under way, in the transaction of `conn`."""

    def __init__(self, workspace: Workspace, conn: sa.Connection, found: PublishedTables, *, dry_run: bool) -> None:
        self.workspace, self.conn, self.tables, self.dry_run = workspace, conn, found.tables, dry_run
        self.lineage = workspace.settings.lineage
        # Another database of ours that publishes into the same game has another mark.
        self.mark = f"{MARK}/{read_ledger_id(workspace.store.engine)[:8]}/"
        self.counts = {name: TableCounts(table=name) for name in found.tables}
        self.changed_windows = 0

    def _batch_id(self, step: int) -> str:
        return f"{self.mark}{policy_name(self.lineage, step)}"

    def write_batches(self, measured: Measured) -> None:
        """A row per checkpoint in each of the two tables, where the game has them."""
        batches, models = self.tables.get("training_batches"), self.tables.get("trained_models")
        if batches is None and models is None:
            return
        now = self.workspace.now()
        for batch in read_batches(self.workspace.store.engine, self.lineage):
            made = make_batch_row(self.workspace, batch, measured, batch_id=self._batch_id(batch.step))
            self.changed_windows += made.changed_windows
            if batches is not None:
                self._write(batches, [made.row], ["policy_improvement"], key="batch_id")
            if models is not None:
                row = make_model_row(batch, made, measured, now=now)
                self._write(models, [row], _CHANGING, key="model_id", touch=["updated_at"])

    def write_rewards(self) -> None:
        """The reward columns of every judged row, and a row of `reward_judgments` for each, where the game has them."""
        rewards, judgments = self.tables.get("trajectories"), self.tables.get("reward_judgments")
        if rewards is None and judgments is None:
            return
        for windows in stream_judged_rows(self.workspace.store.engine, self.lineage):
            rows = list(make_row_judgments(windows))
            if rows and rewards is not None:
                self._write_reward_columns(rewards, rows)
            if rows and judgments is not None:
                given = [r.judgment_row(f"{self.mark}{r.row.trajectory_id}") for r in rows]
                names = [n for n in given[0] if n not in ("id", "trajectory_id")]
                self._write(judgments, given, names, key="trajectory_id")

    def _write_reward_columns(self, table: PublishedTable, rows: Sequence[RowJudgment]) -> None:
        given = [r.reward_columns(None if r.trained is None else self._batch_id(r.trained)) for r in rows]
        values = _take(table, ("ai_judge_reward", "ai_judge_reasoning", "judged_at"))
        if "used_in_training" in table.columns:
            x, s = (table.column("used_in_training", alias) for alias in "xs")
            values["used_in_training"] = f"coalesce({x}, false) OR {s}"
        if "trained_in_batch" in table.columns:
            x, s = (table.column("trained_in_batch", alias) for alias in "xs")
            is_ours = f"{x} IS NULL OR starts_with({x}, %(own_batches)s)"
            values["trained_in_batch"] = f"CASE WHEN {s} IS NOT NULL AND ({is_ours}) THEN {s} ELSE {x} END"
        counts = self.counts[table.name]
        counts.given += len(given)
        counts.gone += len(given) - table.count_present(self.conn, given)
        own = {"own_batches": self._batch_id(0).removesuffix("0")}
        counts.changed += table.update_changed(self.conn, given, values, more=own, dry_run=self.dry_run)
        counts.example = counts.example or describe_row(table, given[0])

    def _write(
        self, table: PublishedTable, rows: Sequence[Json], names: Sequence[str], *, key: str, touch: Sequence[str] = ()
    ) -> None:
        """Insert the rows that are not there, and update those of ours that differ in `names`; another writer's stay."""
        counts = self.counts[table.name]
        others = table.find_others(self.conn, rows, key=key)
        is_judgment = table.name == "reward_judgments"
        if others and not is_judgment:
            raise DataError(
                f"the game's table {table.name!r} has a row with {key} {others[0]!r} that another writer, or another database of "
                "ours, wrote; nothing was written; set BABYLON_LINEAGE to a name of its own, or delete that row",
                facts={"table": table.name, key: others[0]},
            )
        only_if, trajectories = "true", self.tables.get("trajectories")
        if is_judgment and trajectories is not None:  # the game's own foreign key
            own, theirs = table.column("trajectory_id", "s"), trajectories.column("trajectory_id", "t")
            only_if = f"EXISTS (SELECT FROM {trajectories.sql} t WHERE {theirs} = {own})"  # names from the catalog
            counts.gone += len(rows) - trajectories.count_present(self.conn, rows, key="trajectory_id")
        counts.given += len(rows)
        counts.kept += len(others)
        counts.changed += table.update_changed(
            self.conn, rows, _take(table, names), touch=_take(table, touch), dry_run=self.dry_run
        )
        counts.new += table.insert_missing(self.conn, rows, key=key, only_if=only_if, dry_run=self.dry_run)
        counts.example = counts.example or describe_row(table, rows[0])


def _take(table: PublishedTable, names: Sequence[str]) -> dict[str, str]:
    """SQL of the given row's value of each column that the table has."""
    return {n: table.column(n, "s") for n in names if n in table.columns}
