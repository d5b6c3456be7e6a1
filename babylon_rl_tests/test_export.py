"""Exported groups: complete, without hindsight unless asked for, and readable by the libraries they are for."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa

from babylon_rl.common.canonical import pack
from babylon_rl.database import tables as t
from babylon_rl.errors import ConfigError, DataError
from babylon_rl.export import dataset as module
from babylon_rl.export.dataframe import window_frame
from babylon_rl.export.dataset import export, schema
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.settings import Settings
from babylon_rl.types import Hindsight, TrajectoryGroup
from babylon_rl_tests.played import FIRST, hours, judge, play, play_and_judge, prepare

CANARY = "CANARY-the-future"


@pytest.fixture
def workspace(settings: Settings) -> Iterator[Workspace]:
    with open_workspace(settings) as w:
        yield w


@pytest.fixture
def played(workspace: Workspace) -> Workspace:
    play_and_judge(workspace, hours(3))
    return workspace


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


def load(builder: str, file: Path, cache: Path, **options: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(builder, data_files=str(file), split="train", cache_dir=str(cache), **options)


def features(what: module.What) -> Any:
    import datasets

    return datasets.Features.from_arrow_schema(schema(what))


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def whole(file: Path) -> list[dict[str, Any]]:
    """All columns of all rows, of either format."""
    import pyarrow.parquet as pq

    return lines(file) if file.suffix == ".jsonl" else pq.read_table(file).to_pylist()


def without_hour(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != "window_id"}


@pytest.mark.parametrize("what", ["turns", "groups"])
def test_datasets_reads_both_formats_as_the_same_rows(
    played: Workspace, tmp_path: Path, cache: Path, what: module.What
) -> None:
    export(played, str(tmp_path / "x.parquet"), format="parquet", what=what)
    export(played, str(tmp_path / "x.jsonl"), format="jsonl", what=what)
    parquet = load("parquet", tmp_path / "x.parquet", cache)
    jsonl = load("json", tmp_path / "x.jsonl", cache, features=features(what))
    assert len(parquet) == len(jsonl) == {"turns": 3 * 6 * 3, "groups": 3}[what]
    assert parquet.column_names == jsonl.column_names == schema(what).names
    assert list(parquet) == lines(tmp_path / "x.jsonl")
    assert [without_hour(r) for r in jsonl] == [without_hour(r) for r in parquet]


def test_an_agents_archetype_is_a_column(workspace: Workspace, tmp_path: Path) -> None:
    play(workspace, hours(1))
    with workspace.game.begin() as conn:
        conn.execute(sa.text("UPDATE trajectories SET archetype = 'trader' WHERE agent_id <> 'policy-1'"))
        agents = set(conn.scalars(sa.text("SELECT DISTINCT agent_id FROM trajectories")))
    prepare(workspace, FIRST)
    judge(workspace, [FIRST])
    expected = {a: None if a == "policy-1" else "trader" for a in agents}
    export(workspace, str(tmp_path / "turns.jsonl"), format="jsonl")
    export(workspace, str(tmp_path / "groups.jsonl"), format="jsonl", what="groups")
    (group,) = lines(tmp_path / "groups.jsonl")
    assert {r["agent_id"]: r["archetype"] for r in lines(tmp_path / "turns.jsonl")} == expected
    assert {m["agent_id"]: m["archetype"] for m in group["members"]} == expected
    frame = window_frame(workspace.store, str(FIRST))
    assert {
        a: None if t is pd.NA else t for a, t in zip(frame["agent_id"], frame["archetype"], strict=True)
    } == expected


def test_jsonl_loads_and_only_the_hour_is_taken_for_a_time(played: Workspace, tmp_path: Path, cache: Path) -> None:
    """The JSON loader takes texts that look like a time for times; `group_id` has the hour as text too."""
    export(played, str(tmp_path / "x.jsonl"), format="jsonl")
    loaded = load("json", tmp_path / "x.jsonl", cache)
    assert loaded[0]["window_id"] == FIRST.start_at.replace(tzinfo=None)
    assert loaded[0]["group_id"].startswith(f"{FIRST}#")
    assert [without_hour(r) for r in loaded] == [without_hour(r) for r in lines(tmp_path / "x.jsonl")]


def test_every_turn_that_may_train_is_exported_exactly_once(played: Workspace, tmp_path: Path) -> None:
    done = export(played, str(tmp_path / "x.jsonl"), format="jsonl")
    rows = lines(tmp_path / "x.jsonl")
    assert (done.windows, done.rows, done.left_out) == (3, len(rows), 0)
    groups = [g for w in hours(3) if (g := played.store.group(w)) is not None]
    assert [(r["trajectory_id"], r["turn_index"], r["prompt"], r["completion"], r["policy_version"]) for r in rows] == [
        (
            m.trajectory_id,
            i,
            [{"role": "system", "content": x.system}, {"role": "user", "content": x.user}],
            [{"role": "assistant", "content": x.response}],
            x.policy_version,
        )
        for g in groups
        for m in g.members
        for i, x in enumerate(m.turns)
    ]
    assert all(r["response"] == r["completion"][0]["content"] for r in rows)
    scores = {s.trajectory_id: s.value for w in hours(3) if (j := played.store.judgment(w)) for s in j.scores}
    assert {r["trajectory_id"]: r["score"] for r in rows} == scores


def test_rows_have_the_shapes_that_trl_and_verl_read(played: Workspace, tmp_path: Path) -> None:
    export(played, str(tmp_path / "x.jsonl"), format="jsonl")
    for index, r in enumerate(lines(tmp_path / "x.jsonl")):
        assert [m["role"] for m in r["prompt"]] == ["system", "user"]
        assert [m.keys() for m in (*r["prompt"], *r["completion"])] == [{"role": "x", "content": "x"}.keys()] * 3
        assert r["data_source"] == "babylon_rl"
        assert r["reward_model"] == {"style": "recorded", "ground_truth": None}
        repeated = {"group_id", "trajectory_id", "turn_index", "response", "reward"}
        assert r["extra_info"] == {"index": index} | {k: r[k] for k in repeated}


def test_exported_advantages_are_one_per_trajectory(played: Workspace, tmp_path: Path) -> None:
    window = str(FIRST)
    group = played.store.group(FIRST)
    assert group is not None
    shorter = [
        m if i else type(m)(trajectory_id=m.trajectory_id, agent_id=m.agent_id, turns=m.turns[:1])
        for i, m in enumerate(group.members)
    ]
    _replace(
        played, window, body=pack(TrajectoryGroup(group_id=group.group_id, window_id=window, members=tuple(shorter)))
    )
    export(played, str(tmp_path / "x.jsonl"), format="jsonl", last=FIRST)
    rows = lines(tmp_path / "x.jsonl")
    by_score = sorted({r["score"]: r["reward"] for r in rows}.items())
    assert [reward for _, reward in by_score] == sorted(reward for _, reward in by_score)
    assert (by_score[0][1], by_score[-1][1]) == (0.0, 1.0)
    by_trajectory = defaultdict(list)
    for r in rows:
        by_trajectory[r["trajectory_id"]].append(r)
    assert sorted(map(len, by_trajectory.values())) == [1, 3, 3, 3, 3, 3]
    ranks = [turns[0]["reward"] for turns in by_trajectory.values()]
    mean = sum(ranks) / 6
    spread = math.sqrt(sum((r - mean) ** 2 for r in ranks) / 6)
    for turns in by_trajectory.values():
        (advantage,) = {r["advantage"] for r in turns}
        assert advantage == pytest.approx((turns[0]["reward"] - mean) / (spread + 1e-6))
        assert {r["compared"] for r in turns} == {6}
        assert sum(r["turn_weight"] for r in turns) == pytest.approx(1.0)


@pytest.mark.parametrize("what", ["turns", "groups"])
@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_no_hindsight_is_exported_unless_it_is_asked_for(
    played: Workspace, tmp_path: Path, what: module.What, format: module.Format
) -> None:
    """A canary is planted in every field that only the future knew."""
    played_hindsight = played.store.hindsight(FIRST)
    assert played_hindsight is not None
    hindsight = json.loads(json.dumps(_to_builtins(played_hindsight)), parse_float=lambda _: 4242.4242)
    _replace(played, str(FIRST), hindsight=pack(_plant_canaries(hindsight)))
    with played.store.engine.begin() as conn:
        conn.execute(sa.update(t.judgments).values(explanation=f"{CANARY}-explanation"))
    file = tmp_path / f"x.{format}"

    export(played, str(file), format=format, what=what, last=FIRST)
    text = json.dumps(whole(file), default=str)
    assert CANARY not in text
    assert '"hindsight_' not in text  # no column of it; the judge itself is called so
    assert "4242.4242" not in text

    export(played, str(file), format=format, what=what, last=FIRST, with_hindsight=True)
    rows = whole(file)
    text = json.dumps(rows, default=str)
    for canary in ("decision", "knowledge", "question", "headline", "explanation"):
        assert f"{CANARY}-{canary}" in text
    assert "4242.4242" in text
    assert set(rows[0]) == set(schema(what, with_hindsight=True).names)


def test_what_may_not_train_is_left_out_and_counted(played: Workspace, tmp_path: Path) -> None:
    out = str(tmp_path / "x.jsonl")
    with played.store.engine.begin() as conn:
        v, j = t.check_results.c, t.window_judgments.c
        conn.execute(
            sa.update(t.check_results)
            .values(passed=False)
            .where(v.window_id == str(FIRST), v.check_name == "groups_hold_only_what_was_logged")
        )
        conn.execute(sa.delete(t.window_judgments).where(j.window_id == str(FIRST.next())))
    done = export(played, out, format="jsonl")
    assert (done.windows, done.left_out) == (1, 2)
    assert {r["window_id"] for r in lines(Path(out))} == {str(FIRST.next(2))}
    with played.store.engine.begin() as conn:
        conn.execute(sa.delete(t.check_results).where(t.check_results.c.check_name == "scores_are_not_all_equal"))
    Path(out).unlink()
    with pytest.raises(DataError, match="no window from the beginning to the end may train: 3 are grouped but"):
        export(played, out, format="jsonl")
    assert list(tmp_path.iterdir()) == []


def test_an_export_range_includes_both_its_ends(played: Workspace, tmp_path: Path) -> None:
    out = str(tmp_path / "x.jsonl")
    export(played, out, format="jsonl", first=FIRST.next(), last=FIRST.next(2))
    assert sorted({r["window_id"] for r in lines(Path(out))}) == [str(FIRST.next()), str(FIRST.next(2))]
    with pytest.raises(DataError, match="no window from 2025-01-15T05:00 to the end is grouped; run `babylon-rl mater"):
        export(played, out, format="jsonl", first=FIRST.next(5))


def test_the_same_data_gives_the_same_bytes_over_any_old_file(played: Workspace, tmp_path: Path) -> None:
    for format in ("parquet", "jsonl"):
        a, b = tmp_path / f"a.{format}", tmp_path / f"b.{format}"
        b.write_text("an old file")
        for file in (a, b):
            export(played, str(file), format=format, with_hindsight=True)  # type: ignore[arg-type]
        assert a.read_bytes() == b.read_bytes()
    judge(played, hours(3))  # cached: nothing new
    export(played, str(tmp_path / "c.parquet"), format="parquet", with_hindsight=True)
    assert (tmp_path / "c.parquet").read_bytes() == (tmp_path / "a.parquet").read_bytes()


def test_an_export_that_fails_leaves_the_old_file(played: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    out.write_text("yesterday's")

    def fail(steps: int = 1, **_: object) -> None:
        if steps:
            raise RuntimeError("the power went out")

    with pytest.raises(RuntimeError, match="power"):
        export(played, str(out), format="jsonl", progress=fail)
    assert out.read_text() == "yesterday's"
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_row_groups_are_small_and_lose_nothing(
    played: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded by the row group, so a long export has many."""
    import pyarrow.parquet as pq

    monkeypatch.setattr(module, "ROWS_AT_ONCE", 20)
    export(played, str(tmp_path / "x.parquet"), format="parquet")
    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [20, 20, 14]
    assert [r["index"] for r in file.read(["extra_info"]).column(0).to_pylist()] == list(range(54))


def test_jsonl_that_starts_with_nulls_loads_by_the_schema(played: Workspace, tmp_path: Path, cache: Path) -> None:
    """The JSON loader takes a column that starts with nulls for a column of nulls, unless the schema is given."""
    export(played, str(tmp_path / "x.jsonl"), format="jsonl")
    rows = lines(tmp_path / "x.jsonl")
    for r in rows[:-1]:
        r["policy_version"] = r["temperature"] = None
    rows[-1]["policy_version"], rows[-1]["temperature"] = "babylon-mmo@3", 0.5
    (tmp_path / "y.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    loaded = load("json", tmp_path / "y.jsonl", cache, features=features("turns"), chunksize=4096)
    assert loaded[-1]["policy_version"] == "babylon-mmo@3"
    assert loaded[0]["temperature"] is None


def test_fsspec_addresses_and_new_directories_are_written(played: Workspace, tmp_path: Path) -> None:
    import fsspec

    export(played, "memory://bucket/a/x.jsonl", format="jsonl")
    export(played, str(tmp_path / "new" / "x.jsonl"), format="jsonl")
    assert fsspec.filesystem("memory").cat("/bucket/a/x.jsonl") == (tmp_path / "new" / "x.jsonl").read_bytes()
    assert [p.rpartition("/")[2] for p in fsspec.filesystem("memory").ls("/bucket/a", detail=False)] == ["x.jsonl"]


def test_an_address_that_cannot_be_written_is_one_sentence(played: Workspace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a directory; expected the name of a file"):
        export(played, str(tmp_path), format="jsonl")
    with pytest.raises(ConfigError, match="cannot be written"):
        export(played, str(tmp_path / "file" / "x.jsonl"), format="jsonl")
    with pytest.raises(ConfigError, match=r"'nowhere://x/y' cannot be opened"):
        export(played, "nowhere://x/y", format="jsonl")


def test_a_group_without_spread_has_no_advantage(workspace: Workspace, tmp_path: Path) -> None:
    play(workspace, hours(1))
    prepare(workspace, FIRST)
    judge(workspace, hours(1))
    with workspace.store.engine.begin() as conn:
        conn.execute(sa.update(t.judgments).values(score=0.1))
    export(workspace, str(tmp_path / "x.jsonl"), format="jsonl")
    assert {(r["reward"], r["advantage"]) for r in lines(tmp_path / "x.jsonl")} == {(0.5, 0.0)}


def _replace(workspace: Workspace, window_id: str, **columns: bytes) -> None:
    with workspace.store.engine.begin() as conn:
        conn.execute(
            sa.update(t.contextualized_groups).values(**columns).where(t.contextualized_groups.c.window_id == window_id)
        )


def _to_builtins(hindsight: Hindsight) -> Any:
    import msgspec

    return msgspec.to_builtins(hindsight)


def _plant_canaries(hindsight: Any) -> Hindsight:
    import msgspec

    for m in hindsight["members"]:
        m["game_knowledge"] = {"note": f"{CANARY}-knowledge"}
        m["pnl_usd"] = m["start_balance_usd"] = 4242.4242
        for d in m["decisions"]:
            d["result"] = f"{CANARY}-decision"
    for p in hindsight["outcomes"]["predictions"]:
        p["question"] = f"{CANARY}-question"
    for s in hindsight["outcomes"]["stocks"]:
        s["news"] = [f"{CANARY}-headline"]
    return msgspec.convert(hindsight, Hindsight)
