"""Token counts without a request: for budgets, context limits and metadata.

Counted with tiktoken's `o200k_base`, whose table ships inside litellm (a file, nothing is fetched). Where it cannot be
loaded: UTF-8 bytes / 3.2, which is too high for English and JSON. Other models' tokenizers differ by a few per cent;
costs are booked by what the server reports, never by this.
"""

import importlib.util
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

ENCODING: Final = "o200k_base"
BYTES_PER_TOKEN: Final = 3.2
_BREAK: Final = "\\n"  # a line break inside a JSON string: prompts repeat the lines between


def count_tokens(*texts: str) -> tuple[int, ...]:
    """Tokens of each text, for texts that repeat their lines and each other's: each distinct line is tokenised once.

    Lines end at escaped line breaks. Those that occur equally often are joined before they are tokenised, so the sum is
    within a per cent of the whole text's count.
    """
    occurrences: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        for line in text.split(_BREAK):
            occurrences.setdefault(line, [0] * len(texts))[i] += 1
    lines_by_pattern: dict[tuple[int, ...], list[str]] = {}
    for line, times in occurrences.items():
        lines_by_pattern.setdefault(tuple(times), []).append(line)
    totals = [0] * len(texts)
    count = _choose_counter()
    for pattern, lines in lines_by_pattern.items():
        tokens = count(_BREAK.join(lines) + _BREAK)
        for i, n in enumerate(pattern):
            totals[i] += n * tokens
    return tuple(totals)


def _choose_counter() -> Callable[[str], int]:
    encode = _load_encoder()
    return estimate_by_bytes if encode is None else lambda text: len(encode(text))


def estimate_by_bytes(text: str) -> int:
    """The estimate without a tokenizer, rounded up."""
    return -int(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


@cache
def _load_encoder() -> Callable[[str], list[int]] | None:
    spec = importlib.util.find_spec("litellm")  # locates, does not import
    table = Path(spec.origin).parent / "litellm_core_utils" / "tokenizers" if spec and spec.origin else None
    if table is None or not table.is_dir():
        logger.warning("no token table found, tokens are estimated bytes_per_token=%s", BYTES_PER_TOKEN)
        return None
    # Set, not read: tiktoken takes a local table's folder only from this variable; litellm does the same.
    os.environ["TIKTOKEN_CACHE_DIR"] = str(table)
    try:
        import tiktoken

        return tiktoken.get_encoding(ENCODING).encode_ordinary
    except Exception as e:  # noqa: BLE001  # no table or no package: a judgment must not fail for want of a count
        logger.warning("tokens are estimated bytes_per_token=%s cause=%s", BYTES_PER_TOKEN, type(e).__name__)
        return None
