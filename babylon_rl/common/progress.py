"""How long work tells how far it has come: one callback, whatever works and whoever watches."""

from typing import Protocol


class Progress(Protocol):
    """Told after each piece of work. A bar on a screen is one (`report/screen.py: Phase`)."""

    def __call__(self, steps: int = 1, *, total: int | None = None, note: str | None = None) -> None:
        """Take note.

        Args:
            steps: Pieces finished since the last call; 0 only tells `total` or `note`.
            total: How many there are in all, once it is known.
            note: What is worth reading beside the bar, such as a loss.
        """


def ignore_progress(steps: int = 1, *, total: int | None = None, note: str | None = None) -> None:
    """Nobody watches: the default everywhere."""
