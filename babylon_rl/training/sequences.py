"""Batch → the token sequences that train, grouped by decision; and what is left out, counted.

What belongs here: which turns train, with which reward, and by which policy each was sampled.
No ART and no torch: a batch with nothing to learn is refused before either is loaded.

Each logged call was made from its own system and user prompt, so each turn is its own sequence. One group
per (window, decision): its members share a long prompt, which ART's packing then stores once (docs/policy.md §6).
Where an agent missed a decision, the others are compared among themselves.
"""

import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from babylon_rl.errors import DataError
from babylon_rl.policy.prompting import PromptRenderer
from babylon_rl.training.rewards import SAME_REWARD
from babylon_rl.training.trainer import RewardedGroup, TrainingBatch, check_batch
from babylon_rl.types import Turn

logger = logging.getLogger(__name__)

MAX_STALENESS: Final = 2
"""Most steps between a turn's policy and the parent for which log-probs are recomputed with the turn's own policy."""

MIN_TEMPERATURE: Final = 0.1
"""Below it a policy is nearly greedy: its probabilities say nothing, and gradients grow with 1/temperature."""

Origin = Literal["recomputed", "unknown", "stale", "greedy"]

_COUNTED: Final = (
    *(f"behaviour/{origin}" for origin in get_args(Origin)),
    *(f"data/{n}" for n in ("turns", "turns_too_long", "turns_empty", "turns_alone", "groups_without_spread")),
)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The policy from which the log-probabilities of a turn at sampling time are taken.

    Attributes:
        step: The checkpoint that sampled the turn (0: the base); None: the parent instead.
        temperature: At which it sampled; training uses the same.
    """

    step: int | None
    temperature: float


PARENT: Final = Behaviour(None, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnSequence:
    """One turn as it trains.

    Attributes:
        response_ids: The answer's tokens and the end-of-turn token; the only ones that train.
        reward: Its trajectory's; ART computes the advantage from it.
        origin: Why `behaviour` is what it is; counted in the metrics.
    """

    trajectory_id: str
    turn: Turn
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    reward: float
    behaviour: Behaviour
    origin: Origin

    @property
    def tokens(self) -> int:
        """Number of tokens of prompt and answer together."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionGroup:
    """Turns of distinct agents at the same decision of one window, with rewards that differ."""

    group_id: str
    window_id: str
    decision: int
    sequences: tuple[TurnSequence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What will train.

    Attributes:
        counts: Number of turns by outcome (`behaviour/…`, `data/…`), for the metrics.
    """

    decisions: tuple[DecisionGroup, ...]
    counts: dict[str, float]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(s.tokens for d in self.decisions for s in d.sequences)

    @property
    def behaviours(self) -> tuple[Behaviour, ...]:
        """Each behaviour once, in a fixed order."""
        distinct = {s.behaviour for d in self.decisions for s in d.sequences}
        return tuple(sorted(distinct, key=lambda b: (b.step is None, b.step or 0, b.temperature)))


def plan_training(
    batch: TrainingBatch, tokenizer: Any, *, context: int, max_staleness: int = MAX_STALENESS
) -> TrainingPlan:
    """Lay out what a batch trains.

    Args:
        batch: Judged groups, in any order.
        tokenizer: The base's, with its chat template.
        context: Most tokens of a sequence; a longer one is left out and counted, never cut.
        max_staleness: 0 for a trainer that can recompute log-probs with the parent only.

    Returns:
        Groups in time order, at least one; members of a group in an order drawn from the batch's seed.

    Raises:
        DataError: The batch fails `check_batch`, no group has two different rewards, or nothing is left to train on.
    """
    check_batch(batch)
    render = PromptRenderer(tokenizer)
    counts = Counter[str](dict.fromkeys(_COUNTED, 0))
    spread = [g for g in batch.ordered if _rewards_differ(list(g.rewards.values()))]
    counts["data/groups_without_spread"] = len(batch.groups) - len(spread)
    if not spread:
        raise DataError(
            f"batch for {batch.lineage}@{batch.step}: in all {len(batch.groups)} groups every member has the same "
            "reward, so there is nothing to learn; judge with a judge that tells members apart, or wait for windows",
            facts={"groups": len(batch.groups), "lineage": batch.lineage, "step": batch.step},
        )
    decisions: list[DecisionGroup] = []
    for rewarded in spread:
        decisions += _group_by_decision(rewarded, batch, tokenizer, render, context, max_staleness, counts)
    counts["data/tokens_trainable"] = sum(len(s.response_ids) for d in decisions for s in d.sequences)
    if not decisions:
        raise DataError(
            f"batch for {batch.lineage}@{batch.step} has no trainable tokens: of {counts['data/turns']} turns, "
            f"{counts['data/turns_too_long']} are longer than the policy's context of {context} tokens, "
            f"{counts['data/turns_empty']} have no answer and {counts['data/turns_alone']} have no turn "
            "with another reward to be compared with; choose a base with a longer context or log what agents answer",
            facts=dict(counts),
        )
    logger.info("planned lineage=%s step=%d %s", batch.lineage, batch.step, dict(counts))
    return TrainingPlan(decisions=tuple(decisions), counts={k: float(v) for k, v in sorted(counts.items())})


def _group_by_decision(
    rewarded: RewardedGroup,
    batch: TrainingBatch,
    tokenizer: Any,
    render: PromptRenderer,
    context: int,
    max_staleness: int,
    counts: Counter[str],
) -> list[DecisionGroup]:
    group = rewarded.group
    members = sorted(group.members, key=lambda m: m.trajectory_id)
    # Seeded, so that no agent always shares a packed row with the same others; by id, so that order never matters.
    random.Random(f"{batch.seed}/{batch.step}/{group.group_id}").shuffle(members)  # noqa: S311  not a secret
    answers = [t.response for m in members for t in m.turns]
    encoded = iter(tokenizer(answers, add_special_tokens=False)["input_ids"]) if answers else iter(())
    by_decision: dict[int, list[TurnSequence]] = {}
    for member in members:
        for decision, turn in enumerate(member.turns):
            ids = next(encoded)
            counts["data/turns"] += 1
            if not ids:
                counts["data/turns_empty"] += 1
                continue
            behaviour, origin = behaviour_of(turn, batch.lineage, batch.parent_step, max_staleness)
            sequence = TurnSequence(
                trajectory_id=member.trajectory_id,
                turn=turn,
                prompt_ids=tuple(render.ids(turn.system, turn.user)),
                response_ids=(*ids, tokenizer.eos_token_id),
                reward=rewarded.rewards[member.trajectory_id],
                behaviour=behaviour,
                origin=origin,
            )
            if sequence.tokens > context:
                counts["data/turns_too_long"] += 1
                continue
            by_decision.setdefault(decision, []).append(sequence)
    kept = []
    for decision, sequences in sorted(by_decision.items()):
        if not _rewards_differ([s.reward for s in sequences]):
            counts["data/turns_alone"] += len(sequences)
            continue
        counts.update(f"behaviour/{s.origin}" for s in sequences)
        kept.append(
            DecisionGroup(
                group_id=group.group_id, window_id=group.window_id, decision=decision, sequences=tuple(sequences)
            )
        )
    return kept


def behaviour_of(
    turn: Turn, lineage: str, parent_step: int, max_staleness: int = MAX_STALENESS
) -> tuple[Behaviour, Origin]:
    """Choose the policy whose log-probs are used for a turn, and say why.

    Logged turns carry none. Those of a checkpoint of this lineage, at most `max_staleness` steps before the parent,
    are recomputed with that checkpoint at the logged temperature (unknown: 1). All others are taken from the parent
    at temperature 1, as if it had sampled them.
    """
    name, _, step = (turn.policy_version or "").rpartition("@")
    if name != lineage or not step.isdecimal() or int(step) > parent_step:
        return PARENT, "unknown"
    if parent_step - int(step) > max_staleness:
        return PARENT, "stale"
    temperature = 1.0 if turn.temperature is None else turn.temperature
    if temperature < MIN_TEMPERATURE:
        return PARENT, "greedy"
    return Behaviour(int(step), temperature), "recomputed"


def _rewards_differ(rewards: Sequence[float]) -> bool:
    """Whether any two rewards differ by more than float noise.

    ART leaves out only advantages of exactly 0. With float noise, three rewards of 0.1 would train, scaled up to full
    strength.
    """
    return len(rewards) > 1 and max(rewards) - min(rewards) > SAME_REWARD
