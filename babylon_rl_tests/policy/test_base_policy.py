import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from babylon_rl.base_policy.base import clone_base, make_base_policy, write_base
from babylon_rl.base_policy.base_evaluation import BaseEvaluation, evaluate_base, follows_its_reason
from babylon_rl.errors import ConfigError, DataError
from babylon_rl.policy.compat import undo_art_patch
from babylon_rl.policy.model import LoadedPolicy, load_policy
from babylon_rl.policy.sampling import SampleRequest, sample
from babylon_rl.policy.shipped import shipped_base

EVALUATION = BaseEvaluation(
    answers=1, reading_accuracy=1.0, ticker_accuracy=1.0, invalid_rate=0.0, mean_pnl_usd={0.0: 1.0}
)


def test_the_shipped_base_reads_its_prompts_and_plays_legally(policy: LoadedPolicy) -> None:
    evaluation = evaluate_base(policy, seed=4711, windows=10)

    assert evaluation.answers == 60
    assert evaluation.reading_accuracy >= 0.95
    assert (evaluation.ticker_accuracy or 0) >= 0.95
    assert evaluation.invalid_rate <= 0.05


def test_the_shipped_base_is_small_and_says_how_it_was_made() -> None:
    files = {f.name: f.stat().st_size for f in shipped_base().iterdir()}
    made = json.loads((shipped_base() / "base.json").read_text())

    assert sum(files.values()) < 4_000_000
    assert not [n for n in files if n.endswith((".bin", ".pt", ".pkl"))]
    assert {"size", "seed", "windows", "batch", "lr", "evaluation", "libraries"} <= set(made)
    assert made["evaluation"]["answers"] >= 200


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        tiny = clone_base(size="0.4M", seed=seed, windows=11, batch=16, lr=3e-3)
        write_base(tiny, tmp_path / name, {"seed": seed}, EVALUATION)

    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert "model.safetensors" in files
    for f in files:
        assert (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes(), f
    assert (tmp_path / "a/model.safetensors").read_bytes() != (tmp_path / "c/model.safetensors").read_bytes()


def test_a_base_that_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"reads 0\.0% of 204 held-out prompts right.*expected at least 95%") as e:
        make_base_policy(tmp_path / "base", windows=6, evaluation_windows=34)

    assert e.value.facts["reading_accuracy"] == 0.0
    assert list(tmp_path.iterdir()) == []


def test_a_base_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="never overwritten"):
        make_base_policy(tmp_path, windows=6)
    with pytest.raises(ConfigError, match="at least 34"):
        make_base_policy(tmp_path / "x", windows=6, evaluation_windows=10)
    with pytest.raises(ConfigError, match=r"'9M' is unknown; expected one of 0\.4M, 1M, 3M, 7M"):
        make_base_policy(tmp_path / "x", windows=6, size="9M")


@pytest.mark.parametrize(("reading", "ticker", "passed"), [(0.95, 0.95, True), (0.94, 1, False), (1, 0.94, False)])
def test_both_floors_are_095(reading: float, ticker: float, passed: bool) -> None:
    evaluation = BaseEvaluation(
        answers=9, reading_accuracy=reading, ticker_accuracy=ticker, invalid_rate=0, mean_pnl_usd={}
    )
    assert evaluation.passed is passed


def test_a_base_that_never_trades_a_perp_does_not_pass() -> None:
    assert not BaseEvaluation(
        answers=9, reading_accuracy=1, ticker_accuracy=None, invalid_rate=0, mean_pnl_usd={}
    ).passed


@pytest.mark.parametrize(
    ("text", "follows"),
    [
        ('{"why":"TRUMP bad","action":"SELL","ticker":"TRUMP","size":0.3}', True),
        ('{"why":"TRUMP bad","action":"SELL","ticker":"MUSK","size":0.3}', False),
        ('{"action":"SELL","ticker":"MUSK","size":0.3}', False),
        ('{"why":"event yes","action":"BUY_YES","size":0.3}', None),
        ("{", None),
    ],
)
def test_an_order_trades_the_ticker_that_its_reason_names(text: str, follows: bool | None) -> None:
    assert follows_its_reason(text) is follows


def test_an_adapter_is_merged_to_the_same_function(
    policy: LoadedPolicy, prompts: list[list[int]], write_adapter: Callable[[Path], Any], tmp_path: Path
) -> None:
    unmerged = write_adapter(tmp_path)
    merged = load_policy(shipped_base(), tmp_path)
    ids = torch.tensor([prompts[0]])

    with torch.inference_mode():
        expected, got, base = (m(input_ids=ids).logits for m in (unmerged, merged.model, policy.model))

    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)
    assert float((expected - base).abs().max()) > 0.1
    assert not merged.model.training
    assert type(merged.model) is type(policy.model)


def test_an_unfinished_or_foreign_adapter_is_named(write_adapter: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks adapter_config.json and adapter_model.safetensors"):
        load_policy(shipped_base(), tmp_path)
    with pytest.raises(ConfigError, match="make-base-policy"):
        load_policy(tmp_path)
    write_adapter(tmp_path / "adapter")
    write_base(clone_base(size="1M", seed=1, windows=0, batch=1, lr=1), tmp_path / "wide", {}, EVALUATION)
    with pytest.raises(DataError, match="does not fit base"):
        load_policy(tmp_path / "wide", tmp_path / "adapter")


def test_after_import_art_the_model_still_runs(policy: LoadedPolicy) -> None:
    """Guards `undo_art_patch`: without it every forward after `import art` raises TypeError on this transformers."""
    from art.transformers.patches import patch_preprocess_mask_arguments

    ids = torch.tensor([[5]])
    patch_preprocess_mask_arguments()
    with pytest.raises(TypeError):
        policy.model(input_ids=ids)

    undo_art_patch()
    policy.model(input_ids=ids)

    patch_preprocess_mask_arguments()
    sample(policy, [SampleRequest(prompt_ids=[5], temperature=0, seed=1, max_tokens=2)])
    policy.model(input_ids=ids)
