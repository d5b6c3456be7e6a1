"""What an answer said, collected as it passes: for the record, whoever the upstream is."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from babylon_rl.types import Json


@dataclass(slots=True)
class Heard:
    """One answer so far.

    Attributes:
        logprobs: Of each drawn token, where our engine answered.
        pieces: Chunks with something of the answer in them, of a stream: at least so many tokens.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    logprobs: list[float] | None = None
    pieces: int = 0
    _text: list[str] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)
    _tools: list[Json] = field(default_factory=list)

    def take_completion(self, body: Json) -> None:
        """Read a whole `chat.completion`."""
        self._take_usage(body)
        choice = self._first_choice(body)
        self._take_message(choice.get("message"))
        self._take_reason(choice)

    def take_chunk(self, chunk: Json) -> None:
        """Read one `chat.completion.chunk`."""
        self._take_usage(chunk)
        choice = self._first_choice(chunk)
        if self._take_message(choice.get("delta")):
            self.pieces += 1
        self._take_reason(choice)

    @property
    def response(self) -> str:
        """The text; of an answer that only calls tools, their calls as JSON."""
        text = "".join(self._text)
        return text if text or not self._tools else msgspec.json.encode({"tool_calls": _join(self._tools)}).decode()

    @property
    def reasoning(self) -> str | None:
        return "".join(self._reasoning) or None

    def _first_choice(self, body: Json) -> Json:
        choices = body.get("choices")
        found = [c for c in choices if isinstance(c, dict) and not c.get("index")] if isinstance(choices, list) else []
        return found[0] if found else {}

    def _take_message(self, message: Any) -> bool:
        if not isinstance(message, dict):
            return False
        said = False
        for into, names in ((self._text, ("content",)), (self._reasoning, ("reasoning_content", "reasoning"))):
            text = next((message[n] for n in names if isinstance(message.get(n), str)), "")
            if text:
                into.append(text)
                said = True
        calls = message.get("tool_calls")
        if isinstance(calls, list) and calls:
            self._tools += [c for c in calls if isinstance(c, dict)]
            said = True
        return said

    def _take_reason(self, choice: Json) -> None:
        if isinstance(choice.get("finish_reason"), str):
            self.finish_reason = choice["finish_reason"][:40]

    def _take_usage(self, body: Json) -> None:
        usage = body.get("usage")
        if isinstance(usage, dict):
            for name in ("prompt_tokens", "completion_tokens"):
                count = usage.get(name)
                if isinstance(count, int) and 0 <= count < 1 << 31:
                    setattr(self, name, count)


def _join(calls: list[Json]) -> list[Json]:
    """Tool calls whose arguments may have come in pieces; a piece says by `index` which call it continues."""
    whole: dict[str, Json] = {}
    for place, call in enumerate(calls):
        key = str(call.get("index", f"#{place}"))
        known = whole.setdefault(key, {k: v for k, v in call.items() if k not in ("index", "function")})
        function, new = known.setdefault("function", {}), call.get("function") or {}
        if not isinstance(function, dict) or not isinstance(new, dict):
            known["function"] = new
            continue
        for name, value in new.items():
            both = isinstance(value, str) and isinstance(function.get(name), str)
            function[name] = function[name] + value if both else value
    return list(whole.values())
