"""One torch thread for these tests: two of them wait for each other where the machine has other work."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)
