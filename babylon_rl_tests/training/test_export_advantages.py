"""Exported rewards and advantages are those that ART computes from the batch that our trainer would get."""

from collections import defaultdict
from pathlib import Path

import pytest

from babylon_rl.export.dataset import export
from babylon_rl.pipeline.train import load_rewarded_group
from babylon_rl.pipeline.workspace import open_workspace
from babylon_rl.policy.shipped import shipped_base
from babylon_rl.settings import Settings
from babylon_rl.training.art_groups import SCALE_REWARDS, to_art_groups
from babylon_rl.training.sequences import plan_training
from babylon_rl.training.trainer import TrainingBatch
from babylon_rl_tests.played import FIRST, hours, play_and_judge


def test_exported_advantages_are_those_that_art_trains_with(settings: Settings, tmp_path: Path) -> None:
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    with open_workspace(settings) as workspace:
        play_and_judge(workspace, hours(2))
        export(workspace, str(tmp_path / "x.parquet"), format="parquet")
        groups = tuple(load_rewarded_group(workspace, r.window_id, r.judgment_key) for r in workspace.ledger.ready())
    tokenizer = AutoTokenizer.from_pretrained(shipped_base(), local_files_only=True)
    batch = TrainingBatch(lineage="x", step=1, window_id=str(FIRST.next()), groups=groups)
    plan = plan_training(batch, tokenizer, context=2048)
    art_groups = to_art_groups(plan)

    from art.preprocessing.tokenize import tokenize_trajectory_groups

    results = tokenize_trajectory_groups(tokenizer, art_groups, False, SCALE_REWARDS, shuffle_group_trajectories=False)
    trained = {}
    for r in results:
        turn = r.trajectory.metadata["trajectory_id"], r.trajectory.metadata["decision"]
        trained[turn] = (r.trajectory.metadata["rank"], r.advantage)
    exported = defaultdict(tuple)
    for row in pq.read_table(tmp_path / "x.parquet").to_pylist():
        if row["advantage"] != 0:  # ART leaves those out
            exported[row["trajectory_id"], row["turn_index"]] = (row["reward"], row["advantage"])
    assert len(trained) > 20
    assert exported.keys() == trained.keys()
    for key, (reward, advantage) in trained.items():
        assert exported[key] == (reward, pytest.approx(advantage, rel=1e-12))
