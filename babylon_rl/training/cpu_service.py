"""ART's `ModelService` on plain torch: PPO over packed rows, LoRA weights, Adam's state kept in the checkpoint.

What belongs here: the arithmetic of one training step. ART's `LocalBackend` (see `cpu_backend.py`) tokenises, weighs
and packs before it; ART's `loss_fn` is the loss.

Same parent, batch and seed give the same bytes, in any process: nothing is kept in memory between steps, rows are
drawn by a generator seeded by (seed, step), and the thread count is fixed while computing.

Axes are named as in `cpu_attention.py`.
"""

import asyncio
import json
import logging
import math
import warnings
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own habit
from safetensors.torch import load_file, save_file
from torch import Tensor

from babylon_rl.common.progress import Progress
from babylon_rl.errors import ConfigError, DataError
from babylon_rl.policy.checkpoints import METADATA_FILE, checkpoint_dir
from babylon_rl.policy.model import load_policy
from babylon_rl.settings import ForeignTurns
from babylon_rl.training import checkpoint_store
from babylon_rl.training.art_groups import behaviour_index
from babylon_rl.training.art_import import isolated_art_import
from babylon_rl.training.config import CpuTrainingConfig
from babylon_rl.training.cpu_attention import build_layout, use_packed_attention
from babylon_rl.training.sequences import PARENT, TURN_WEIGHTS, Behaviour

with isolated_art_import():
    from art.loss import loss_fn
    from art.metrics_taxonomy import TRAIN_GRADIENT_STEPS_KEY
    from art.preprocessing.pack import packed_tensors_from_dir

logger = logging.getLogger(__name__)

Rows = dict[str, Tensor]
"""ART's packed rows by name, [rows, width] each."""

OPTIMIZER_FILE = "optimizer.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuJob:
    """What `backend.train` has no argument for: the step to make, from what, and what its metadata records.

    Attributes:
        behaviours: What the placeholders in the log-probs mean (`art_groups.behaviour_placeholder`).
    """

    lineage: str
    step: int
    seed: int
    base_digest: str
    window_id: str | None = None
    windows: tuple[str, ...] = ()
    judgment_keys: tuple[str, ...] = ()
    behaviours: tuple[Behaviour, ...] = ()
    ledger_id: str | None = None
    foreign_turns: ForeignTurns | None = None

    @property
    def parent_step(self) -> int:
        return self.step - 1


class CpuService:
    """Trains one lineage. `job` is set before each `train`."""

    job: CpuJob

    def __init__(self, root: Path, base: Path, config: CpuTrainingConfig, progress: Progress) -> None:
        self._root, self._base, self._config, self._progress = root, base, config, progress

    async def start_openai_server(self, config: Any) -> tuple[str, int]:
        """Nothing is served here: `babylon-rl serve` does that, from the checkpoints this writes."""
        raise ConfigError("the CPU trainer serves nothing; run `babylon-rl serve`")

    async def vllm_engine_is_sleeping(self) -> bool:
        return False

    async def train_sft(self, batches: Any, config: Any, verbose: bool = False) -> AsyncIterator[dict[str, float]]:
        raise ConfigError("the CPU trainer does GRPO only; `babylon-rl make-base-policy` clones")
        yield {}  # makes this an async generator, as ART's protocol declares it

    async def train(
        self, disk_packed_tensors: Any, config: Any, _config: Any, verbose: bool = False
    ) -> AsyncIterator[dict[str, float]]:
        """Take the gradient steps of one training and write its checkpoint.

        Args:
            disk_packed_tensors: ART's packed rows; every trainable token has a log-prob or a placeholder.
            config: ART's `TrainConfig`: the learning rate.
            _config: ART's `dev.TrainConfig`: what the loss reads.
            verbose: Required by ART's protocol; not used.

        Yields:
            Metrics of each gradient step.
        """
        c, job = self._config, self.job
        rows = {k: v.clone() for k, v in packed_tensors_from_dir(**disk_packed_tensors).items() if _is_tensor(v)}
        with _limit_threads(c.threads):
            lengths = (rows["group_ids"] != -1).sum(1)  # [rows] int64, padding not counted
            rows["temperature"] = self._fill_logprobs(rows, lengths)
            learner = _Learner.open(self._root, self._base, c, job, float(config.learning_rate))
        count = len(lengths)
        total = math.ceil(count / c.rows_per_step) * c.epochs
        generator = torch.Generator().manual_seed(_derive_row_seed(job))
        done = 0
        for _ in range(c.epochs):
            order = torch.randperm(count, generator=generator)  # [rows] int64
            for i in range(0, count, c.rows_per_step):
                with _limit_threads(c.threads):
                    metrics = learner.step(_select_rows(rows, order[i : i + c.rows_per_step], lengths), _config)
                done += 1
                self._progress(total=total, note=f"loss {metrics['loss/train']:+.3f}")
                yield {**metrics, TRAIN_GRADIENT_STEPS_KEY: float(total)}
                await asyncio.sleep(0)  # a step blocks the loop: let other tasks run between two
        metadata = {
            "trainer": "cpu",
            "lineage": job.lineage,
            "step": job.step,
            "parent": learner.parent,
            "base": job.base_digest,
            "seed": job.seed,
            "window_id": job.window_id,
            "learning_rate": float(config.learning_rate),
            "config": asdict(c),
            "turn_weights": TURN_WEIGHTS,
            "foreign_turns": job.foreign_turns,
            "windows": list(job.windows),
            "judgment_keys": list(job.judgment_keys),
        }
        directory = checkpoint_dir(self._root, job.lineage, job.step)
        checkpoint_store.write(directory, metadata, learner.save, ledger_id=job.ledger_id)
        logger.info("trained lineage=%s step=%d rows=%d gradient_steps=%d", job.lineage, job.step, count, total)

    def _fill_logprobs(self, rows: Rows, lengths: Tensor) -> Tensor:
        """Replace placeholders in `rows`, in place, by log-probs of the policies they stand for.

        Returns:
            The temperature of every token, [rows, width] float32: 1 except where a turn was sampled at another.
        """
        placeholders, trains = rows["logprobs"].clone(), rows["assistant_mask"]
        temperature = torch.ones(placeholders.shape)
        by_step: dict[int, Tensor] = {}
        # A NaN is no placeholder: ART then takes the learner's own.
        for placeholder in torch.unique(placeholders[trains]).tolist():
            number = behaviour_index(placeholder)
            if number is None:
                continue
            behaviour = self.job.behaviours[number] if number < len(self.job.behaviours) else PARENT
            here = trains & (placeholders == placeholder)  # [rows, width] bool
            temperature[here] = behaviour.temperature
            step = self.job.parent_step if behaviour.step is None else behaviour.step
            by_step[step] = by_step.get(step, torch.zeros_like(trains)) | here
        for step, here in sorted(by_step.items()):
            adapter = checkpoint_dir(self._root, self.job.lineage, step) if step else None
            model = use_packed_attention(load_policy(self._base, adapter).model)
            wanted = here.any(1).nonzero()[:, 0]  # [rows with such a turn] int64
            wanted = wanted[lengths[wanted].argsort(stable=True)]  # similar lengths together: less padding
            for i in range(0, len(wanted), self._config.rows_per_step):
                index = wanted[i : i + self._config.rows_per_step]
                part = _select_rows({**rows, "temperature": temperature, "here": here}, index, lengths)
                with torch.inference_mode():
                    logprobs, _ = token_logprobs(model, part)
                width = logprobs.shape[1]
                at = F.pad(logprobs[:, :-1], (1, 0))  # from "of the next token" to "of this token"
                rows["logprobs"][index, :width] = torch.where(part["here"], at, rows["logprobs"][index, :width])
        return temperature


class _Learner:
    """The trainable weights and their optimizer, for the gradient steps of one training."""

    def __init__(self, policy: Any, optimizer: torch.optim.AdamW, config: CpuTrainingConfig, parent: Any) -> None:
        self._policy, self._optimizer, self._config, self.parent = policy, optimizer, config, parent
        self._causal = policy.get_base_model()
        self._named = _list_trainable(policy)

    @classmethod
    def open(cls, root: Path, base: Path, c: CpuTrainingConfig, job: CpuJob, learning_rate: float) -> "_Learner":
        from peft import LoraConfig, PeftModel, get_peft_model

        model = use_packed_attention(load_policy(base).model)
        directory = checkpoint_dir(root, job.lineage, job.parent_step)
        parent = None
        if job.parent_step:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                policy = PeftModel.from_pretrained(model, str(directory), is_trainable=True)
            digest = checkpoint_store.file_digests(directory)[METADATA_FILE]
            parent = {"step": job.parent_step, "digest": digest}
        else:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated name of transformers
                torch.manual_seed(job.seed)
                policy = get_peft_model(
                    model, LoraConfig(r=c.rank, lora_alpha=c.alpha, target_modules=list(c.targets), lora_dropout=0.0)
                )
        named = _list_trainable(policy)
        optimizer = torch.optim.AdamW(
            list(named.values()), lr=learning_rate, betas=c.betas, eps=c.adam_eps, weight_decay=c.weight_decay
        )
        if job.parent_step:
            saved = load_file(directory / OPTIMIZER_FILE)
            try:
                for name, p in named.items():
                    optimizer.state[p] = {k: saved[f"{name}.{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}
            except KeyError as e:
                raise DataError(
                    f"checkpoint {job.lineage}@{job.parent_step} was trained with other layers: no Adam state for {e}; "
                    "train with the same CpuTrainingConfig, or start a new lineage with BABYLON_LINEAGE"
                ) from e
        policy.train()
        return cls(policy, optimizer, c, parent)

    def step(self, rows: Rows, config: Any) -> dict[str, float]:
        """One gradient step over the given rows; ART's loss, clipped, then Adam."""
        logprobs, entropy = token_logprobs(self._causal, rows)
        loss = loss_fn(rows, logprobs, None, None, config).policy_loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self._named.values()), self._config.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        mask = _shift_left(rows["assistant_mask"], False)  # [rows, width] bool
        change = (logprobs.detach() - _shift_left(rows["logprobs"], float("nan")))[mask].nan_to_num()  # [trained]
        return {
            "loss/train": float(loss.detach()),
            "loss/grad_norm": float(norm),
            "loss/entropy": float(entropy),
            "loss/learning_rate": float(self._optimizer.param_groups[0]["lr"]),
            "offpolicy/approx_kl": float((change.exp() - 1 - change).mean()),
            "offpolicy/clipped": float(((change.exp() - 1).abs() > self._config.clip).float().mean()),
        }

    def save(self, directory: Path) -> None:
        """Write adapter and optimizer. The adapter's config names no base: the metadata does, by digest."""
        from peft import get_peft_model_state_dict

        weights = get_peft_model_state_dict(self._policy, save_embedding_layers=False)
        save_file({k: v.detach().contiguous() for k, v in weights.items()}, directory / "adapter_model.safetensors")
        config = self._policy.active_peft_config.to_dict() | {"base_model_name_or_path": None, "inference_mode": True}
        text = json.dumps(config, indent=2, sort_keys=True, default=lambda v: sorted(v))  # sets
        (directory / "adapter_config.json").write_text(text + "\n")
        state = {f"{n}.{k}": v for n, p in self._named.items() for k, v in self._optimizer.state[p].items()}
        save_file({k: v.contiguous() for k, v in state.items()}, directory / OPTIMIZER_FILE)


def token_logprobs(causal: Any, rows: Rows) -> tuple[Tensor, Tensor]:
    """Log-probability of each trainable token, in ART's shifted layout: position t holds that of token t + 1.

    A packed row is a common prompt and then, per sequence, its own rest of prompt and answer; a token attends to
    its own sequence and to the common prompt. Logits are computed at trainable positions only.

    Args:
        causal: A decoder with `.model` and `.lm_head`, after `use_packed_attention`.
        rows: Packed rows, [rows, width] each; `temperature` divides the logits.

    Returns:
        [rows, width] float32, zero elsewhere; and the mean entropy of the trainable positions.
    """
    full = rows["group_ids"] != -1  # [rows, width] bool: no padding
    layout = build_layout(rows["group_ids"], rows["parent_ids"], full.sum(1))
    mask = _shift_left(rows["assistant_mask"], False)  # [rows, width] bool: the next token trains
    hidden = causal.model(
        input_ids=rows["tokens"][full][None],
        position_ids=rows["input_pos"][full][None],
        use_cache=False,
        packed_layout=layout,
    ).last_hidden_state[0]  # [line, width of the hidden state]
    logits = causal.lm_head(hidden[mask[full]]).float() / _shift_left(rows["temperature"], 1.0)[mask][:, None]
    logprobs = F.log_softmax(logits, -1)  # [trained, vocab]
    picked = logprobs.gather(1, _shift_left(rows["tokens"], 0)[mask][:, None])[:, 0]  # [trained]
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1).mean()
    return torch.zeros(mask.shape).masked_scatter(mask, picked), entropy


def _select_rows(rows: Rows, index: Tensor, lengths: Tensor) -> Rows:
    """The rows at `index` [chosen rows] int64, as wide as the longest of them."""
    width = int(lengths[index].max())
    return {k: v[index, :width] for k, v in rows.items()}


def _shift_left(x: Tensor, fill: float) -> Tensor:
    """[rows, width] with each position holding what the next held; the last holds `fill`."""
    return F.pad(x[:, 1:], (0, 1), value=fill)


def _list_trainable(policy: Any) -> dict[str, Tensor]:
    return {n: p for n, p in policy.named_parameters() if p.requires_grad}


def _derive_row_seed(job: CpuJob) -> int:
    return (job.seed * 1_000_003 + job.step) % 2**63


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


@contextmanager
def _limit_threads(count: int) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
