"""A window of any size is read agent by agent, and its group is never in memory as JSON."""

import tracemalloc
from collections.abc import Callable

import sqlalchemy as sa

from babylon_rl.ingest.reader import stream_window
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.store.windows import Store
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import WINDOW, a_json_call, a_json_step, a_row, insert_rows

SMALL, LARGE = WINDOW, WINDOW.next()
PROMPT_BYTES = 20_000


def fill(engine: sa.Engine, window: HourWindow, agents: int) -> None:
    for i in range(agents):
        prompt = f"agent {i} " + "x" * PROMPT_BYTES
        steps = [a_json_step(llmCalls=[a_json_call(userPrompt=prompt)])]
        insert_rows(engine, [a_row(f"agent-{i:03}", window=window, steps_json=steps)])


def peak(work: Callable[[], object]) -> int:
    """Bytes that Python held at most above what it held before."""
    tracemalloc.start()
    work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_reading_ten_times_the_agents_takes_no_more_memory(engine: sa.Engine) -> None:
    fill(engine, SMALL, 20)
    fill(engine, LARGE, 200)

    def read(window: HourWindow) -> None:
        with engine.connect() as conn:
            assert sum(len(agent.rows) for agent in stream_window(conn, window)) == (20 if window == SMALL else 200)

    read(SMALL)
    assert peak(lambda: read(LARGE)) < 1.5 * peak(lambda: read(SMALL)) + 10 * PROMPT_BYTES


def test_grouping_keeps_no_second_copy_of_the_trajectories(engine: sa.Engine) -> None:
    fill(engine, LARGE, 200)
    store = Store(engine)
    ingest_window(LARGE, engine, store)
    assert peak(lambda: group_window(LARGE, store, min_agents=5)) < 1.5 * 200 * PROMPT_BYTES
