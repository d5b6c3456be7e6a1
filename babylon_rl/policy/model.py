"""The small policy's weights: sizes by name, a fresh model, and loading a base with or without its adapter."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from babylon_rl.errors import ConfigError, DataError
from babylon_rl.policy.compat import undo_art_patch
from babylon_rl.policy.shipped import require_base

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Shape:
    """Width, depth and heads of a decoder; the head size is `width / heads`."""

    width: int
    layers: int
    heads: int
    feed_forward: int


CONTEXT_TOKENS: Final = 2048
SIZES: Final = {
    "0.4M": Shape(96, 3, 4, 256),
    "1M": Shape(128, 4, 4, 384),
    "3M": Shape(224, 5, 7, 640),
    "7M": Shape(320, 6, 8, 896),
}


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A model in eval mode and its tokenizer."""

    model: Any  # transformers.PreTrainedModel
    tokenizer: Any  # transformers.PreTrainedTokenizerFast

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return int(self.model.config.max_position_embeddings)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def new_model(tokenizer: "PreTrainedTokenizerFast", size: str, seed: int) -> Qwen3ForCausalLM:
    """Make an untrained Qwen3-shaped decoder.

    Args:
        tokenizer: Decides the vocabulary and the special ids.
        size: A key of `SIZES`.
        seed: Of the initial weights; torch's global generator is left as it was.

    Raises:
        ConfigError: No size has that name.
    """
    if size not in SIZES:
        raise ConfigError(f"policy size {size!r} is unknown; expected one of {', '.join(SIZES)}")
    s = SIZES[size]
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=s.width,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.heads,
        head_dim=s.width // s.heads,
        intermediate_size=s.feed_forward,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # About 1/√width. With the usual 0.02 the copy circuit that reads a ticker appears late or never (docs/policy.md §1).
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def load_policy(base: Path, adapter: Path | None = None) -> LoadedPolicy:
    """Load a base policy, with a checkpoint's LoRA adapter merged into its weights.

    Args:
        base: Directory of the base: config, safetensors, tokenizer with chat template.
        adapter: Directory with `adapter_model.safetensors` and `adapter_config.json`, or None for the base itself.

    Raises:
        ConfigError: `base` is not a directory with a model.
        DataError: `adapter` is incomplete, or does not fit the base.
    """
    require_base(base)
    disable_progress_bar()  # for 35 small tensors, it would fill a server's log
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    if adapter is not None:
        model = _merge_adapter(model, base, adapter)
    undo_art_patch()
    return LoadedPolicy(model.eval().requires_grad_(False), tokenizer)


def _merge_adapter(model: Any, base: Path, adapter: Path) -> Any:
    """Merge `adapter`: as fast as the base afterwards, and equal to the unmerged model up to float noise."""
    missing = [n for n in ("adapter_config.json", "adapter_model.safetensors") if not (adapter / n).is_file()]
    if missing:
        raise DataError(
            f"checkpoint {str(adapter)!r} lacks {' and '.join(missing)}; "
            "it is no adapter, or was never finished: train that step again"
        )
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError) as e:
        raise DataError(
            f"checkpoint {str(adapter)!r} does not fit base {str(base)!r}: {str(e).splitlines()[0][:200]}; "
            "serve it with the base it was trained on"
        ) from e
