"""The whole loop at a small size, as `make demo` runs it: real database, real server, real runs, real gradients."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa


def demo(environment: dict[str, str], out: Path) -> str:
    out.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "babylon_rl.cli.main",
        "demo",
        "--iterations",
        "2",
        "--windows",
        "3",
        "--agents",
        "5",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_a_second_demo_repeats_no_work(environment: dict[str, str], engine: sa.Engine, tmp_path: Path) -> None:
    environment |= {"BABYLON_EVALUATION_WINDOWS": "6"}
    output = demo(environment, tmp_path / "a")
    report = json.loads((tmp_path / "a/report.json").read_text())
    assert {"windows", "iterations", "base", "final", "oracle_mean_pnl", "lift", "seconds"} <= set(report)
    assert (report["windows"], report["iterations"], report["training_windows"]) == (6, 2, 6)
    for policy, name in (("base", "babylon-mmo@0"), ("final", "babylon-mmo@2")):
        assert report[policy]["name"] == name
        assert {"mean_pnl", "win_rate", "invalid_rate"} <= set(report[policy])
    assert report["lift"]["mean"] == pytest.approx(report["final"]["mean_pnl"] - report["base"]["mean_pnl"], abs=1e-6)
    assert report["lift"]["ci95"][0] <= report["lift"]["mean"] <= report["lift"]["ci95"][1]
    assert set(report["seconds"]) == {"start", "evaluate", "play", "judge", "train", "report"}
    assert len(report["leaderboard"]["rows"]) == 5 + 5
    assert "babylon-rl check-windows" in output
    assert "make ui" in output
    page = (tmp_path / "a/report.html").read_text()
    assert "babylon-mmo@2" in page

    with engine.connect() as conn:
        rows = conn.scalar(sa.text("SELECT count(*) FROM trajectories"))
        judged = conn.scalar(sa.text("SELECT count(*) FROM babylon_rl.judgments"))
        unaccounted = conn.scalar(
            sa.text(
                "SELECT count(*) FROM trajectories t FULL JOIN babylon_rl.row_outcomes d ON d.source_id = t.id "
                "WHERE t.id IS NULL OR d.source_id IS NULL"
            )
        )
    assert rows == 2 * 3 * 10 * 3
    assert judged == 2 * 3 * 5
    assert unaccounted == 0

    assert report["in_the_game"]["moves"] == []
    assert "Nothing was deployed: babylon-mmo@2 earns" in report["in_the_game"]["decision"]

    # An evaluation of six windows proves nothing; with one that did, the demo ends in the game.
    with engine.begin() as conn:
        conn.execute(
            sa.text("UPDATE babylon_rl.evaluations SET lift_usd = 2, lift_lo_usd = 1, lift_hi_usd = 3 WHERE step = 2")
        )
    environment |= {"BABYLON_CANARY_WINDOWS": "1", "BABYLON_ROLLOUT_WINDOWS": "3"}
    output = demo(environment, tmp_path / "b")
    again = json.loads((tmp_path / "b/report.json").read_text())
    for key in ("base", "final", "lift", "curve", "leaderboard", "training_windows"):
        assert again[key] == report[key]
    game = again["in_the_game"]
    assert [m["kind"] for m in game["moves"]][:2] == ["canary", "half"]
    assert game["moves"][-1]["kind"] in ("ended", "rolled_back")
    windows = len(game["points"])
    assert game["calls"] == windows * 10 * 3
    assert sum(a["agent_windows"] for a in game["arms"]) == windows * 10
    assert "In the game" in (tmp_path / "b/report.html").read_text()
    assert "deployed" in output

    # The third repeats nothing of that either: two windows in which the candidate was compared, and the one before.
    demo(environment, tmp_path / "c")
    assert json.loads((tmp_path / "c/report.json").read_text())["in_the_game"] == game
    with engine.connect() as conn:
        assert conn.scalar(sa.text("SELECT count(*) FROM trajectories")) == rows + (windows + 1) * 10 * 3
        assert conn.scalar(sa.text("SELECT count(*) FROM babylon_rl.judgments")) == judged
