"""Why a window could not be prepared, and the time before which it is not tried again by itself.

An entry counts only for the version that was tried: another group, other rows or other outcomes are tried at once. The
view `trainable_windows` compares them. No entry is final: the waits grow up to a limit, and then stay there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import sqlalchemy as sa

from babylon_rl.common.backoff import backoff
from babylon_rl.database import tables as t
from babylon_rl.database.upsert import upsert
from babylon_rl.store.window_lock import lock_window
from babylon_rl.types import RetryKind
from babylon_rl.windows import HourWindow

# The first wait, and the longest. Asking a judge again costs money; looking for outcomes does not.
_WAITS: Final[Mapping[RetryKind, tuple[timedelta, timedelta]]] = {
    RetryKind.WAITING_FOR_OUTCOMES: (timedelta(minutes=5), timedelta(hours=1)),
    RetryKind.JUDGE_FAILED: (timedelta(minutes=15), timedelta(days=1)),
    RetryKind.JUDGE_DOWN: (timedelta(minutes=1), timedelta(hours=1)),
    RetryKind.ERROR: (timedelta(minutes=5), timedelta(hours=6)),
}
_MAX_REASON_CHARS: Final = 2000
# For what only other rows change: they make another version, which is tried at once.
UNTIL_ROWS_CHANGE: Final = timedelta(days=365)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When a window is tried again.

    Attributes:
        reason: A sentence.
        failures: In a row, on the same version.
    """

    kind: RetryKind
    reason: str
    failures: int
    not_before: datetime


def postpone(
    engine: sa.Engine,
    window: HourWindow,
    kind: RetryKind,
    reason: str,
    *,
    stage: str,
    version: str,
    now: datetime,
    at_least_s: float = 0.0,
    at_latest: datetime | None = None,
) -> Retry | None:
    """Store why a window could not be prepared, in place of its earlier entry.

    Args:
        engine: Schema `babylon_rl`.
        window: The hour.
        kind: Decides how long it waits.
        reason: A sentence for people.
        stage: The asset or check that could not.
        version: What was tried: the group's version, for an error the window's (`read_tries`).
        now: Aware.
        at_least_s: Wait at least so many seconds, because a server asked for it.
        at_latest: Wait no longer than until then, because another rule applies from then on; past: no such rule comes.

    Returns:
        The entry; None when nothing was stored, because the window has another version or was judged meanwhile.
    """
    c = t.window_retries.c
    w = str(window)
    with lock_window(engine, window) as conn:
        if kind is not RetryKind.ERROR and not _is_unjudged(conn, w, version):
            return None
        old = conn.execute(sa.select(c.stage, c.kind, c.version, c.failures).where(c.window_id == w)).one_or_none()
        # An empty version is an entry that `release_errors` has let through for another try.
        same = old is not None and (old.stage, old.kind) == (stage, kind) and old.version in (version, "")
        failures = old.failures + 1 if same and old is not None else 1
        retry = Retry(
            kind=kind,
            # An exception may quote anything; Postgres takes neither NUL nor half an emoji.
            reason=reason.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")[:_MAX_REASON_CHARS],
            failures=failures,
            not_before=_when(kind, failures, now, at_least_s),
        )
        if at_latest is not None and now < at_latest < retry.not_before:
            retry = replace(retry, not_before=at_latest)
        row = {
            "window_id": w,
            "stage": stage,
            "kind": kind.value,
            "reason": retry.reason,
            "version": version,
            "failures": failures,
            "tried_at": now,
            "not_before": retry.not_before,
        }
        upsert(conn, t.window_retries, [row])
    return retry


def clear_retry(engine: sa.Engine, window: HourWindow, stage: str) -> None:
    """Forget that `stage` could not prepare a window: now it did."""
    c = t.window_retries.c
    with engine.begin() as conn:
        conn.execute(sa.delete(t.window_retries).where(c.window_id == str(window), c.stage == stage))


def find_stages(engine: sa.Engine, prefix: str) -> dict[HourWindow, str]:
    """The windows with an entry of a stage that begins with `prefix`, and that stage."""
    c = t.window_retries.c
    query = sa.select(c.window_id, c.stage).where(c.stage.startswith(prefix, autoescape=True))
    with engine.connect() as conn:
        return {HourWindow.parse(r.window_id): r.stage for r in conn.execute(query)}


def release_errors(engine: sa.Engine, window: HourWindow, stage: str, *, now: datetime) -> None:
    """Let a window through for another try of `stage`, once its time has come; its failures stay counted."""
    c = t.window_retries.c
    due = (c.window_id == str(window), c.stage == stage, c.kind == RetryKind.ERROR, c.not_before <= now)
    with engine.begin() as conn:
        conn.execute(sa.update(t.window_retries).where(*due).values(version=""))


def expect_judge(engine: sa.Engine, *, now: datetime) -> int:
    """The judge answers again: windows that waited for it are due at once. Returns how many."""
    c = t.window_retries.c
    waiting = (c.kind == RetryKind.JUDGE_DOWN, c.not_before > now)
    with engine.begin() as conn:
        if not conn.scalar(sa.select(sa.exists().where(*waiting))):  # the usual case writes nothing
            return 0
        return conn.execute(sa.update(t.window_retries).where(*waiting).values(not_before=now)).rowcount


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedWindow:
    """What is known of the tries to prepare a window.

    Attributes:
        version: Rises with every change of its rows and outcomes that was seen: `<rows>.<outcomes>`.
        stage: The asset or check that could not prepare it last, if one could not, whatever the version was.
        is_error: Whether that raised an exception on this very version.
    """

    version: str
    stage: str | None
    is_error: bool


def read_tries(engine: sa.Engine, windows: Sequence[HourWindow]) -> dict[HourWindow, TriedWindow]:
    """The present version of each window, and what failed last."""
    s, c = t.window_summary.c, t.window_retries.c
    ids = [str(w) for w in windows]
    hours = sorted({str(w.hour) for w in windows})
    with engine.connect() as conn:
        counts = conn.execute(sa.select(s.window_id, s.changes, s.outcome_changes).where(s.window_id.in_(hours))).all()
        entries = conn.execute(sa.select(c.window_id, c.stage, c.kind, c.version).where(c.window_id.in_(ids))).all()
    versions = {r.window_id: f"{r.changes}.{r.outcome_changes}" for r in counts}
    failed = {r.window_id: r for r in entries}
    tries = {}
    for w in windows:
        version, entry = versions.get(str(w.hour), "0.0"), failed.get(str(w))
        tries[w] = TriedWindow(
            version=version,
            stage=None if entry is None else entry.stage,
            is_error=entry is not None and entry.kind == RetryKind.ERROR and entry.version == version,
        )
    return tries


def _is_unjudged(conn: sa.Connection, window_id: str, group_version: str) -> bool:
    g, j = t.contextualized_groups.c, t.window_judgments.c
    query = (
        sa.select(g.data_version).where(g.window_id == window_id).where(~sa.exists().where(j.window_id == window_id))
    )
    return bool(conn.scalar(query) == group_version)


def _when(kind: RetryKind, failures: int, now: datetime, at_least_s: float) -> datetime:
    if kind is RetryKind.OVER_BUDGET:
        today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return today + timedelta(days=1)  # the budget is a UTC day's
    first, longest = _WAITS[kind]
    return now + max(backoff(failures, first=first, longest=longest), timedelta(seconds=at_least_s))
