"""Whose answer a turn is, and whether an answer that is not ours may train.

What belongs here: reading a logged policy version, and the rules of BABYLON_FOREIGN_TURNS and BABYLON_MIN_OWN_SHARE.

GRPO's ratio assumes that the policy in training, or one shortly before it, sampled the answer. Another model's answer
that did well can still be imitated: its likelihood rises, and the ratio's clip bounds the step. One that did badly says
little: the policy would not have given it, and pushing an unlikely text further down moves weights for nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from babylon_rl.errors import DataError
from babylon_rl.settings import ForeignTurns
from babylon_rl.types import GroupMember

STAND_IN: Final = "scripted/"
"""Prefix of what the simulator's scripted test agents log where they stand in for the base policy."""

_CHECKPOINT_MARKS: Final = ("@", ":step")  # ours and vLLM's; W&B's `wandb-artifact:///entity/project/lineage:step3`
_LONGEST_STEP: Final = 9  # digits; more is no step


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who gave an answer.

    Attributes:
        is_own: A checkpoint of the lineage, its base, or a scripted stand-in.
        step: The checkpoint (0: the base), where the version names one of the lineage's.
    """

    is_own: bool
    step: int | None = None


FOREIGN: Final = Speaker(is_own=False)


def find_speaker(version: str | None, lineage: str, base_model: str | None = None) -> Speaker:
    """Read a logged policy version.

    Args:
        version: `babylon-mmo@3`, W&B's name of it, the base's name, any other model's, or None; a provider's prefix
            (`openai/…`, `hosted_vllm/…`) changes nothing.
        lineage: Its checkpoints are own.
        base_model: BABYLON_BASE_MODEL; None: the base is known as step 0 only.

    Returns:
        Foreign where nothing tells that it is own: no version, another lineage's, another model's.
    """
    name = (version or "").strip()
    if name.startswith(STAND_IN):
        return Speaker(is_own=True)
    if base_model and (name == base_model or name.endswith(f"/{base_model}")):
        return Speaker(is_own=True, step=0)
    last = name.rpartition("/")[2]
    for mark in _CHECKPOINT_MARKS:
        head, found, step = last.rpartition(mark)
        if found and head == lineage:
            known = step.isdecimal() and len(step) <= _LONGEST_STEP
            return Speaker(is_own=True, step=int(step) if known else None)
    return FOREIGN


def may_train(speaker: Speaker, advantage: float, rule: ForeignTurns) -> bool:
    """Whether a turn of `speaker` trains; `advantage` is its trajectory's."""
    return speaker.is_own or rule == "all" or (rule == "positive_only" and advantage > 0)


@dataclass(frozen=True, slots=True)
class OwnTurns:
    """How many turns are own, of how many."""

    own: int
    turns: int

    @property
    def share(self) -> float:
        """Between 0 and 1; 1 where there is no turn at all."""
        return self.own / self.turns if self.turns else 1.0


def count_own_turns(members: Sequence[GroupMember], lineage: str, base_model: str | None) -> OwnTurns:
    """Count the turns of `members` by who answered."""
    speakers = [find_speaker(t.policy_version, lineage, base_model) for m in members for t in m.turns]
    return OwnTurns(sum(s.is_own for s in speakers), len(speakers))


def require_own_share(found: OwnTurns, at_least: float, *, lineage: str, what: str) -> None:
    """Refuse what too few own turns are in.

    Raises:
        DataError: With the fact `too_foreign`.
    """
    if found.share < at_least:
        raise DataError(
            f"{what}: {found.own} of {found.turns} turns were answered by a checkpoint of {lineage!r} or its base, a share of "
            f"{found.share:.2f}, and BABYLON_MIN_OWN_SHARE asks for {at_least:g}; let agents play with this policy "
            "(`babylon-rl serve`, calls logged with `modelVersion`), or set BABYLON_MIN_OWN_SHARE=0 to learn from others' "
            "answers by the rule of BABYLON_FOREIGN_TURNS, as for a warm start",
            facts={
                "too_foreign": True,
                "own_turns": found.own,
                "turns": found.turns,
                "own_share": round(found.share, 4),
            },
        )
