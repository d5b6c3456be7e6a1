import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from babylon_rl.definitions import build_defs
from babylon_rl.defs.checks import WINDOW_CHECKS
from babylon_rl.pipeline.checks import REQUIRED_CHECKS

HEAVY = ("art", "torch", "litellm", "wandb", "transformers", "peft", "matplotlib")


def fresh(code: str, cwd: Path) -> str:
    """Run code in a fresh interpreter with an empty environment."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env={}, cwd=cwd, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_loading_the_code_location_imports_nothing_heavy(tmp_path: Path) -> None:
    code = f"import babylon_rl.definitions, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert fresh(code, tmp_path) == "[]"
    assert not list(tmp_path.iterdir()), "loading definitions wrote something"


def test_loading_definitions_takes_under_twice_dagsters_time(tmp_path: Path) -> None:
    code = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    bare = min(float(fresh(code.format("dagster"), tmp_path)) for _ in range(4))
    ours = min(float(fresh(code.format("babylon_rl.definitions"), tmp_path)) for _ in range(4))
    assert ours < 2 * bare, f"import dagster {bare:.2f} s, our definitions {ours:.2f} s"


def test_the_definitions_load_with_any_resource_replaced() -> None:
    dg.Definitions.validate_loadable(build_defs(judge=object()))


def test_training_requires_exactly_the_checks_that_run() -> None:
    defined = [key.name for check in WINDOW_CHECKS for key in check.check_keys]
    assert defined == list(REQUIRED_CHECKS)


@pytest.mark.parametrize("name", ["windows", "policy", "deploy"])
def test_every_job_is_hourly_and_keyed_by_window_id(name: str) -> None:
    job = build_defs().resolve_job_def(name)
    assert job.partitions_def is not None
    assert job.partitions_def.get_first_partition_key() == "2025-01-01T00:00"
