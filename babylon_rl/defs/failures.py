"""The one place where our errors become Dagster's."""

from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg
import psycopg
import sqlalchemy as sa

from babylon_rl.database.connection import find_lost_connection
from babylon_rl.errors import BabylonRLError, TransientError


@contextmanager
def dagster_failures() -> Generator[None]:
    """Retry what may pass later; fail at once, with facts, on what cannot."""
    try:
        yield
    except TransientError as e:
        raise dg.RetryRequested(max_retries=3, seconds_to_wait=30) from e
    except (sa.exc.DBAPIError, psycopg.Error) as e:
        reason = find_lost_connection(e)
        if reason is None:
            raise
        lost = TransientError(f"the database went away ({reason}); what was committed is kept")
        lost.__suppress_context__ = True  # the statement and its parameters say nothing more
        raise dg.RetryRequested(max_retries=3, seconds_to_wait=30) from lost
    except BabylonRLError as e:
        facts = {k: v if isinstance(v, str | int | float | bool) else str(v) for k, v in e.facts.items()}
        raise dg.Failure(str(e), metadata=facts, allow_retries=False) from e
