"""`babylon_rl.read_window`: a window as a table, with all that is known of each turn; what is unknown is missing."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

import babylon_rl
from babylon_rl.errors import DataError
from babylon_rl.export.dataframe import COLUMNS
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl_tests.factories import insert_row
from babylon_rl_tests.played import FIRST, hours, judge, play, play_and_judge, prepare


@pytest.fixture
def workspace(settings: Settings) -> Iterator[Workspace]:
    with open_workspace(settings) as w:
        yield w


def test_a_judged_window_is_a_row_per_turn(workspace: Workspace, settings: Settings) -> None:
    play_and_judge(workspace, hours(1))
    frame = babylon_rl.read_window(str(FIRST), settings=settings)
    trajectories = workspace.store.trajectories(FIRST)
    judgment = workspace.store.judgment(FIRST)
    assert judgment is not None
    assert frame.dtypes.astype(str).to_dict() == dict(COLUMNS)
    assert frame.response.tolist() == [x.response for t in trajectories for x in t.turns]
    assert frame.prompt.tolist() == [x.user for t in trajectories for x in t.turns]
    assert frame.turn_index.tolist() == [0, 1, 2] * 6
    one = frame.groupby("trajectory_id").first()
    assert one.score.to_dict() == {s.trajectory_id: s.value for s in judgment.scores}
    assert one.pnl_usd.to_dict() == {t.trajectory_id: t.pnl_usd for t in trajectories}
    assert (one.reward.min(), one.reward.max()) == (0.0, 1.0)
    assert set(frame.status) == {"grouped"}
    assert set(frame.group_id) == {judgment.group_id}
    assert set(frame.source_rows) == {3}
    assert frame.attrs == {"window_id": str(FIRST), "rows": 18, "row_outcomes": {"grouped/has_turn": 18}}


def test_what_is_unknown_is_missing_and_never_zero(workspace: Workspace, settings: Settings) -> None:
    import pandas as pd

    insert_row(workspace.game, "a", window=FIRST, final_pnl=None)
    insert_row(workspace.game, "b", window=FIRST, steps_json="[")
    insert_row(workspace.game, "c", window=FIRST, steps_json=[{"llmCalls": [{"userPrompt": "?", "response": "!"}]}])
    prepare(workspace, FIRST)
    frame = babylon_rl.read_window(str(FIRST), settings=settings).set_index("agent_id")
    assert list(frame.index) == ["a", "c"]
    assert frame.loc["a", "pnl_usd"] is pd.NA
    assert frame[["score", "reward", "group_id", "judge"]].isna().all().all()
    assert frame.loc["c", ["policy_version", "temperature", "action_type", "success"]].isna().all()
    assert (frame.loc["a", "status"], frame.loc["a", "reason"]) == ("ineligible", "too_few_agents")
    assert frame.attrs["row_outcomes"] == {"ineligible/too_few_agents": 2, "quarantined/bad_json": 1}


def test_an_empty_hour_has_the_columns_and_no_rows(workspace: Workspace, settings: Settings) -> None:
    prepare(workspace, FIRST)
    frame = babylon_rl.read_window(str(FIRST), settings=settings)
    assert list(frame.columns) == list(COLUMNS)
    assert len(frame) == 0


def test_an_unknown_window_says_which_are_known_and_what_to_run(workspace: Workspace, settings: Settings) -> None:
    with pytest.raises(DataError, match="nothing was ingested yet; run `babylon-rl materialize --from 2025-01-15T00"):
        babylon_rl.read_window(str(FIRST), settings=settings)
    play(workspace, hours(1))
    prepare(workspace, FIRST)
    judge(workspace, hours(1))
    with pytest.raises(DataError, match="never ingested; expected one of 1 from 2025-01-15T00:00 to 2025-01-15T00:00"):
        babylon_rl.read_window("2025-01-15T10:00", settings=settings)
    with pytest.raises(DataError, match="'2025-01-15' is not a UTC hour"):
        babylon_rl.read_window("2025-01-15", settings=settings)


def test_it_reads_the_environments_database(
    workspace: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_and_judge(workspace, hours(1))
    assert settings.database.url is not None
    monkeypatch.setenv("DATABASE_URL", settings.database.url.get_secret_value())
    assert len(babylon_rl.read_window(str(FIRST))) == 18


def test_importing_the_package_stays_light() -> None:
    code = "import babylon_rl, sys; print(sorted(m for m in sys.modules if m.split('.')[0] in "
    code += "('pandas', 'pyarrow', 'sqlalchemy', 'pydantic', 'dagster', 'torch', 'numpy')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_surviving_text_of_any_kind_is_shown(workspace: Workspace, settings: Settings) -> None:
    """An action object may hold anything under any key."""
    odd = {"actionType": {"a": 1}, "success": "yes", "parameters": None}
    step = {"llmCalls": [{"userPrompt": "?", "response": "nul \x00 é"}], "action": odd}
    insert_row(workspace.game, "a", window=FIRST, steps_json=[step])
    prepare(workspace, FIRST)
    frame = babylon_rl.read_window(str(FIRST), settings=settings)
    assert frame.response.tolist() == ["nul \x00 é"]
    assert frame[["action_type", "success"]].isna().all().all()
    with workspace.store.engine.connect() as conn:
        assert conn.scalar(sa.text("SELECT count(*) FROM babylon_rl.window_trajectories")) == 1
