"""The shipped policy, and checkpoints made of random adapters."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from policy_factories import write_finished_checkpoint, write_random_adapter

from babylon_rl.base_policy.corpus import draw_markets
from babylon_rl.policy.model import LoadedPolicy, load_policy
from babylon_rl.policy.prompting import PromptRenderer
from babylon_rl.policy.shipped import shipped_base
from babylon_rl.simulator.observation import SYSTEM_PROMPT, observe
from babylon_rl.simulator.portfolio import Portfolio


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def policy() -> LoadedPolicy:
    return load_policy(shipped_base())


@pytest.fixture(scope="session")
def user_prompts() -> list[str]:
    """What 24 agents see: eight markets, each at its three decisions."""
    return [observe(m, Portfolio(), tick).text for m in draw_markets("tests", 1, 8) for tick in range(m.decisions)]


@pytest.fixture(scope="session")
def prompts(policy: LoadedPolicy, user_prompts: list[str]) -> list[list[int]]:
    renderer = PromptRenderer(policy.tokenizer)
    return [renderer.ids(SYSTEM_PROMPT, u) for u in user_prompts]


@pytest.fixture(scope="session")
def write_adapter() -> Callable[[Path], object]:
    return write_random_adapter


@pytest.fixture(scope="session")
def write_checkpoint() -> Callable[[Path, str, int], Path]:
    return write_finished_checkpoint
