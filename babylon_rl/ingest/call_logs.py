"""Writes single calls into the game's `llm_call_logs`, for agents whose calls somebody else sees: the gateway.

What belongs here: the row of a call, in whichever spelling the database has. The steps of a trajectory are its agent's to
write; the two meet in `ingest/reader.py`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from babylon_rl.database import game_tables
from babylon_rl.database.bulk_copy import insert_new
from babylon_rl.database.ownership import created_by_us
from babylon_rl.errors import ConfigError
from babylon_rl.ingest.columns import ignore_case
from babylon_rl.ingest.steps import make_storable
from babylon_rl.types import Json

_TABLE: Final = "llm_call_logs"
_REQUIRED: Final = (
    "id",
    "trajectory_id",
    "step_id",
    "call_id",
    "timestamp",
    "system_prompt",
    "user_prompt",
    "response",
)
_SYSTEM: Final = ("system", "developer")
# Prisma's table takes no null here. A reader of the game takes a limit below 1 for none; an answer without one was not cut by it.
_FILLERS: Final = {"max_tokens": 0, "temperature": 0.0}
_CATALOG: Final = sa.text(
    "SELECT attname, attnotnull AND NOT atthasdef AND attidentity = '' FROM pg_attribute "
    "WHERE attrelid = to_regclass(:name) AND attnum > 0 AND NOT attisdropped"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredCall:
    """One call of an agent, as it was sent and answered.

    Attributes:
        step_number: Of the agent's step, from 0; None: not said, and the call's time tells.
        answered_at: Aware.
        model: As it was asked for.
        model_version: The policy that answered, `babylon-mmo@3`.
        messages: As sent, in OpenAI's form.
        max_tokens: As sent.
    """

    call_id: str
    trajectory_id: str
    step_number: int | None
    answered_at: datetime
    model: str
    model_version: str
    purpose: str
    messages: Sequence[Json]
    response: str
    reasoning: str | None
    temperature: float | None
    max_tokens: int | None
    top_p: float | None
    finish_reason: str | None
    latency_ms: float | None
    prompt_tokens: int | None
    completion_tokens: int | None


def find_prompts(messages: Sequence[Json]) -> tuple[str, str] | None:
    """The system and the user prompt of a call; None where these are not all that was sent: a dialogue, tools, pictures.

    The game keeps two texts for a call, and what trains must be what the policy was shown: of a dialogue nothing trains.
    """
    system, user = "", ""
    if len(messages) == 2 and messages[0].get("role") in _SYSTEM:
        own = _read_text(messages[0])
        if own is None:
            return None
        system = own
    elif len(messages) != 1:
        return None
    if messages[-1].get("role") != "user":
        return None
    found = _read_text(messages[-1])
    if found is None:
        return None
    user = found
    return system, user


def write_call_logs(conn: sa.Connection, calls: Sequence[AnsweredCall], *, into_foreign_game: bool = False) -> int:
    """Write the calls that are not there yet, by COPY.

    Args:
        conn: An open transaction on the game's database; the caller commits.
        calls: In any order.
        into_foreign_game: Write although our migrations did not create the table.

    Returns:
        How many were written.

    Raises:
        ConfigError: Nothing may be written there.
    """
    if not calls:
        return 0
    columns, required = _find_columns(conn, into_foreign_game=into_foreign_game)
    rows = [
        {
            columns[k]: _FILLERS.get(k) if v is None and k in required else v
            for k, v in _make_row(c).items()
            if k in columns
        }
        for c in calls
    ]
    # The table as this database spells it.
    types = {columns[c.name]: c.type for c in game_tables.llm_call_logs.columns if c.name in columns}
    table = sa.Table(_TABLE, sa.MetaData(), *(sa.Column(name, kind) for name, kind in types.items()))
    return insert_new(conn, table, rows, key=columns["call_id"])


def _find_columns(conn: sa.Connection, *, into_foreign_game: bool) -> tuple[Mapping[str, str], Collection[str]]:
    """Our name of each column that the table has → its own; and those, by our names, that take no null."""
    if not into_foreign_game and not created_by_us(conn, _TABLE):
        raise ConfigError(
            f"calls of agents are not logged in table {_TABLE!r}: our migrations did not create it, so it is another game's "
            "to write; that game logs its agents' calls itself, or give the gateway --into-foreign-game"
        )
    catalog = conn.execute(_CATALOG, {"name": _TABLE}).all()
    found = {ignore_case(name): name for name, _ in catalog}
    columns = {c.name: found[key] for c in game_tables.llm_call_logs.columns if (key := ignore_case(c.name)) in found}
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise ConfigError(
            f"calls of agents are not logged: the game's database has no table {_TABLE!r} with a column {missing[0]!r} in any "
            "spelling; expected the game's schema; check DATABASE_URL and its ?schema="
        )
    ours = {theirs: name for name, theirs in columns.items()}
    required = {name for name, takes_no_null in catalog if takes_no_null}
    unknown = sorted(required - ours.keys())
    if unknown:
        raise ConfigError(
            f"calls of agents are not logged: table {_TABLE!r} has a column {unknown[0]!r} that takes no null, and nothing is "
            "known of it; give it a default"
        )
    if not conn.scalar(sa.text("SELECT has_table_privilege(to_regclass(:name), 'INSERT')"), {"name": _TABLE}):
        raise ConfigError(
            f"calls of agents are not logged: the role of DATABASE_URL may not INSERT into table {_TABLE!r}; grant that"
        )
    return columns, {ours[name] for name in required}


def _make_row(c: AnsweredCall) -> Json:
    prompts = find_prompts(c.messages)
    system, user = prompts or ("", "")
    known = c.prompt_tokens is not None and c.completion_tokens is not None
    total = (c.prompt_tokens or 0) + (c.completion_tokens or 0)
    metadata: Json = {"modelVersion": c.model_version, "gateway": c.call_id}
    if c.finish_reason is not None:
        metadata["finishReason"] = c.finish_reason
    at = c.answered_at.astimezone(UTC)
    return {
        "id": c.call_id,
        "trajectory_id": make_storable(c.trajectory_id),
        "step_id": make_storable(c.trajectory_id if c.step_number is None else f"{c.trajectory_id}-{c.step_number}"),
        "call_id": c.call_id,
        # The column keeps milliseconds and rounds: 10:59:59.9996 would be stored as the next hour.
        "timestamp": at.replace(microsecond=at.microsecond // 1000 * 1000, tzinfo=None),
        "latency_ms": None if c.latency_ms is None else round(c.latency_ms),
        "model": make_storable(c.model),
        "purpose": make_storable(c.purpose),
        "system_prompt": make_storable(system),
        "user_prompt": make_storable(user),
        "messages_json": None if prompts else make_storable(msgspec.json.encode(c.messages).decode()),
        "response": make_storable(c.response),
        "reasoning": None if c.reasoning is None else make_storable(c.reasoning),
        "temperature": c.temperature,
        "max_tokens": c.max_tokens,
        "top_p": c.top_p,
        "prompt_tokens": c.prompt_tokens,
        "completion_tokens": c.completion_tokens,
        "total_tokens": total if known and total < 2**31 else None,
        "metadata": msgspec.json.encode(metadata).decode(),
    }


def _read_text(message: Json) -> str | None:
    """The message's text where that is all of it; several parts are one text, as our engine reads them."""
    content: Any = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or any(not isinstance(p, dict) or p.get("type") != "text" for p in content):
        return None
    return "".join(str(p.get("text", "")) for p in content)
