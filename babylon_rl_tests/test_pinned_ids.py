"""Ids that stored rows carry: a rename or a reordering must not give the same rows another group or judgment.

A changed id here means that every window of every database is judged, and paid for, again. If that is intended, say so
in the changelog and pin the new values here.
"""

from babylon_rl.judging.hindsight_judge import HindsightJudge
from babylon_rl.judging.random_judge import RandomJudge
from babylon_rl.pipeline.workspace import open_workspace
from babylon_rl.settings import Settings
from babylon_rl_tests.played import hours, play, prepare

# Group id, and judgment key of the hindsight and the random judge, as commit f6f448a gave them.
PINNED = [
    (
        "2025-01-15T00:00#f323dd990159",
        "eb52dcce39ba2acb34e5714f29caf77132384626360b22b665b99e84aad0c00f",
        "9f21ca02f6dee5df27e9c6f5ee9ef0de29832148449c468d065bdc758e998414",
    ),
    (
        "2025-01-15T01:00#5a943b38d1cb",
        "b11d676c3dafcb017650e6fabf44a0e51def070c5cf84192ed5609e2f5266ab0",
        "b0910878ed460d777abbbb449fa9aee94a1a35b652e485e0928a47bd4dc92d7f",
    ),
]


def test_the_same_rows_keep_group_ids_and_judgment_keys(settings: Settings) -> None:
    ids = []
    with open_workspace(settings) as workspace:
        play(workspace, hours(2))
        for window in hours(2):
            prepare(workspace, window)
            group, hindsight = workspace.store.group(window), workspace.store.hindsight(window)
            assert group is not None
            assert hindsight is not None
            ids.append((group.group_id, HindsightJudge().key(group, hindsight), RandomJudge().key(group, hindsight)))
    assert ids == PINNED
