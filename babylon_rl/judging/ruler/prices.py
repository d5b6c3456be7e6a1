"""What a model's tokens cost, from the table that ships inside litellm: read as a file, never fetched or imported."""

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

_TABLE: Final = "model_prices_and_context_window_backup.json"


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per token."""

    prompt_usd: float
    completion_usd: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Cost in US dollars; a discount for cached tokens is not counted, so this is the most it can be."""
        return prompt_tokens * self.prompt_usd + completion_tokens * self.completion_usd


@cache
def price_of(model: str) -> Price | None:
    """The price of a LiteLLM model id such as `openai/gpt-4o-mini`, or None when it is not in the table."""
    table = _read_table()
    entry = table.get(model) or table.get(model.removeprefix("openai/")) or {}
    prompt, completion = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
    if not isinstance(prompt, int | float) or not isinstance(completion, int | float):
        return None
    return Price(float(prompt), float(completion))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Longest prompt and longest reply of a model, in tokens; None: unknown."""

    prompt_tokens: int | None
    completion_tokens: int | None


@cache
def limits_of(model: str) -> Limits:
    """The limits of a LiteLLM model id."""
    table = _read_table()
    entry = table.get(model) or table.get(model.removeprefix("openai/")) or {}

    def known(name: str) -> int | None:
        value = entry.get(name)
        return value if isinstance(value, int) and value > 0 else None

    return Limits(prompt_tokens=known("max_input_tokens"), completion_tokens=known("max_output_tokens"))


@cache
def _read_table() -> dict[str, dict[str, Any]]:
    spec = importlib.util.find_spec("litellm")  # locates, does not import
    path = Path(spec.origin).with_name(_TABLE) if spec and spec.origin else None
    if path is None or not path.is_file():
        return {}
    entries = msgspec.json.decode(path.read_bytes())
    return {k: v for k, v in entries.items() if isinstance(v, dict)}
