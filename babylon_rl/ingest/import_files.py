"""Trajectories that the game wrote as JSON files, one each, into our own `trajectories`.

Without a database the game's second generation writes `training-data-output/trajectories/<id>.json`:
`{"trajectory": {…a row in camelCase…}, "rewardJudgment": …, "llmCalls": […]}`. The calls stand in the row's steps too, and
the judgment is the game's own, so only the row is taken. A bare row is read as well.

One file at a time is in memory, and one chunk of rows. Chunks are committed, so an import that ends early is
finished by the next.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.database import game_tables
from babylon_rl.database.bulk_copy import insert_new
from babylon_rl.database.ownership import created_by_us
from babylon_rl.errors import ConfigError, DataError
from babylon_rl.ingest.steps import BadRowError, parse_instant_ms, parse_json, parse_number, replace_lone_surrogates
from babylon_rl.types import Json

logger = logging.getLogger(__name__)

_FILES_AT_ONCE: Final = 100
_BYTES_AT_ONCE: Final = 32_000_000
_LARGEST_FILE: Final = 256_000_000  # bytes; a row of PostgreSQL holds less than 1 GB, and this file is one row
_MOST_INT: Final = 2**31 - 1
_UNSTORABLE: Final = re.compile("[\ud800-\udfff\0]")
# The game's own reward, which it may write again; a row is the same row whatever it says.
_REWARD: Final = ("ai_judge_reward", "ai_judge_reasoning", "judged_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What became of the files of a folder; together they are all of them."""

    written: int
    unchanged: int
    failed: int


class _BadFileError(Exception):
    """A file that cannot be taken; the text says why, without its name."""


def import_folder(
    engine: sa.Engine, folder: Path, *, complain: Callable[[str], None], progress: Progress = ignore_progress
) -> ImportReport:
    """Write every trajectory of a folder that is not in the table yet.

    Args:
        engine: The database whose `trajectories` our migrations created.
        folder: With `*.json` in it, or with a folder `trajectories` that has them.
        complain: Called with a sentence for each file that is not taken: it cannot be read as a trajectory, or the table
            holds another row under its id, which stays as it is.
        progress: Called with the number of files, and after each file.

    Raises:
        ConfigError: The game's tables in this database are not ours to write.
        DataError: There is no file to import.
    """
    with engine.connect() as conn:
        if not created_by_us(conn, "trajectories"):
            raise ConfigError(
                "the game's tables in this database were not created by babylon-rl, so nothing is imported into them; "
                "point DATABASE_URL at a database of ours, or unset it to use the embedded one"
            )
    files = _list_files(folder)
    progress(0, total=len(files))
    counts = {"written": 0, "unchanged": 0, "failed": 0}

    def flush(rows: Sequence[tuple[Path, Json]]) -> None:
        with engine.begin() as conn:
            written, different = _write(conn, [row for _, row in rows])
        for path, row in rows:
            if row["trajectory_id"] in different:
                complain(
                    f"{path} holds trajectory {row['trajectory_id']!r}, and the table another row under that id or the id "
                    f"{row['id']!r}: {different[row['trajectory_id']]}; the stored row stays; delete it to import this file"
                )
        counts["written"] += written
        counts["failed"] += len(different)
        counts["unchanged"] += len(rows) - written - len(different)

    for chunk in _read_chunks(files, counts, complain, progress):
        flush(chunk)
    report = ImportReport(**counts)
    logger.info("imported written=%d unchanged=%d failed=%d", report.written, report.unchanged, report.failed)
    return report


def _list_files(folder: Path) -> list[Path]:
    """The JSON files of a folder, by name; of its folder `trajectories` where it has none itself."""
    for where in (folder, folder / "trajectories"):
        if where.is_dir() and (files := sorted(p for p in where.iterdir() if p.suffix == ".json")):
            return files
    raise DataError(
        f"{folder} holds no .json file, and neither does a folder 'trajectories' in it; expected the folder that the game "
        "wrote its trajectories to, such as training-data-output"
    )


def _read_chunks(
    files: Sequence[Path], counts: dict[str, int], complain: Callable[[str], None], progress: Progress
) -> Iterator[list[tuple[Path, Json]]]:
    """The rows of the files that can be read, some at a time; each id at most once in a chunk."""
    chunk: list[tuple[Path, Json]] = []
    size, ids = 0, set[str]()
    for done, path in enumerate(files, start=1):
        try:
            row = _read_row(path)
        except _BadFileError as e:
            complain(f"{path} was not imported: {e}")
            counts["failed"] += 1
        else:
            if row["trajectory_id"] in ids or len(chunk) == _FILES_AT_ONCE or size > _BYTES_AT_ONCE:
                yield chunk
                chunk, size, ids = [], 0, set()
            chunk.append((path, row))
            ids.add(row["trajectory_id"])
            size += len(row["steps_json"])
        progress(done, total=len(files))
    if chunk:
        yield chunk


def _write(conn: sa.Connection, rows: Sequence[Json]) -> tuple[int, dict[str, str]]:
    """Write the new ones. Returns how many, and by trajectory id what differs in the rows that were there already."""
    stored = _read_stored(conn, rows)
    new = [r for r in rows if r["trajectory_id"] not in stored]
    written = insert_new(conn, game_tables.trajectories, new, key="trajectory_id")
    if written < len(new):  # another import was quicker, or another trajectory has the same `id`
        stored |= {r["trajectory_id"]: {} for r in new} | _read_stored(conn, new)
    different = {}
    for row in rows:
        old = stored.get(row["trajectory_id"])
        if old is not None and (names := [c for c in row if c not in _REWARD and old.get(c) != row[c]]):
            different[row["trajectory_id"]] = f"{', '.join(names[:3])} differ" if old else "its id is taken"
    return written, different


def _read_stored(conn: sa.Connection, rows: Sequence[Json]) -> dict[str, Json]:
    t = game_tables.trajectories
    columns = [t.c[name] for name in rows[0]] if rows else []
    query = sa.select(*columns).where(t.c.trajectory_id.in_([r["trajectory_id"] for r in rows]))
    return {r["trajectory_id"]: dict(r) for r in conn.execute(query).mappings()} if rows else {}


def _read_row(path: Path) -> Json:
    """A file as a row of our `trajectories`, all columns in the same order.

    Raises:
        _BadFileError: It cannot be read, is no JSON, or lacks what a row needs.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise _BadFileError(f"it is larger than {_LARGEST_FILE:,} bytes; expected one trajectory a file")
        found = parse_json(path.read_bytes())
    except OSError as e:
        raise _BadFileError(f"it cannot be read ({e.strerror})") from None
    except BadRowError:
        raise _BadFileError("it is no JSON, perhaps cut off; let the game write it again") from None
    if isinstance(found, dict) and isinstance(found.get("trajectory"), dict):
        found = found["trajectory"]
    if not isinstance(found, dict):
        raise _BadFileError(f"it holds a {type(found).__name__}; expected an object with a 'trajectory'")
    trajectory_id = _text(found, "trajectoryId", required=True)
    return {
        "id": _text(found, "id") or trajectory_id,
        "trajectory_id": trajectory_id,
        "agent_id": _text(found, "agentId", required=True),
        "start_time": _instant(found, "startTime", required=True),
        "end_time": _instant(found, "endTime"),
        "duration_ms": _count(found, "durationMs"),
        "window_id": _text(found, "windowId", most=50),
        "episode_id": _text(found, "episodeId", most=100),
        "scenario_id": _text(found, "scenarioId", most=100),
        "batch_id": _text(found, "batchId", most=100),
        "steps_json": _json(found, "stepsJson", required=True),
        "reward_components_json": _json(found, "rewardComponentsJson"),
        "metrics_json": _json(found, "metricsJson"),
        "metadata_json": _json(found, "metadataJson"),
        "total_reward": parse_number(found.get("totalReward")) or 0.0,
        "episode_length": _count(found, "episodeLength") or 0,
        "final_status": _text(found, "finalStatus") or "completed",
        "final_balance": parse_number(found.get("finalBalance")),
        "final_pnl": parse_number(found.get("finalPnL")),
        "trades_executed": _count(found, "tradesExecuted"),
        "posts_created": _count(found, "postsCreated"),
        "ai_judge_reward": parse_number(found.get("aiJudgeReward")),
        "ai_judge_reasoning": _text(found, "aiJudgeReasoning"),
        "judged_at": _instant(found, "judgedAt"),
        "is_training_data": found.get("isTrainingData") is not False,
        "is_evaluation": found.get("isEvaluation") is True,
        "archetype": _text(found, "archetype", most=50),
    }


def _text(found: Json, key: str, *, required: bool = False, most: int | None = None) -> str | None:
    value = found.get(key)
    if value is None or value == "":
        if required:
            raise _BadFileError(f"it has no {key!r}; expected the row as the game writes it")
        return None
    if not isinstance(value, str):
        raise _BadFileError(f"its {key!r} is a {type(value).__name__}; expected text")
    if most is not None and len(value) > most:
        raise _BadFileError(f"its {key!r} has {len(value)} characters; the column holds {most}")
    # No column holds NUL or half an emoji; in what an agent said they stand escaped, in the JSON of the steps.
    return str(replace_lone_surrogates(value)).replace("\0", "�")


def _json(found: Json, key: str, *, required: bool = False) -> str:
    """A column of JSON text as it is; a value in its place is written as such text."""
    value = found.get(key)
    if value is None and not required:
        return "{}"
    if not isinstance(value, str | list | dict):
        raise _BadFileError(f"its {key!r} is a {type(value).__name__}; expected JSON as text")
    text = value if isinstance(value, str) else json.dumps(value)
    return _UNSTORABLE.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


def _instant(found: Json, key: str, *, required: bool = False) -> datetime | None:
    """Naive and UTC, in whole milliseconds, as the column holds it."""
    value = found.get(key)
    ms = parse_instant_ms(value)
    if ms is None:
        if required or value is not None:
            raise _BadFileError(f"its {key!r} is {str(value)[:40]!r}; expected an ISO time, or milliseconds since 1970")
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).replace(tzinfo=None)


def _count(found: Json, key: str) -> int | None:
    value = parse_number(found.get(key))
    return None if value is None or abs(value) > _MOST_INT else round(value)
