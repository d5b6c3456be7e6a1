from collections.abc import Iterator

import pytest

from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl_tests.live_game import LiveGame


@pytest.fixture
def workspace(settings: Settings) -> Iterator[Workspace]:
    """With rollouts short enough for a test: one window of canary, at most twenty in all."""
    with open_workspace(settings.changed(deployment={"canary_windows": 1, "rollout_windows": 20})) as w:
        yield w


@pytest.fixture
def game(workspace: Workspace) -> LiveGame:
    """Ten agents that have played one hour with the base, and a checkpoint that passed its evaluation."""
    game = LiveGame(workspace)
    game.add_checkpoint(1)
    game.play_next()
    return game
