"""A judge server for each test that asks for one."""

from collections.abc import Iterator

import pytest
from judge_server import JudgeServer


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer() as s:
        yield s
