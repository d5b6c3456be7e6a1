"""An interrupt while a window is read ends the read at once: nothing waits for the rest of a big COPY."""

import subprocess
import sys
import time

import pytest
import sqlalchemy as sa

from babylon_rl.settings import Settings
from babylon_rl_tests.factories import WINDOW, a_json_step, a_row, insert_rows

# Far more than the buffers of a socket hold, so the server is in mid-COPY when the reader stops.
READ = """
import sys
from babylon_rl.database.connection import connect
from babylon_rl.ingest import reader
from babylon_rl.pipeline import ingest
from babylon_rl.store.windows import Store
from babylon_rl.windows import HourWindow

game = connect(sys.argv[1])
calls = iter(range(10**9))

def interrupt(real):
    def f(*args):
        if next(calls) == 3:
            raise {exception}
        return real(*args)
    return f

{module}.{function} = interrupt({module}.{function})
try:
    {action}
except BaseException as e:
    with game.connect() as conn:
        print(type(e).__name__, conn.exec_driver_sql("SELECT 1").scalar())
    raise
"""


@pytest.mark.parametrize("exception", ["KeyboardInterrupt", "MemoryError"])
@pytest.mark.parametrize(
    ("module", "function", "action"),
    [
        ("reader", "_find_exclusion", "ingest.ingest_window(HourWindow.parse(sys.argv[2]), game, Store(game))"),
        ("ingest", "stitch", "ingest.ingest_window(HourWindow.parse(sys.argv[2]), game, Store(game))"),
        (
            "reader",
            "_split_usable",
            "with game.connect() as conn: reader.logged_messages(conn, HourWindow.parse(sys.argv[2]))",
        ),
    ],
    ids=["while a row is parsed", "while an agent is stitched", "while messages are compared"],
)
def test_an_interrupted_read_ends_at_once(
    settings: Settings, engine: sa.Engine, module: str, function: str, action: str, exception: str
) -> None:
    steps = [a_json_step(i, observation="x" * 50_000) for i in range(20)]
    insert_rows(engine, [a_row(f"agent-{i % 50:02}", steps_json=steps) for i in range(150)])
    assert settings.database.url is not None
    script = READ.format(module=module, function=function, action=action, exception=exception)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, settings.database.url.get_secret_value(), str(WINDOW)],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert done.stdout.split() == [exception, "1"]  # the pool's connection is usable
    assert done.stderr.rstrip().splitlines()[-1].startswith(exception)
    assert time.monotonic() - began < 40
