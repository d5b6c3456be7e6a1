"""One row, many characters: told by the facts of the row, and never taken for an agent that talks to many."""

from typing import Any

import pytest

from babylon_rl.ingest.many_characters import acts_for_many
from babylon_rl.ingest.rows import EnvironmentState, Step
from babylon_rl_tests.factories import a_call, a_step

NOBODY = EnvironmentState(balance_usd=0.0, lifetime_pnl_usd=0.0)


def decisions(*characters: str | None, key: str = "npcId", **changes: Any) -> list[Step]:
    known = {"environment": NOBODY} | changes
    return [
        a_step(i, action={"actionType": "TRADE", "parameters": {} if c is None else {key: c}}, **known)
        for i, c in enumerate(characters)
    ]


@pytest.mark.parametrize(
    ("expected", "agent", "pnl", "steps", "metadata"),
    [
        (True, "market-decision-engine", None, decisions("ada"), {}),
        (True, "x", None, decisions("ada"), {"recordingType": "market_decisions"}),
        (True, "x", None, decisions("ada", calls=[a_call(model="market-decision-model")]), {}),
        (True, "x", None, decisions("ada", "bob"), {}),
        (True, "x", 0.0, decisions("ada", "bob", "ada", key="character_id"), {}),
        (True, "x", None, decisions("ada", "bob", environment=EnvironmentState()), {}),
        (False, "ada", None, decisions("ada", "bob"), {}),  # it is one of them
        (False, "x", None, decisions("ada", "ada"), {}),
        (False, "x", None, decisions("ada", None), {}),
        (False, "x", 3.0, decisions("ada", "bob"), {}),  # it has an account of its own
        (False, "x", None, decisions("ada", "bob", environment=EnvironmentState(balance_usd=5.0)), {}),
        (False, "x", None, [a_step(0), a_step(1)], {}),
        (False, "x", None, [a_step(action={"parameters": "npcId"}), a_step(action={})], {}),
        (False, "x", None, [], {}),
    ],
)
def test_a_batch_of_characters_is_known_by_its_facts(
    expected: bool, agent: str, pnl: float | None, steps: list[Step], metadata: dict[str, Any]
) -> None:
    assert acts_for_many(agent, pnl, steps, metadata) is expected
