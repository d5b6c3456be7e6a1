"""The plan in ART's types: one `art.TrajectoryGroup` per decision, one `art.Trajectory` per turn.

What belongs here: the form in which ART tokenises, weighs and packs what `sequences.py` decided; it decides nothing.

ART computes advantages from the rewards of each group it gets, and weighs a trajectory by its tokens; it takes neither
from us. So a turn's `reward` is its advantage × weight, rewards are not scaled, and each group ends with a *baseline*: a
trajectory without an answer, which trains nothing and whose reward brings the group's mean to 0. What ART subtracts is
then 0. Its loss is linear in advantage × weight (PPO and CISPO, without a KL term), and packing brings the mean of
their product to 1, so it does not matter in which of the two a turn's weight is.

A turn is passed as a `Choice` with its token ids. From an assistant message that is a plain dict, ART would train all
but the end-of-turn token and count a prefix common to all answers as prompt. A `Choice` needs log-probs, and logged
turns have none: each token carries a *placeholder* instead, which the trainer replaces before the first step.
"""

from typing import TYPE_CHECKING, Any, Final

from babylon_rl.training.art_import import isolated_art_import
from babylon_rl.training.sequences import Behaviour, TrainingPlan, TurnSequence

if TYPE_CHECKING:
    import art

SCALE_REWARDS: Final = False
"""What `backend.train` must be told: rewards are advantages already."""

PARENT_PLACEHOLDER: Final = 0.0
"""Placeholder for trainers that recompute everything from the parent (`precalculate_logprobs`), as ART's own do."""


def to_art_groups(
    plan: TrainingPlan, *, behaviours: tuple[Behaviour, ...] | None = None
) -> "list[art.TrajectoryGroup]":
    """Build what `backend.train` takes.

    Args:
        plan: Decisions in time order.
        behaviours: If given, a turn's placeholder is `1 + index of its behaviour` in this tuple: positive, so never a
            log-probability (`behaviour_placeholder`, `behaviour_index`). If None, it is `PARENT_PLACEHOLDER`.

    Returns:
        One group per decision, in the plan's order, members in the plan's order, and last the baseline.
    """
    with isolated_art_import():
        import art

    builder = _ChoiceBuilder()
    placeholders = None if behaviours is None else {b: behaviour_placeholder(i) for i, b in enumerate(behaviours)}
    groups = []
    for decision in plan.decisions:
        where: dict[str, float | int | str | bool | None] = {
            "scenario_id": decision.group_id,
            "window_id": decision.window_id,
            "decision": decision.decision,
        }
        trajectories = [
            art.Trajectory(
                messages_and_choices=[
                    {"role": "system", "content": s.turn.system},
                    {"role": "user", "content": s.turn.user},
                    builder.build(s, PARENT_PLACEHOLDER if placeholders is None else placeholders[s.behaviour]),
                ],
                reward=s.advantage * s.weight,
                initial_policy_version=s.behaviour.step,
                final_policy_version=s.behaviour.step,
                metadata={**where, "trajectory_id": s.trajectory_id, "rank": s.reward, "turn_weight": s.weight},
            )
            for s in decision.sequences
        ]
        baseline = -sum(t.reward for t in trajectories)
        nothing = {"role": "user", "content": "Baseline: no answer, so nothing trains."}
        trajectories.append(art.Trajectory(messages_and_choices=[nothing], reward=baseline, metadata=where))
        groups.append(art.TrajectoryGroup(trajectories, metadata=where))
    return groups


def behaviour_placeholder(index: int) -> float:
    """The placeholder that marks where a log-probability of behaviour `index` will go."""
    return float(1 + index)


def behaviour_index(placeholder: float) -> int | None:
    """Undo `behaviour_placeholder`; None for a real log-probability."""
    return round(placeholder) - 1 if placeholder > 0 else None


class _ChoiceBuilder:
    """Makes `Choice`s whose token objects are shared: a batch repeats few distinct tokens very often."""

    def __init__(self) -> None:
        from openai.types.chat import ChatCompletionMessage, ChatCompletionTokenLogprob
        from openai.types.chat.chat_completion import Choice, ChoiceLogprobs

        self._message, self._choice, self._logprobs = ChatCompletionMessage, Choice, ChoiceLogprobs
        self._token = ChatCompletionTokenLogprob
        self._made: dict[tuple[int, float], Any] = {}

    def build(self, s: TurnSequence, logprob: float) -> Any:
        content = [self._made.get((i, logprob)) or self._build_token(i, logprob) for i in s.response_ids]
        return self._choice(
            index=0,
            finish_reason="stop",
            message=self._message(role="assistant", content=s.turn.response),
            logprobs=self._logprobs(content=content),
        )

    def _build_token(self, token_id: int, logprob: float) -> Any:
        # ART parses the id out of this text.
        token = self._token(token=f"token_id:{token_id}", logprob=logprob, top_logprobs=[])
        return self._made.setdefault((token_id, logprob), token)
