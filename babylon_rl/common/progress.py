"""Progress of long work: one callback type, whatever reports and whoever shows it."""

from typing import Protocol


class Progress(Protocol):
    """Called after each piece of work. A bar on a screen is one (`report/screen.py: Phase`)."""

    def __call__(self, steps: int = 1, *, total: int | None = None, note: str | None = None) -> None:
        """Show progress.

        Args:
            steps: Pieces finished since the last call; 0 only sets `total` or `note`.
            total: How many there are in all, once it is known.
            note: What is worth reading beside the bar, such as a loss.
        """


def ignore_progress(steps: int = 1, *, total: int | None = None, note: str | None = None) -> None:
    """Show nothing: the default everywhere."""
