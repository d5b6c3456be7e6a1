"""May this window train? Training, export, `check-windows` and `explain` give one answer, whatever state it is in."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import pytest
import sqlalchemy as sa
from rich.console import Console

from babylon_rl.cli.windows import group_explanations, window_table
from babylon_rl.database import tables as t
from babylon_rl.errors import DataError
from babylon_rl.export.dataset import export
from babylon_rl.export.explain import explain
from babylon_rl.ingest.window_summary import refresh
from babylon_rl.pipeline.checks import REQUIRED_CHECKS
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.pipeline.readiness import WindowLine, readiness
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl.store.eligibility import Reason, State
from babylon_rl.store.recorded import count_recorded
from babylon_rl.store.retries import postpone, read_tries
from babylon_rl.types import RetryKind
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import insert_row, store_check_result
from babylon_rl_tests.played import FIRST, NOW, hours, judge, play, prepare

CHECK = "groups_hold_only_what_was_logged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The four answers for one window: whether it trains, and the words of `check-windows` and `explain`."""

    ready: bool
    exported: bool
    state: str
    unused: bool
    story: str


@pytest.fixture
def workspace(settings: Settings) -> Iterator[Workspace]:
    with open_workspace(settings) as w:
        yield w


def ask_all(workspace: Workspace, out: Path, window: HourWindow = FIRST) -> Answers:
    report = readiness(workspace, min_agents=5, min_windows=1, now=NOW)
    try:
        exported = export(workspace, str(out), format="jsonl", first=window, last=window).windows == 1
    except DataError:
        exported = False
    with workspace.game.connect() as conn:
        played = sa.text("SELECT min(id) FROM trajectories WHERE window_id = :w AND agent_id NOT LIKE 'extra-%'")
        row = conn.scalar(played, {"w": str(window)})
    return Answers(
        ready=str(window) in {r.window_id for r in workspace.ledger.ready()},
        exported=exported,
        state=next(line.state for line in report.lines if line.window_id == str(window)),
        unused=report.unused == 1,
        story=explain(workspace, str(row))[-1],
    )


SAID = {
    Reason.ERROR: "it raised\x00",
    Reason.WAITING_FOR_OUTCOMES: "nothing yet",
    Reason.JUDGE_FAILED: "no JSON",
    Reason.JUDGE_DOWN: "HTTP 503",
    Reason.OVER_BUDGET: "$2 of $2",
}


def wait(workspace: Workspace, reason: Reason) -> None:
    """Let the first window wait for another try."""
    engine = workspace.store.engine
    stored = workspace.store.stored_group(FIRST)
    assert stored is not None
    failed = reason is Reason.ERROR
    retry = postpone(
        engine,
        FIRST,
        RetryKind(reason.value),
        SAID[reason],
        stage="raw_trajectories" if failed else "ruler_scores",
        version=read_tries(engine, [FIRST])[FIRST].version if failed else stored.version,
        now=NOW,
    )
    assert retry is not None


def bring_to(workspace: Workspace, reason: Reason | None) -> None:
    """Bring the first window into a state."""
    play(workspace, hours(1), agents=3 if reason is Reason.TOO_FEW_AGENTS else 6)
    if reason is Reason.TOO_FEW_AGENTS:
        for i in range(3):
            insert_row(workspace.game, f"extra-{i}", window=FIRST, steps_json=[])
    if reason is Reason.NOT_READ:
        return
    if reason is Reason.NOT_GROUPED:
        ingest_window(FIRST, workspace.game, workspace.store)
        return
    prepare(workspace, FIRST)
    if reason in (Reason.NOT_JUDGED, Reason.TOO_FEW_AGENTS):
        return
    if reason in SAID:
        wait(workspace, reason)
        return
    judge(workspace, hours(1))
    check = t.check_results
    if reason is Reason.CHECK_FAILED:
        store_check_result(workspace.store.engine, FIRST, CHECK, passed=False)
    elif reason is Reason.CHECKS_MISSING:
        with workspace.store.engine.begin() as conn:
            conn.execute(sa.delete(check).where(check.c.check_name == CHECK))
    elif reason is Reason.CHANGED:
        insert_row(workspace.game, "extra-late", window=FIRST)
        refresh(workspace.game, workspace.store.engine, now=NOW)
    elif reason is Reason.STALE:
        group = t.contextualized_groups
        with workspace.store.engine.begin() as conn:  # as if it had been grouped with other outcomes
            conn.execute(sa.update(group).values(made_from="another|version"))


@pytest.mark.parametrize(
    ("reason", "state", "story", "unused"),
    [
        (None, "judged", "its window is ready, one of 1", True),
        (Reason.NOT_READ, "recorded", "That window was not read yet", True),
        (Reason.CHANGED, "changed: rows or outcomes came", "came or were rewritten since it was read", True),
        (Reason.STALE, "changed: rows or outcomes", "changed since its group was made", True),
        (Reason.CHECK_FAILED, f"kept out: {CHECK}", f"the window failed {CHECK}", False),
        (Reason.TOO_FEW_AGENTS, "kept out: 3 usable agents", "a group needs 5", False),
        (Reason.NOT_GROUPED, "recorded", "No group holds it", True),
        (Reason.NOT_JUDGED, "grouped", "a window trains when it is judged", True),
        (
            Reason.ERROR,
            "kept out: raw_trajectories failed: it raised",
            "preparing its window failed: it raised; it is tried",
            False,
        ),
        (Reason.WAITING_FOR_OUTCOMES, "waiting for outcomes", "its window waits for outcomes: nothing yet", False),
        (Reason.JUDGE_FAILED, "judge failed: no JSON", "the judge gave its window nothing usable: no JSON", False),
        (Reason.JUDGE_DOWN, "judge down", "the judge is out of reach: HTTP 503; it is tried again after", False),
        (Reason.OVER_BUDGET, "over budget", "the day's judging budget is spent: $2 of $2", False),
        (Reason.CHECKS_MISSING, f"judged, without {CHECK}", f"{CHECK} did not run", True),
    ],
)
def test_all_four_give_one_answer(
    workspace: Workspace, tmp_path: Path, reason: Reason | None, state: str, story: str, unused: bool
) -> None:
    bring_to(workspace, reason)
    answers = ask_all(workspace, tmp_path / "x.jsonl")
    assert (answers.ready, answers.exported) == (reason is None, reason is None)
    assert answers.state.startswith(state)
    assert story in answers.story
    assert answers.unused is unused
    [known] = workspace.ledger.eligibility.states([FIRST], min_agents=5)
    assert (known.reason, known.trainable) == (reason, reason is None)


def test_an_outage_is_explained_once_for_all_its_windows(workspace: Workspace) -> None:
    bring_to(workspace, Reason.JUDGE_DOWN)
    [line] = readiness(workspace, min_agents=5, min_windows=1, now=NOW).lines
    said = "HTTP 503 (tried 1 time; again after 2025-02-01 00:01 UTC)"
    assert line.explanation == said
    others = [replace(line, window_id=str(h)) for h in hours(3)]
    assert group_explanations([*others, replace(line, explanation=None)]) == {said: [str(h) for h in hours(3)[::-1]]}


def test_a_failed_check_that_is_not_required_counts_for_nothing(workspace: Workspace, tmp_path: Path) -> None:
    bring_to(workspace, None)
    store_check_result(workspace.store.engine, FIRST, "an_opinion", passed=False)
    answers = ask_all(workspace, tmp_path / "x.jsonl")
    assert (answers.ready, answers.exported, answers.state, answers.unused) == (True, True, "judged", True)
    assert "its window is ready" in answers.story


def test_what_a_lineage_did_with_a_window_is_its_own(workspace: Workspace, tmp_path: Path) -> None:
    bring_to(workspace, None)
    batch = workspace.ledger.plan(FIRST, 1, learning_rate=None)
    assert batch is not None
    [planned] = workspace.ledger.eligibility.states([FIRST])
    assert (planned.state, planned.planned_step, planned.consumed_step) == (State.PLANNED, 1, None)
    workspace.ledger.record(batch, trainer="t", base_model="b", path="p", manifest={}, metrics={})
    [used] = workspace.ledger.eligibility.states([FIRST])
    assert (used.state, used.planned_step, used.consumed_step, used.trainable) == (State.TRAINED, None, 1, True)
    answers = ask_all(workspace, tmp_path / "x.jsonl")
    assert (answers.ready, answers.exported, answers.state, answers.unused) == (False, True, "trained @1", False)


def test_a_trained_window_whose_rows_change_is_stale(workspace: Workspace) -> None:
    bring_to(workspace, None)
    batch = workspace.ledger.plan(FIRST, 1, learning_rate=None)
    assert batch is not None
    workspace.ledger.record(batch, trainer="t", base_model="b", path="p", manifest={}, metrics={})
    insert_row(workspace.game, "late", window=FIRST)
    refresh(workspace.game, workspace.store.engine, now=NOW)
    [state] = workspace.ledger.eligibility.states([FIRST])
    assert (state.state, state.version) == (State.STALE, "2.1")
    [row] = workspace.ledger.eligibility.unprepared(5)
    assert (row.window, row.rows_only) == (FIRST, True), "its row is read, and it is not trained on again"


def test_the_function_names_every_state_and_no_other(workspace: Workspace) -> None:
    with workspace.store.engine.connect() as conn:
        source = str(conn.scalar(sa.text("SELECT prosrc FROM pg_proc WHERE proname = 'window_states'")))
    passed_on = re.search(r"IN \(([^)]*)\) THEN x.reason", source)
    assert passed_on is not None
    named = re.findall(r"(?:THEN|ELSE) '([a-z_]+)'", source) + re.findall(r"'([a-z_]+)'", passed_on[1])
    assert set(named) == set(State)


def test_the_view_names_every_reason_and_no_other(workspace: Workspace) -> None:
    with workspace.store.engine.connect() as conn:
        source = str(conn.scalar(sa.text("SELECT pg_get_viewdef('babylon_rl.trainable_windows')")))
    named = set(re.findall(r"(?:THEN|,) '([a-z_]+)'::text", source))
    assert named | set(RetryKind) == set(Reason)


def test_required_checks_are_those_that_the_code_declares(workspace: Workspace) -> None:
    with workspace.store.engine.connect() as conn:
        stored = set(conn.scalars(sa.select(t.required_checks.c.check_name)))
    assert stored == set(REQUIRED_CHECKS)


def test_too_few_for_one_minimum_is_asked_again_for_a_lower_one(workspace: Workspace) -> None:
    bring_to(workspace, Reason.TOO_FEW_AGENTS)
    eligibility = workspace.ledger.eligibility
    assert [[u.window for u in eligibility.unprepared(n)] for n in (5, 3)] == [[], [FIRST]]
    counts = [count_recorded(workspace.store.engine, eligibility.lineage, n) for n in (5, 3)]
    assert [(c.with_enough_agents, c.unused) for c in counts] == [(0, 0), (1, 1)]
    assert [s.reason for n in (5, 3) for s in eligibility.states([FIRST], min_agents=n)] == [
        Reason.TOO_FEW_AGENTS,
        Reason.NOT_GROUPED,
    ]


# ── what people read ───────────────────────────────────────────────────────────────────────────────


def test_the_cause_of_a_failed_check_is_said_everywhere(workspace: Workspace) -> None:
    play(workspace, hours(1))
    with workspace.game.begin() as conn:  # everybody ends as poor as he began, so all scores tie
        conn.exec_driver_sql(
            """UPDATE trajectories SET final_pnl = 0,
               steps_json = regexp_replace(steps_json, '"agentPnL":[-0-9.e]+', '"agentPnL":0', 'g')"""
        )
    prepare(workspace, FIRST)
    judge(workspace, hours(1))
    cause = "scores tie within 1e-06: no member did better than another"
    report = readiness(workspace, min_agents=5, min_windows=1, now=NOW)
    [line] = report.lines
    assert line.state == f"kept out: all 6 {cause}"
    assert (report.with_enough_agents, report.unused, report.waiting) == (1, 0, 0)
    assert (
        f"the window failed scores_are_not_all_equal: all 6 {cause}"
        in explain(workspace, f"{FIRST}/agent-1-habits")[-1]
    )


def test_a_reason_is_whole_on_a_narrow_screen() -> None:
    reason = "kept out: raw_trajectories failed: " + "a_word_of_more_letters_than_the_column_has_room_for_" * 3
    line = WindowLine(window_id=str(FIRST), rows=6, agents=6, avg_pnl_usd=-1234.5, outcomes=True, state=reason)
    narrow = Console(width=80, record=True, file=StringIO())
    narrow.print(window_table([line]))
    cells = [row.strip("│┃ ").split("│")[-1] for row in narrow.export_text().splitlines() if "│" in row]
    assert "".join(c.strip() for c in cells).replace(" ", "") == reason.replace(" ", "")


def test_windows_that_only_wait_are_not_ready(workspace: Workspace) -> None:
    bring_to(workspace, Reason.WAITING_FOR_OUTCOMES)
    report = readiness(workspace, min_agents=5, min_windows=1, now=NOW)
    assert (report.with_enough_agents, report.unused, report.waiting) == (1, 0, 1)
    assert not report.ready


def test_agents_are_counted_as_usable_once_they_were_read(workspace: Workspace) -> None:
    bring_to(workspace, Reason.TOO_FEW_AGENTS)
    report = readiness(workspace, min_agents=5, min_windows=1, now=NOW)
    [line] = report.lines
    assert (line.agents, report.with_enough_agents) == (3, 0), "three more have rows, and nothing to train on"


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (Reason.JUDGE_DOWN, "1 of them waits (1 judge down)"),
        (Reason.ERROR, "1 of them waits (1 kept out)"),
        (Reason.CHECK_FAILED, "1 more window with 5+ agents needed (1 is used or kept out)"),
    ],
)
def test_the_next_step_tells_waiting_from_missing(workspace: Workspace, reason: Reason, said: str) -> None:
    bring_to(workspace, reason)
    assert said in str(readiness(workspace, min_agents=5, min_windows=1, now=NOW).next_step)
