"""Batch → the token sequences that train, with their advantages and weights; and what is left out, counted.

What belongs here: which turns train, how strongly, and by which policy each was sampled.
No ART and no torch: a batch with nothing to learn is refused before either is loaded.

Each logged call was made from its own system and user prompt, so each turn is its own sequence. A trajectory has one
advantage, over all members of its group, and all its turns have that one. Every trajectory of a batch weighs the same:
each of its n turns that train counts mean/n, where mean is the batch's mean of n, so that 1 is every turn's weight where
all have equally many (docs/adr/0012). Turns of one index share a long prompt, which ART's packing stores once
(docs/policy.md §6); that is all that grouping them by decision is for.
"""

import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

from msgspec import UNSET

from babylon_rl.errors import DataError
from babylon_rl.policy.prompting import PromptRenderer
from babylon_rl.training.foreign_turns import (
    OwnTurns,
    Speaker,
    count_own_turns,
    find_speaker,
    may_train,
    require_own_share,
)
from babylon_rl.training.rewards import SAME_REWARD, grpo_advantages
from babylon_rl.training.trainer import RewardedGroup, TrainingBatch, check_batch
from babylon_rl.types import Turn

logger = logging.getLogger(__name__)

MAX_STALENESS: Final = 2
"""Most steps between a turn's policy and the parent for which log-probs are recomputed with the turn's own policy."""

MIN_TEMPERATURE: Final = 0.1
"""Below it a policy is nearly greedy: its probabilities say nothing, and gradients grow with 1/temperature."""

TURN_WEIGHTS: Final = "one advantage per trajectory; each of its n turns weighs mean(n)/n"
"""The rule above in a line, for metadata."""

Origin = Literal["recomputed", "unknown", "stale", "greedy"]

_COUNTED: Final = (
    *(f"behaviour/{origin}" for origin in get_args(Origin)),
    *(
        f"data/{n}"
        for n in (
            "turns",
            "turns_own",
            "turns_foreign",
            "turns_foreign_left_out",
            "turns_too_long",
            "turns_empty",
            "turns_cut",
            "groups_without_spread",
        )
    ),
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
        response_ids: The answer's tokens and, unless it was cut, the end-of-turn token; the only ones that train.
        reward: Its trajectory's rank in the group.
        advantage: Its trajectory's, over all members of the group.
        weight: How much the turn counts; 1 where all trajectories of the batch have equally many turns that train.
        origin: Why `behaviour` is what it is; counted in the metrics.
    """

    trajectory_id: str
    turn: Turn
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    reward: float
    advantage: float
    behaviour: Behaviour
    origin: Origin
    weight: float = 1.0

    @property
    def tokens(self) -> int:
        """Number of tokens of prompt and answer together."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionGroup:
    """Turns of distinct agents at the same decision of one window: those that may share a prompt."""

    group_id: str
    window_id: str
    decision: int
    sequences: tuple[TurnSequence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What will train.

    Attributes:
        counts: Number of turns by outcome (`behaviour/…`, `data/…`) and `data/own_share`, for the metrics.
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
        DataError: The batch fails `check_batch`, too few of its turns are own, no group has two different rewards, or
            nothing is left to train on.
    """
    check_batch(batch)
    render = PromptRenderer(tokenizer)
    counts = Counter[str](dict.fromkeys(_COUNTED, 0))
    own = _count_own(batch)
    counts["data/turns_own"], counts["data/turns_foreign"] = own.own, own.turns - own.own
    name = f"batch for {batch.lineage}@{batch.step}"
    require_own_share(own, batch.min_own_share, lineage=batch.lineage, what=name)
    spread = [g for g in batch.ordered if _rewards_differ(list(g.rewards.values()))]
    counts["data/groups_without_spread"] = len(batch.groups) - len(spread)
    if not spread:
        raise DataError(
            f"{name}: in all {len(batch.groups)} groups every member has the same "
            "reward, so there is nothing to learn; judge with a judge that tells members apart, or wait for windows",
            facts={"groups": len(batch.groups), "lineage": batch.lineage, "step": batch.step, "nothing_to_train": True},
        )
    decisions: list[DecisionGroup] = []
    for rewarded in spread:
        decisions += _group_by_decision(rewarded, batch, tokenizer, render, context, max_staleness, counts)
    counts["data/tokens_trainable"] = sum(len(s.response_ids) for d in decisions for s in d.sequences)
    if not any(s.advantage for d in decisions for s in d.sequences):
        left_out = counts["data/turns_foreign_left_out"]
        raise DataError(
            f"{name} has no trainable tokens: of {counts['data/turns']} turns, "
            f"{counts['data/turns_too_long']} are longer than the policy's context of {context} tokens, "
            f"{counts['data/turns_empty']} have no answer and {left_out} are other models' answers that "
            f"BABYLON_FOREIGN_TURNS={batch.foreign_turns} leaves out, and agents at their group's mean teach nothing; "
            "choose a base with a longer context, log what agents answer, or let agents play with this policy",
            facts={**counts, "nothing_to_train": True, **({"too_foreign": True} if left_out else {})},
        )
    logger.info("planned lineage=%s step=%d %s", batch.lineage, batch.step, dict(counts))
    shown = {"data/own_share": own.share, **{k: float(v) for k, v in counts.items()}}
    return TrainingPlan(decisions=_weigh(decisions), counts=dict(sorted(shown.items())))


def _count_own(batch: TrainingBatch) -> OwnTurns:
    members = [m for g in batch.groups for m in g.group.members]
    return count_own_turns(members, batch.lineage, batch.base_model)


def _weigh(decisions: Sequence[DecisionGroup]) -> tuple[DecisionGroup, ...]:
    """Give every trajectory the same weight in all, split evenly over its turns that train."""
    turns = Counter((d.group_id, s.trajectory_id) for d in decisions for s in d.sequences)
    mean = sum(turns.values()) / len(turns)
    return tuple(
        replace(d, sequences=tuple(replace(s, weight=mean / turns[d.group_id, s.trajectory_id]) for s in d.sequences))
        for d in decisions
    )


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
    advantages = grpo_advantages([rewarded.rewards[m.trajectory_id] for m in members])
    answers = [t.response for m in members for t in m.turns]
    encoded = iter(tokenizer(answers, add_special_tokens=False)["input_ids"]) if answers else iter(())
    by_decision: dict[int, list[TurnSequence]] = {}
    for member, advantage in zip(members, advantages, strict=True):
        for decision, turn in enumerate(member.turns):
            ids = next(encoded)
            counts["data/turns"] += 1
            if not ids:
                counts["data/turns_empty"] += 1
                continue
            speaker = find_speaker(turn.policy_version, batch.lineage, batch.base_model)
            if not may_train(speaker, advantage, batch.foreign_turns):
                counts["data/turns_foreign_left_out"] += 1
                continue
            behaviour, origin = behaviour_of(turn, speaker, batch.parent_step, max_staleness)
            cut = is_cut(turn, len(ids))
            sequence = TurnSequence(
                trajectory_id=member.trajectory_id,
                turn=turn,
                prompt_ids=tuple(render.ids(turn.system, turn.user)),
                response_ids=tuple(ids) if cut else (*ids, tokenizer.eos_token_id),
                reward=rewarded.rewards[member.trajectory_id],
                advantage=advantage,
                behaviour=behaviour,
                origin=origin,
            )
            if sequence.tokens > context:
                counts["data/turns_too_long"] += 1
                continue
            by_decision.setdefault(decision, []).append(sequence)
            counts[f"behaviour/{origin}"] += 1
            counts["data/turns_cut"] += cut
    return [
        DecisionGroup(group_id=group.group_id, window_id=group.window_id, decision=n, sequences=tuple(sequences))
        for n, sequences in sorted(by_decision.items())
    ]


def is_cut(turn: Turn, tokens: int) -> bool:
    """Whether an answer of so many tokens was cut at its length limit: then the policy never chose to end it there.

    By the log's word where it has one (`Turn.is_cut`); else by our own tokenizer's count against the logged limit.
    """
    if turn.is_cut is not UNSET:
        return turn.is_cut
    return turn.max_tokens is not UNSET and tokens >= turn.max_tokens


def behaviour_of(
    turn: Turn, speaker: Speaker, parent_step: int, max_staleness: int = MAX_STALENESS
) -> tuple[Behaviour, Origin]:
    """Choose the policy whose log-probs are used for a turn, and say why.

    Logged turns carry none. Those of a checkpoint of this lineage, at most `max_staleness` steps before the parent,
    are recomputed with that checkpoint at the logged temperature (unknown: 1). All others are taken from the parent
    at temperature 1, as if it had sampled them.
    """
    step = speaker.step
    if step is None or step > parent_step:
        return PARENT, "unknown"
    if parent_step - step > max_staleness:
        return PARENT, "stale"
    temperature = 1.0 if turn.temperature is None else turn.temperature
    if temperature < MIN_TEMPERATURE:
        return PARENT, "greedy"
    return Behaviour(step, temperature), "recomputed"


def _rewards_differ(rewards: Sequence[float]) -> bool:
    """Whether any two rewards differ by more than float noise.

    With float noise, three rewards of 0.1 would train, scaled up to full strength.
    """
    return len(rewards) > 1 and max(rewards) - min(rewards) > SAME_REWARD
