"""The CPU recipe: the numbers of docs/policy.md, each a field. Changing one changes the checkpoint's bytes, so all are recorded."""

from dataclasses import dataclass

ALL_LINEAR = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTrainingConfig:
    """GRPO with LoRA on the small policy.

    Full fine-tuning collapsed on two of three seeds; LoRA at 3e-3 learned on every one (docs/policy.md §5).

    Attributes:
        rank: Of the adapter; `alpha / rank` scales it.
        targets: Names of the layers adapted: all linear ones.
        rows_per_step: Packed rows per gradient step.
        row_tokens: Tokens of a packed row; longer where one sequence needs it.
        clip: PPO's epsilon: how far the ratio to the behaviour policy may move an update.
        threads: torch threads while training. Part of the result (sums are split by thread, so another count gives
            other last digits), and one is enough: on two shared cores a training took 14 s with one thread and 17
            to 24 s with two, which wait for each other.
    """

    rank: int = 4
    alpha: int = 8
    targets: tuple[str, ...] = ALL_LINEAR
    learning_rate: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    rows_per_step: int = 8
    row_tokens: int = 640
    epochs: int = 1
    clip: float = 0.2
    threads: int = 1
