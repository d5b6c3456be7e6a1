"""SIGKILL at a chosen commit: what a killed process leaves behind, at each point where it matters."""

import os
import signal
from typing import Any

import sqlalchemy as sa


def kill_at_commit(engine: sa.Engine, point: str, nth: int, *, announce: bool = False) -> None:
    """Kill this process at the nth passage of a point: `<insert, update or delete> <table>/<before or after>` the commit.

    The table is the first that the transaction wrote to. `announce`: print each point when it is first passed.
    """
    passed: dict[str, int] = {}
    written: dict[int, str] = {}

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        words = statement.split()
        if words[0] in ("INSERT", "UPDATE", "DELETE"):
            table = words[1 if words[0] == "UPDATE" else 2].split(".")[-1].strip('("')
            written.setdefault(id(conn.connection.dbapi_connection), f"{words[0].lower()} {table}")

    def come(name: str) -> None:
        passed[name] = passed.get(name, 0) + 1
        if announce and passed[name] == 1:
            print(name, flush=True)  # noqa: T201
        if name == point and passed[name] == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    commit = engine.dialect.do_commit

    def do_commit(connection: Any) -> None:
        what = written.pop(id(connection.dbapi_connection), None)
        if what:
            come(f"{what}/before")
        commit(connection)
        if what:
            come(f"{what}/after")

    engine.dialect.do_commit = do_commit  # type: ignore[method-assign]
