"""A database that goes away during an asset is tried again; a statement that is wrong is not."""

import dagster as dg
import pytest
import sqlalchemy as sa

from babylon_rl.defs.failures import dagster_failures


def test_a_lost_connection_is_tried_again(engine: sa.Engine) -> None:
    with engine.connect() as conn, engine.connect() as other:
        pid = conn.scalar(sa.text("SELECT pg_backend_pid()"))
        other.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        with pytest.raises(dg.RetryRequested) as retry, dagster_failures():
            conn.execute(sa.text("SELECT 'a secret'"))
        conn.invalidate()
    assert retry.value.max_retries == 3
    assert "the database went away" in str(retry.value.__cause__)
    assert "a secret" not in str(retry.value.__cause__)


def test_a_wrong_statement_is_not_tried_again(engine: sa.Engine) -> None:
    with engine.connect() as conn, pytest.raises(sa.exc.ProgrammingError), dagster_failures():
        conn.execute(sa.text("SELECT * FROM nowhere"))
