"""How long to wait before something is tried again: twice as long each time, up to a limit, and never for ever."""

from datetime import timedelta


def backoff(failures: int, *, first: timedelta, longest: timedelta) -> timedelta:
    """The wait after so many failures in a row.

    Args:
        failures: 1 after the first.
        first: The wait after the first.
        longest: No wait is longer.
    """
    doublings = min(max(failures, 1) - 1, 30)  # 2^30 times any first wait is longer than any longest
    return min(longest, first * (1 << doublings))
