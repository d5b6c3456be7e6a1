"""Messages → prompt ids, by the tokenizer's own chat template."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

_USER_PLACEHOLDER: Final = " \x00user\x00 "  # the spaces reveal a template that trims
_MAX_CACHED_TEMPLATES: Final = 64


class PromptRenderer:
    """Renders prompts as `tokenizer.apply_chat_template` does, without running the template for each.

    The template runs once per system prompt; the text before and after the user prompt is kept. Where a template does
    more than insert the user prompt, nothing is kept and each prompt is rendered in full.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._around: dict[str, tuple[str, str] | None] = {}

    def ids(self, system: str, user: str) -> list[int]:
        """Token ids of `[system, user]` and the generation prompt."""
        around = self._split_template(system)
        if around is None:
            return self.ids_of(_as_messages(system, user))
        before, after = around
        return list(self._tokenizer.encode(before + user + after, add_special_tokens=False))

    def ids_of(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of any conversation and the generation prompt."""
        if [m["role"] for m in messages] == ["system", "user"] and self._split_template(messages[0]["content"]):
            return self.ids(messages[0]["content"], messages[1]["content"])
        return list(self._tokenizer.encode(self._render([dict(m) for m in messages]), add_special_tokens=False))

    def _split_template(self, system: str) -> tuple[str, str] | None:
        """The text before and after the user prompt; None where the template does more than insert it."""
        if system not in self._around:
            if len(self._around) >= _MAX_CACHED_TEMPLATES:
                self._around.pop(next(iter(self._around)))
            parts = self._render(_as_messages(system, _USER_PLACEHOLDER)).split(_USER_PLACEHOLDER)
            self._around[system] = (parts[0], parts[1]) if len(parts) == 2 else None
        return self._around[system]

    def _render(self, messages: list[dict[str, str]]) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _as_messages(system: str, user: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]
