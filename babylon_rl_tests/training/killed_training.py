"""A process that trains one batch on W&B Serverless and may kill itself when the plan or the checkpoint is committed.

Usage: python killed_training.py <point> <nth>, with the settings in the environment. A point is `<what was
written>/before` or `…/after` the commit, such as `update planned_batches/before`; `none` never comes.
"""

import os
import signal
import sys
from typing import Any

import sqlalchemy as sa

from babylon_rl.pipeline.train import train_range
from babylon_rl.pipeline.workspace import open_workspace
from babylon_rl.settings import Settings


def kill_at(engine: sa.Engine, point: str, nth: int) -> None:
    """Kill this process at the nth passage of `point`."""
    passed: dict[str, int] = {}
    written: dict[int, str] = {}

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        words = statement.split()
        if words[0] in ("INSERT", "UPDATE"):
            table = next(w for w in words if "babylon_rl." in w).split(".")[1].strip("(")
            written.setdefault(id(conn.connection.dbapi_connection), f"{words[0].lower()} {table}")

    def come(name: str) -> None:
        passed[name] = passed.get(name, 0) + 1
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


if __name__ == "__main__":
    point, nth = sys.argv[1:]
    with open_workspace(Settings.load()) as workspace:
        kill_at(workspace.store.engine, point, int(nth))
        target = workspace.ledger.next_partition(1)
        assert target is not None
        train_range(workspace, [target], batch_size=1, max_checkpoints=1)
