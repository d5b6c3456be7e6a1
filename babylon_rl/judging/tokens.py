"""How many tokens a text is, without asking anybody: for budgets, context limits and metadata.

Counted with tiktoken's `o200k_base`, whose table ships inside litellm (a file, nothing is fetched). Where it cannot be
loaded: UTF-8 bytes / 3.2, which lies above the truth for English and JSON. Other models' tokenizers differ by some per
cent; what was paid is what the server reports, never this.
"""

import importlib.util
import logging
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

ENCODING: Final = "o200k_base"
BYTES_PER_TOKEN: Final = 3.2
# A prompt repeats its lines (escaped line breaks in JSON, real ones between records), so each is counted once.
_SEGMENT: Final = re.compile(r"(?=\\n)|(?<=\n)")


class TokenCounter:
    """Counts texts that repeat each other; keeps the count of each line, so make one for each group."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def count(self, text: str) -> int:
        """Tokens of a text; counted line by line, so up to one token a line above the whole text's count."""
        total = 0
        known, count = self._known, _count()
        for segment in _SEGMENT.split(text):
            n = known.get(segment)
            if n is None:
                n = known[segment] = count(segment)
            total += n
        return total


def counted_with() -> str:
    """What counts here: `tiktoken o200k_base`, or the estimate by bytes."""
    return f"tiktoken {ENCODING}" if _encode() is not None else f"UTF-8 bytes / {BYTES_PER_TOKEN}"


def _count() -> Callable[[str], int]:
    encode = _encode()
    return by_bytes if encode is None else lambda text: len(encode(text))


def by_bytes(text: str) -> int:
    """The estimate without a tokenizer, rounded up."""
    return -int(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


@cache
def _encode() -> Callable[[str], list[int]] | None:
    spec = importlib.util.find_spec("litellm")  # locates, does not import
    table = Path(spec.origin).parent / "litellm_core_utils" / "tokenizers" if spec and spec.origin else None
    if table is None or not table.is_dir():
        logger.warning("no token table found, tokens are estimated bytes_per_token=%s", BYTES_PER_TOKEN)
        return None
    # Written, not read: tiktoken's one way to be told of a local table, as litellm itself does.
    os.environ["TIKTOKEN_CACHE_DIR"] = str(table)
    try:
        import tiktoken

        return tiktoken.get_encoding(ENCODING).encode_ordinary
    except Exception as e:  # noqa: BLE001  # no table or no package: a count must never cost a judgment
        logger.warning("tokens are estimated bytes_per_token=%s cause=%s", BYTES_PER_TOKEN, type(e).__name__)
        return None
