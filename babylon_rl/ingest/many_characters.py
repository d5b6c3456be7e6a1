"""Rows in which one writer acts for many characters: the game's batch of NPC decisions.

The first generation writes them as agent `market-decision-engine`, each step another character's decision, under a
prompt that was made up after the decision and names it; no account stands behind them. They cannot be split into
characters: no character was shown such a prompt, so no turn of it can train.
"""

from collections.abc import Sequence
from typing import Final

from babylon_rl.ingest.rows import Step
from babylon_rl.types import Json

_ENGINE: Final = "market-decision-engine"
_MODEL: Final = "market-decision-model"
_RECORDING: Final = "market_decisions"
_CHARACTER: Final = ("npcId", "npc_id", "characterId", "character_id", "actorId", "actor_id")


def acts_for_many(agent_id: str, final_pnl: float | None, steps: Sequence[Step], metadata: Json) -> bool:
    """Whether a row is such a batch: by the writer's own words, else by what its decisions have in common.

    The latter: every action names a character, there are two or more of them and the agent is none of them, and the row
    knows of no balance or P&L but 0. An agent with an account that writes to several characters is none.
    """
    if agent_id == _ENGINE or metadata.get("recordingType") == _RECORDING:
        return True
    if any(c.model == _MODEL for s in steps for c in s.llm_calls):
        return True
    if len(steps) < 2 or final_pnl or any(s.environment.balance_usd or s.environment.lifetime_pnl_usd for s in steps):
        return False
    characters = {_find_character(s.action) for s in steps}
    return len(characters) > 1 and None not in characters and agent_id not in characters


def _find_character(action: Json) -> str | None:
    parameters = action.get("parameters")
    if not isinstance(parameters, dict):
        return None
    return next((str(parameters[k]) for k in _CHARACTER if parameters.get(k)), None)
