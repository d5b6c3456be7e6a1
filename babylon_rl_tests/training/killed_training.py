"""A process that trains one batch on W&B Serverless and may kill itself when the plan or the checkpoint is committed.

Usage: python killed_training.py <point> <nth>, with the settings in the environment. A point is `<what was
written>/before` or `…/after` the commit, such as `update planned_batches/before`; `none` never comes.
"""

import sys

from babylon_rl.pipeline.train import train_range
from babylon_rl.pipeline.workspace import open_workspace
from babylon_rl.settings import Settings
from babylon_rl_tests.kill_at_commit import kill_at_commit

if __name__ == "__main__":
    point, nth = sys.argv[1:]
    with open_workspace(Settings.load()) as workspace:
        kill_at_commit(workspace.store.engine, point, int(nth))
        target = workspace.ledger.next_partition(1)
        assert target is not None
        train_range(workspace, [target], batch_size=1, max_checkpoints=1)
