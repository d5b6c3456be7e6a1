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

    demo(environment, tmp_path / "b")
    again = json.loads((tmp_path / "b/report.json").read_text())
    for key in ("base", "final", "lift", "curve", "leaderboard", "training_windows"):
        assert again[key] == report[key]
    with engine.connect() as conn:
        assert conn.scalar(sa.text("SELECT count(*) FROM trajectories")) == rows
        assert conn.scalar(sa.text("SELECT count(*) FROM babylon_rl.judgments")) == judged
