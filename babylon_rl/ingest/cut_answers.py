"""Whether an answer was cut at its length limit: such an answer has no end, and none must be learned from it."""

from typing import Final, TypedDict

from babylon_rl.ingest.rows import LlmCall

CUT: Final = frozenset({"length", "max_tokens", "max_output_tokens", "content_filter"})
"""Finish reasons of answers that somebody else ended, by the names of OpenAI, Anthropic and Google."""


class CutFields(TypedDict, total=False):
    """Fields of a `Turn`; empty where the answer ended by itself, or nothing tells otherwise."""

    is_cut: bool
    max_tokens: int


def find_cut(call: LlmCall) -> CutFields:
    """What a logged call says: its finish reason, else its tokens against its limit.

    Where it logs a limit and no count, only a tokenizer can tell: the limit is handed on, unless the answer has fewer
    bytes than that (no token is shorter than a byte).
    """
    if call.finish_reason is not None:
        return {"is_cut": True} if call.finish_reason.lower() in CUT else {}
    limit = call.max_tokens
    if limit is None or limit < 1:
        return {}
    if call.completion_tokens is not None:
        return {"is_cut": True} if call.completion_tokens >= limit else {}
    return {"max_tokens": int(limit)} if len(call.response.encode()) >= limit else {}
