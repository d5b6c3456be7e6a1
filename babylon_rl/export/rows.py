"""One judged group as rows of an export: the values of the columns that `export.dataset.schema` names.

Hindsight columns come from one class, used only when the group was read with its hindsight.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from babylon_rl.common.canonical import to_json
from babylon_rl.types import Hindsight, Json, TrajectoryGroup

DATA_SOURCE: Final = "babylon_rl"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedGroup:
    """A group ready for export; scores, rewards and explanations by trajectory id.

    Attributes:
        outcomes: `known` or `none`, as the judge knew them.
        left_out: Members that are not ranked: trajectory id → why. They have no score, reward or advantage.
        advantages: Trajectory id → advantage over all ranked members, the same for each of its turns.
        hindsight: None unless it was asked for.
    """

    group: TrajectoryGroup
    judgment_key: str
    judge: str
    outcomes: str
    left_out: Mapping[str, str]
    scores: dict[str, float]
    rewards: dict[str, float]
    explanations: dict[str, str]
    advantages: dict[str, float]
    hindsight: Hindsight | None


def turn_rows(j: JudgedGroup) -> Iterator[Json]:
    """One row per decision of each member, in the group's order; the file adds `extra_info.index`."""
    hindsight = _choose_hindsight_columns(j)
    for m in j.group.members:
        for i, turn in enumerate(m.turns):
            where = {"group_id": j.group.group_id, "trajectory_id": m.trajectory_id, "turn_index": i}
            yield {
                "data_source": DATA_SOURCE,
                "prompt": _prompt(turn.system, turn.user),
                "completion": [{"role": "assistant", "content": turn.response}],
                "response": turn.response,
                "score": j.scores.get(m.trajectory_id),
                "reward": j.rewards.get(m.trajectory_id),
                "left_out": j.left_out.get(m.trajectory_id),
                "advantage": j.advantages.get(m.trajectory_id),
                "compared": len(j.rewards),
                "turn_weight": 1 / len(m.turns),
                "group_id": j.group.group_id,
                "window_id": j.group.window_id,
                "trajectory_id": m.trajectory_id,
                "agent_id": m.agent_id,
                "archetype": m.archetype,
                "turn_index": i,
                "policy_version": turn.policy_version,
                "temperature": turn.temperature,
                "judgment_key": j.judgment_key,
                "judge": j.judge,
                "outcomes": j.outcomes,
                "ability": "trading",
                "reward_model": {"style": "recorded", "ground_truth": None},
                "extra_info": {**where, "response": turn.response, "reward": j.rewards.get(m.trajectory_id)},
                **hindsight.of_member(m.trajectory_id),
                **hindsight.of_turn(m.trajectory_id, i),
                **hindsight.of_window(),
            }


def group_row(j: JudgedGroup) -> Json:
    """The whole group in one row."""
    hindsight = _choose_hindsight_columns(j)
    return {
        "group_id": j.group.group_id,
        "window_id": j.group.window_id,
        "judgment_key": j.judgment_key,
        "judge": j.judge,
        "outcomes": j.outcomes,
        "members": [
            {
                "trajectory_id": m.trajectory_id,
                "agent_id": m.agent_id,
                "archetype": m.archetype,
                "score": j.scores.get(m.trajectory_id),
                "reward": j.rewards.get(m.trajectory_id),
                "left_out": j.left_out.get(m.trajectory_id),
                **hindsight.of_member(m.trajectory_id),
                "turns": [
                    {
                        "messages": [
                            *_prompt(turn.system, turn.user),
                            {"role": "assistant", "content": turn.response},
                        ],
                        "advantage": j.advantages.get(m.trajectory_id),
                        "compared": len(j.rewards),
                        "turn_weight": 1 / len(m.turns),
                        "policy_version": turn.policy_version,
                        "temperature": turn.temperature,
                        **hindsight.of_turn(m.trajectory_id, i),
                    }
                    for i, turn in enumerate(m.turns)
                ],
            }
            for m in j.group.members
        ],
        **hindsight.of_window(),
    }


def _prompt(system: str, user: str) -> list[dict[str, str]]:
    """Messages as training renders them: always both, even with an empty system prompt."""
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


class _NoHindsight:
    """No hindsight columns."""

    def of_member(self, trajectory_id: str) -> Json:
        return {}

    def of_turn(self, trajectory_id: str, turn: int) -> Json:
        return {}

    def of_window(self) -> Json:
        return {}


class _HindsightColumns(_NoHindsight):
    """Hindsight columns; the game's objects differ in their fields, so they are JSON text."""

    def __init__(self, hindsight: Hindsight, explanations: dict[str, str]) -> None:
        self._members = {m.trajectory_id: m for m in hindsight.members}
        self._explanations = explanations
        self._outcomes = to_json(hindsight.outcomes).decode()

    def of_member(self, trajectory_id: str) -> Json:
        m = self._members[trajectory_id]
        return {
            "hindsight_start_balance_usd": m.start_balance_usd,
            "hindsight_pnl_usd": m.pnl_usd,
            "hindsight_game_knowledge_json": to_json(m.game_knowledge).decode(),
            "hindsight_explanation": self._explanations.get(trajectory_id),
        }

    def of_turn(self, trajectory_id: str, turn: int) -> Json:
        return {"hindsight_decision_json": to_json(self._members[trajectory_id].decisions[turn]).decode()}

    def of_window(self) -> Json:
        return {"hindsight_outcomes_json": self._outcomes}


def _choose_hindsight_columns(j: JudgedGroup) -> _NoHindsight:
    return _NoHindsight() if j.hindsight is None else _HindsightColumns(j.hindsight, j.explanations)
