"""Token ids → text, token by token: no piece ends inside a character."""

from typing import Any, Final

_UNFINISHED: Final = "\ufffd"  # what a decoder makes of bytes that are no whole character yet


class Detokenizer:
    """Decodes one answer as it is drawn. The pieces joined are what decoding the whole answer at once gives.

    A token is decoded together with the last piece that ended cleanly, because some tokenizers decode a token differently
    at the beginning of a text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._before = 0  # the last clean piece begins here
        self._told = 0  # and ends here
        self._length = 0  # letters told

    def add(self, token_id: int) -> str:
        """The text that one more token completes; may be empty."""
        self._ids.append(token_id)
        known = self._decode(self._ids[self._before : self._told])
        text = self._decode(self._ids[self._before :])
        if len(text) <= len(known) or text.endswith(_UNFINISHED):
            return ""
        self._before, self._told = self._told, len(self._ids)
        piece = text[len(known) :]
        self._length += len(piece)
        return piece

    def end(self) -> str:
        """What is left when no token follows: bytes that never became a character."""
        return self._decode(self._ids)[self._length :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""
