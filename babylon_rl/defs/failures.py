"""The one place where our errors become Dagster's."""

from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg

from babylon_rl.errors import BabylonRLError, TransientError


@contextmanager
def dagster_failures() -> Generator[None]:
    """Retry what may pass later; fail at once, with facts, on what cannot."""
    try:
        yield
    except TransientError as e:
        raise dg.RetryRequested(max_retries=3, seconds_to_wait=30) from e
    except BabylonRLError as e:
        facts = {k: v if isinstance(v, str | int | float | bool) else str(v) for k, v in e.facts.items()}
        raise dg.Failure(str(e), metadata=facts, allow_retries=False) from e
