"""The base policy: made by one seeded command, shipped with the package, never changed afterwards."""

import json
import logging
import os
import shutil
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from babylon_rl.base_policy.base_evaluation import MIN_ACCURACY, BaseEvaluation, evaluate_base
from babylon_rl.base_policy.corpus import play_by_habit
from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from babylon_rl.policy.model import LoadedPolicy

logger = logging.getLogger(__name__)

MIN_EVALUATION_WINDOWS: Final = 34
_LIBRARIES: Final = ("torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseReport:
    """A finished base.

    Attributes:
        path: Its directory.
        evaluation: What it did on held-out windows, greedy and at temperature 1.
        seconds: Wall time of everything.
    """

    path: Path
    size: str
    parameters: int
    seed: int
    windows: int
    evaluation: BaseEvaluation
    seconds: float


def make_base_policy(
    out: Path,
    *,
    size: str = "0.4M",
    seed: int = 1,
    windows: int = 3200,
    batch: int = 16,
    lr: float = 3e-3,
    progress: Progress = ignore_progress,
    evaluation_windows: int = 200,
) -> BaseReport:
    """Make a base policy from nothing: tokenizer, behaviour cloning, evaluation; about two minutes on one core.

    The same arguments give the same bytes on the same processor and library versions: it runs on one thread
    for that reason.

    Args:
        out: Directory to make. It appears whole or not at all, and must not exist yet.
        size: A key of `policy.model.SIZES`.
        seed: Of the weights, the corpus, its order and the evaluation.
        windows: Windows of habit play to learn from, three decisions each.
        batch: Decisions per step.
        lr: Peak learning rate.
        progress: Called every 20 steps, with the total.
        evaluation_windows: Held-out windows of the evaluation, six answers each; at least 34, for some 200 answers.

    Raises:
        ConfigError: `out` exists, no size has that name, or the evaluation has too few windows.
        DataError: The base cannot read its prompts; nothing is left behind.
    """
    if out.exists():
        raise ConfigError(f"{str(out)!r} exists already and a base is never overwritten; remove it or name another")
    if evaluation_windows < MIN_EVALUATION_WINDOWS:
        raise ConfigError(
            f"an evaluation of {evaluation_windows} windows is too short to judge a base; use at least {MIN_EVALUATION_WINDOWS}"
        )
    began = time.monotonic()
    policy = clone_base(size=size, seed=seed, windows=windows, batch=batch, lr=lr, progress=progress)
    evaluation = evaluate_base(policy, seed=seed, windows=evaluation_windows)
    if not evaluation.passed:
        raise DataError(
            f"base policy of size {size} and seed {seed} reads {evaluation.reading_accuracy:.1%} of {evaluation.answers} "
            f"held-out prompts right and trades the ticker it names in {evaluation.ticker_accuracy or 0.0:.1%}; "
            f"expected at least {MIN_ACCURACY:.0%} of both: give it more windows ({windows} now) or another seed",
            facts={"reading_accuracy": evaluation.reading_accuracy, "ticker_accuracy": evaluation.ticker_accuracy},
        )
    write_base(policy, out, {"size": size, "seed": seed, "windows": windows, "batch": batch, "lr": lr}, evaluation)
    logger.info("made base policy path=%s size=%s seed=%d reading=%.4f", out, size, seed, evaluation.reading_accuracy)
    return BaseReport(
        path=out,
        size=size,
        parameters=policy.parameters,
        seed=seed,
        windows=windows,
        evaluation=evaluation,
        seconds=time.monotonic() - began,
    )


def clone_base(
    *, size: str, seed: int, windows: int, batch: int, lr: float, progress: Progress = ignore_progress
) -> "LoadedPolicy":
    """Train tokenizer and model; evaluates and saves nothing."""
    import torch

    from babylon_rl.base_policy.cloning import clone
    from babylon_rl.base_policy.tokenizer import train_tokenizer
    from babylon_rl.policy.compat import undo_art_patch
    from babylon_rl.policy.model import LoadedPolicy, new_model

    undo_art_patch()
    tokenizer = train_tokenizer(seed)
    model = new_model(tokenizer, size, seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # summing in another order would change the bytes
    try:
        clone(
            model, tokenizer, play_by_habit("cloning", seed, windows), seed=seed, batch=batch, lr=lr, progress=progress
        )
    finally:
        torch.set_num_threads(threads)
    return LoadedPolicy(model, tokenizer)


def write_base(policy: "LoadedPolicy", out: Path, recipe: dict[str, object], evaluation: BaseEvaluation) -> None:
    """Save weights, tokenizer and `base.json` under a temporary name, then rename.

    `base.json` records the arguments, the evaluation and the library versions, but no time: the same run writes the same
    bytes.
    """
    partial = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        policy.model.save_pretrained(partial)
        policy.tokenizer.save_pretrained(partial)
        record = {
            **recipe,
            "parameters": policy.parameters,
            "evaluation": asdict(evaluation)
            | {"mean_pnl_usd": {f"{t:g}": round(v, 4) for t, v in evaluation.mean_pnl_usd.items()}},
            "libraries": {name: version(name) for name in _LIBRARIES},
        }
        (partial / "base.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
