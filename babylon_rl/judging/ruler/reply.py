"""The schema of a judge's reply, and a parser that accepts nothing else.

A fault is worded so that it can be shown to the judge; `judge.py` decides whether to ask again.
"""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from babylon_rl.judging.judge import in_unit_interval

# Without the ids as an enum: a schema that changes with each call costs seconds to compile at the provider.
RESPONSE_FORMAT: Final[dict[str, Any]] = {
    "type": "json_schema",
    "json_schema": {
        "name": "trajectory_scores",
        "strict": True,
        "schema": {
            "type": "object",
            "additionalProperties": False,
            "required": ["scores"],
            "properties": {
                "scores": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["trajectory_id", "reasons", "score"],
                        # In this order: a judge that must give its reasons first scores by them.
                        "properties": {
                            "trajectory_id": {"type": "string", "description": "The id as given, to the letter."},
                            "reasons": {"type": "string", "description": "Two or three sentences, before the score."},
                            "score": {"type": "number", "description": "From 0 to 1."},
                        },
                    },
                }
            },
        },
    },
}


class ReplyFault(Exception):  # noqa: N818  # not an error of ours: a judge's, shown to the judge
    """What is wrong with a reply, in a sentence that the judge can act on."""


class ReplyScore(BaseModel):
    """One score of a reply."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    trajectory_id: str
    reasons: str
    score: float


class _Reply(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    scores: list[ReplyScore]


def read_reply(text: str, ids: Iterable[str]) -> dict[str, ReplyScore]:
    """Read a judge's reply.

    Args:
        text: The reply, as it came.
        ids: The ids given out, each of which must be scored exactly once.

    Returns:
        Scores by id, each finite and in [0, 1]. The order of the reply plays no part.

    Raises:
        ReplyFault: Anything else: nothing is repaired, guessed or matched by position.
    """
    if not text.strip():
        raise ReplyFault("The reply was empty.")
    if text.lstrip().startswith("```"):
        raise ReplyFault("The reply was wrapped in a Markdown fence. Send the bare JSON object.")
    try:
        decoded = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_double_keys)
    except ReplyFault:
        raise
    except (ValueError, RecursionError) as e:
        where = f" ({e.msg} at character {e.pos})" if isinstance(e, json.JSONDecodeError) else ""
        fault = ReplyFault(f"The reply was not one complete JSON object{where}.")
    else:
        return _match_ids(decoded, set(ids))
    raise fault


def _match_ids(decoded: Any, wanted: set[str]) -> dict[str, ReplyScore]:
    try:
        scores = _Reply.model_validate(decoded).scores
    except ValidationError as e:
        first = e.errors(include_input=False, include_url=False)[0]
        at = ".".join(map(str, first["loc"])) or "the object"
        at = at if len(at) <= 80 else f"{at[:79]}…"
        fault = ReplyFault(f"The reply does not follow the schema: {at}: {first['msg']}.")
    else:
        counts = Counter(s.trajectory_id for s in scores)
        faults = [
            *(f"{_shorten(t)} was not scored" for t in sorted(wanted - counts.keys())),
            *(f"{_shorten(t)} is no id of this prompt" for t in sorted(counts.keys() - wanted)),
            *(f"{_shorten(t)} was scored {n} times" for t, n in sorted(counts.items()) if n > 1),
            *(
                f"{_shorten(s.trajectory_id)} got {s.score:g}, outside [0, 1]"
                for s in scores
                if not in_unit_interval(s.score)
            ),
        ]
        if not faults:
            return {s.trajectory_id: s for s in scores}
        fault = ReplyFault(f"Each id must be scored exactly once, from 0 to 1: {'; '.join(faults[:12])}.")
    raise fault


def _refuse_constant(name: str) -> float:
    raise ReplyFault(f"A score was {name}, which is no number from 0 to 1.")


def _refuse_double_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`{"score": 0.1, "score": 0.9}` is ambiguous; Python would keep the last."""
    if len({k for k, _ in pairs}) != len(pairs):
        raise ReplyFault("An object of the reply has the same key twice.")
    return dict(pairs)


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 24 else text[:23] + "…")
