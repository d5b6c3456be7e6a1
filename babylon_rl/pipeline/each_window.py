"""One window's failure costs no other window anything: it is stored with its reason, and tried again later."""

import logging
from collections.abc import Callable, Sequence

import sqlalchemy as sa

from babylon_rl.database.connection import find_lost_connection
from babylon_rl.errors import BabylonRLError, ConfigError, DataError, TransientError
from babylon_rl.pipeline.window_result import WindowResult
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.retries import clear_retry, postpone, read_tries
from babylon_rl.types import RetryKind
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)


def for_each_window(
    workspace: Workspace, windows: Sequence[HourWindow], stage: str, work: Callable[[HourWindow], WindowResult]
) -> dict[HourWindow, WindowResult]:
    """Do one asset's work on each window.

    Args:
        workspace: Where a failure is stored, with the time of the next try.
        windows: Hours.
        stage: Name of the asset.
        work: What is done with one window.

    Returns:
        A result each; that of a window that failed says so in its facts.

    Raises:
        ConfigError: Nothing can work before somebody changes a setting.
        TransientError: Something outside failed, which has nothing to do with the window.
        DataError: Every window failed; the message is the first one's.
    """
    results: dict[HourWindow, WindowResult] = {}
    failed: dict[HourWindow, str] = {}
    tries = read_tries(workspace.store.engine, windows)
    for window in windows:
        try:
            results[window] = work(window)
        except Exception as e:
            if not is_of_one_window(e):
                raise
            failed[window] = explain_failure(e)
            logger.warning("could not prepare window=%s stage=%s error=%s", window, stage, type(e).__name__)
            results[window] = note_failure(workspace, window, stage, failed[window], version=tries[window].version)
        else:
            if tries[window].stage == stage:
                clear_retry(workspace.store.engine, window, stage)
    if failed and len(failed) == len(windows):
        raise DataError(
            f"{next(iter(failed.values()))} ({len(failed)} of {len(windows)} windows failed; each is tried again "
            "by itself)",
            facts={"windows": len(windows)},
        )
    return results


def is_of_one_window(error: Exception) -> bool:
    """Whether an exception says something about the window at hand: it is no matter of settings, network or database."""
    if isinstance(error, ConfigError | TransientError) or find_lost_connection(error) is not None:
        return False
    # A value that the database refuses is the window's; a missing table or right is everybody's.
    return not isinstance(error, sa.exc.DBAPIError) or isinstance(error, sa.exc.DataError | sa.exc.IntegrityError)


def explain_failure(error: Exception) -> str:
    """An exception in one sentence, without the statement and the values that SQLAlchemy puts into its own."""
    if isinstance(error, BabylonRLError):
        return str(error)
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
    return f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else 'no detail'}"


def note_failure(workspace: Workspace, window: HourWindow, stage: str, reason: str, *, version: str) -> WindowResult:
    """Store that `stage` raised on a window; the result shows when it is tried again."""
    retry = postpone(
        workspace.store.engine,
        window,
        RetryKind.ERROR,
        reason,
        stage=stage,
        version=version,
        now=workspace.now(),
    )
    again = None if retry is None else retry.not_before.isoformat(timespec="seconds")
    return WindowResult(
        data_version="none", changed=False, count=0, facts={"failed": reason[:500], "tried_again_at": again}
    )
