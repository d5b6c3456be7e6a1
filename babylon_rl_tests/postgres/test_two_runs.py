"""Two runs on one window, a schedule's beside a sensor's or a person's: the older one never undoes the newer one's work."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from babylon_rl.database import tables as t
from babylon_rl.pipeline.checks import CHECKS, run_check
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl.store.check_results import read_check_subjects, write_check_results
from babylon_rl.store.eligibility import Reason
from babylon_rl.store.groups import StoredGroup, SupersededError
from babylon_rl.types import CheckResult, Judgment, Score
from babylon_rl_tests.factories import insert_row, read_check_results
from babylon_rl_tests.played import FIRST, hours, judge, play_and_judge, prepare


@pytest.fixture
def workspace(settings: Settings) -> Iterator[Workspace]:
    with open_workspace(settings) as w:
        play_and_judge(w, hours(1))
        yield w


def change_rows(workspace: Workspace) -> None:
    """A seventh agent's row comes late and is read."""
    insert_row(workspace.game, "late-agent", window=FIRST)
    ingest_window(FIRST, workspace.game, workspace.store)


def stored(workspace: Workspace) -> StoredGroup:
    group = workspace.store.stored_group(FIRST)
    assert group is not None
    return group


def a_judgment(group: StoredGroup, key: str) -> Judgment:
    scores = tuple(Score(trajectory_id=m.trajectory_id, value=0.5, explanation="") for m in group.group.members)
    return Judgment(
        key=key,
        group_id=group.group.group_id,
        window_id=str(FIRST),
        judge_model="j",
        judge_version="1",
        scores=scores,
    )


def reason(workspace: Workspace) -> Reason | None:
    [state] = workspace.ledger.eligibility.states([FIRST])
    return state.reason


def test_a_group_of_old_rows_is_never_stamped_as_one_of_new(workspace: Workspace) -> None:
    store, before = workspace.store, stored(workspace)
    old = store.group_sources(FIRST)
    change_rows(workspace)  # the other run reads while this one makes its group
    with pytest.raises(SupersededError, match="was read again"):
        store.write_groups(FIRST, [(before.group, before.hindsight)], old.row_outcomes, made_from=old.made_from)
    assert reason(workspace) is Reason.STALE, "it must be made again, and is seen to"
    group_window(FIRST, store, min_agents=5)
    assert len(stored(workspace).group.members) == 7


def test_an_old_judgment_never_replaces_a_new_one(workspace: Workspace) -> None:
    store, old = workspace.store, stored(workspace)
    late = a_judgment(old, "late")
    change_rows(workspace)
    group_window(FIRST, store, min_agents=5)
    judge(workspace, hours(1))
    current = store.judgment(FIRST)
    settled = store.set_current_judgment(FIRST, late, group_version=old.version, instead_of=old.judgment_key)
    assert settled == "superseded"
    assert store.judgment(FIRST) == current
    assert [r.window_id for r in workspace.ledger.ready()] == [str(FIRST)]


def test_of_two_judges_of_one_group_the_first_to_finish_stays(workspace: Workspace) -> None:
    store, group = workspace.store, stored(workspace)
    for key, settled in (("one", "set"), ("two", "superseded"), ("one", "unchanged")):
        judgment = a_judgment(group, key)
        store.write_judgment(judgment)
        found = store.set_current_judgment(FIRST, judgment, group_version=group.version, instead_of=group.judgment_key)
        assert found == settled
    kept = store.judgment(FIRST)
    assert kept is not None
    assert kept.key == "one"


def test_a_new_judgment_inherits_no_check_results(workspace: Workspace) -> None:
    """Killed before its checks, it used to be ready by the results of the judge before, one audited unfit included."""
    store, group = workspace.store, stored(workspace)
    assert [r.window_id for r in workspace.ledger.ready()] == [str(FIRST)]
    judgment = a_judgment(group, "another judge's")
    store.write_judgment(judgment)
    store.set_current_judgment(FIRST, judgment, group_version=group.version, instead_of=group.judgment_key)
    assert workspace.ledger.ready() == []
    assert reason(workspace) is Reason.CHECKS_MISSING
    [state] = workspace.ledger.eligibility.states([FIRST])
    assert set(state.missing_checks) == {c.name for c in CHECKS if c.is_about_judgment}
    assert [u.window for u in workspace.ledger.eligibility.unprepared(5)] == [FIRST], "and it is asked for again"


def test_a_result_about_what_is_gone_is_not_kept(workspace: Workspace) -> None:
    engine, name = workspace.store.engine, "groups_have_enough_agents"
    about = read_check_subjects(engine, [FIRST])[FIRST].group
    change_rows(workspace)
    group_window(FIRST, workspace.store, min_agents=5)  # while the check was reading
    result = CheckResult(passed=True, facts={})
    assert write_check_results(engine, name, {FIRST: result}, about={FIRST: about}) == set()
    assert read_check_results(engine, FIRST) == {}


def test_a_check_that_raises_is_seen_and_run_again(workspace: Workspace) -> None:
    group = t.contextualized_groups
    with workspace.store.engine.begin() as conn:
        good = conn.scalar(sa.select(group.c.body))
        conn.execute(sa.update(group).values(body=b"no zstd"))
    check = next(c for c in CHECKS if c.name == "groups_have_trainable_tokens")
    checked = run_check(check, [FIRST], workspace)[FIRST]
    assert (checked.kept, checked.result.passed) == (False, False)
    assert "ZstdError" in str(checked.result.facts["failed"])
    [state] = workspace.ledger.eligibility.states([FIRST])
    assert (state.reason, state.stage) == (Reason.ERROR, check.name)
    assert workspace.ledger.ready() == []
    with workspace.store.engine.begin() as conn:
        conn.execute(sa.update(group).values(body=good))
    assert run_check(check, [FIRST], workspace)[FIRST].kept
    prepare(workspace, FIRST)
    assert [r.window_id for r in workspace.ledger.ready()] == [str(FIRST)]
