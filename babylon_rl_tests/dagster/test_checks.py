"""The required checks: which they are, and that a group must have the minimum of agents that its grouping asked for."""

import pytest
import sqlalchemy as sa
from dagster_factories import FIRST, spawn_windows

from babylon_rl.cli.runner import Runner
from babylon_rl.common.canonical import pack
from babylon_rl.database import tables as t
from babylon_rl.pipeline.checks import CHECKS, REQUIRED_CHECKS
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.types import Json, TrajectoryGroup
from babylon_rl_tests.factories import read_check_results

REQUIRED = (
    ("contextualized_groups", "groups_have_enough_agents"),
    ("contextualized_groups", "groups_hold_only_what_was_logged"),
    ("contextualized_groups", "groups_have_trainable_tokens"),
    ("contextualized_groups", "every_row_is_accounted_for"),
    ("ruler_scores", "scores_are_in_unit_interval"),
    ("ruler_scores", "every_member_has_one_score"),
    ("ruler_scores", "scores_are_not_all_equal"),
    ("ruler_scores", "judge_is_fit"),
    ("ruler_scores", "judging_stays_within_budget"),
)


def test_training_requires_these_nine_checks() -> None:
    """Written out on purpose: a check that falls out of the registry would let its windows train."""
    assert tuple((c.asset, c.name) for c in CHECKS if c.required) == REQUIRED
    assert tuple(name for _, name in REQUIRED) == REQUIRED_CHECKS
    assert all(c.description for c in CHECKS)


def shrink_stored_group(workspace: Workspace, members: int) -> None:
    """Leave only so many members in the group that is stored for the first window."""
    group = workspace.store.group(FIRST)
    assert group is not None
    fewer = TrajectoryGroup(group_id=group.group_id, window_id=group.window_id, members=group.members[:members])
    stored = t.contextualized_groups
    with workspace.store.engine.begin() as conn:
        conn.execute(sa.update(stored).where(stored.c.window_id == str(FIRST)).values(body=pack(fewer)))


def enough_agents(workspace: Workspace) -> tuple[bool, Json]:
    result = read_check_results(workspace.store.engine, FIRST)["groups_have_enough_agents"]
    return result.passed, result.facts


def test_a_group_smaller_than_its_minimum_does_not_train(
    workspace: Workspace, runner: Runner, resources: dict[str, object]
) -> None:
    """BABYLON_MIN_AGENTS is 5; three agents are more than the two that any comparison needs."""
    spawn_windows(workspace, 1)
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    shrink_stored_group(workspace, 3)
    runner.materialize("windows", FIRST, FIRST, resources=resources)
    passed, facts = enough_agents(workspace)
    assert (passed, facts["distinct_agents"], facts["at_least"]) == (False, 3, 5)
    assert workspace.ledger.ready() == []


@pytest.mark.parametrize(("left", "passes"), [(3, True), (2, False)])
def test_a_run_that_asks_for_less_is_held_to_what_it_asked(
    workspace: Workspace, runner: Runner, resources: dict[str, object], left: int, passes: bool
) -> None:
    """`train --min-agents 3` must still train; checking BABYLON_MIN_AGENTS alone would forbid it."""
    spawn_windows(workspace, 1, agents=3)
    config = {"contextualized_groups": {"min_agents": 3}}
    runner.materialize("windows", FIRST, FIRST, resources=resources, config=config)
    if left < 3:
        shrink_stored_group(workspace, left)
        runner.materialize("windows", FIRST, FIRST, resources=resources, config=config)
    passed, facts = enough_agents(workspace)
    assert (passed, facts["distinct_agents"], facts["at_least"]) == (passes, left, 3)
