"""A process that publishes and kills itself at a commit; run by test_publish. Usage: python killed_publishing.py <point>.

The settings are in the environment; the tables may be another game's.
"""

import sys

from babylon_rl.pipeline.publish import publish
from babylon_rl.pipeline.workspace import open_workspace
from babylon_rl.settings import Settings
from babylon_rl_tests.kill_at_commit import kill_at_commit

if __name__ == "__main__":
    with open_workspace(Settings.load()) as workspace:
        kill_at_commit(workspace.game, sys.argv[1], 1)
        publish(workspace, into_foreign_game=True)
