"""How many tokens a text is, without asking anybody: for budgets, context limits and metadata.

Counted with tiktoken's `o200k_base`, whose table ships inside litellm (a file, nothing is fetched). Where it cannot be
loaded: UTF-8 bytes / 3.2, which lies above the truth for English and JSON. Other models' tokenizers differ by some per
cent; what was paid is what the server reports, never this.
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
    """Tokens of each text, for texts that repeat their lines and each other's: each line is counted once.

    A line is what stands between escaped line breaks; its tokens are counted beside those of lines that come as often,
    so the sum lies within a per cent of the whole text's count.
    """
    often: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        for line in text.split(_BREAK):
            often.setdefault(line, [0] * len(texts))[i] += 1
    alike: dict[tuple[int, ...], list[str]] = {}
    for line, times in often.items():
        alike.setdefault(tuple(times), []).append(line)
    totals = [0] * len(texts)
    count = _count()
    for pattern, lines in alike.items():
        tokens = count(_BREAK.join(lines) + _BREAK)
        for i, n in enumerate(pattern):
            totals[i] += n * tokens
    return tuple(totals)


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
