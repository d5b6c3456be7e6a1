"""`SIMULATOR_VERSION` names what the simulator does: results of two versions are never compared."""

import asyncio

from babylon_rl.common.canonical import digest
from babylon_rl.simulator.market import make_market
from babylon_rl.simulator.observation import SYSTEM_PROMPT
from babylon_rl.simulator.play import AgentSlot, play
from babylon_rl.simulator.players import ScriptedPlayer
from babylon_rl.simulator.strategies import GUIDE_KINDS
from babylon_rl.simulator.version import SIMULATOR_VERSION
from babylon_rl.windows import HourWindow

RESULTS = {1: "2d3532a655b8c05116c943fca6e8409abcbf17b79a15573050f752bb78ca2167"}
"""Version → digest of one played window. What changes the digest needs a new version, and gets a line here."""


def test_another_result_needs_another_version() -> None:
    market = make_market(HourWindow.parse("2000-01-01T00:00"), 2**40)
    slots = [AgentSlot(kind, ScriptedPlayer(kind)) for kind in GUIDE_KINDS]
    played = asyncio.run(play([market], slots, seed=7))
    seen = [
        [
            p.slot.agent_id,
            [[m.observation.text, m.answer.text, m.result, round(m.balance_after_usd, 6)] for m in p.moves],
        ]
        for p in played
    ]
    assert any(m.result for p in played for m in p.moves), "nobody traded, so nothing is shown"
    assert digest([SYSTEM_PROMPT, seen]) == RESULTS[SIMULATOR_VERSION]
    assert max(RESULTS) == SIMULATOR_VERSION
