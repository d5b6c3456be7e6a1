"""Spawn test agents: choose hours that nobody has played, fill the agent slots, play the hours, write the rows.

A simulated hour takes only as long as its decisions.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from time import monotonic

import sqlalchemy as sa

from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.errors import ConfigError
from babylon_rl.simulator.market import make_market
from babylon_rl.simulator.play import AgentSlot, Playthrough, play
from babylon_rl.simulator.players import PolicyPlayer, ScriptedPlayer
from babylon_rl.simulator.recording import record_play, recorded_windows
from babylon_rl.simulator.strategies import GUIDE_KINDS, strategy
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

LOOK_BACK_HOURS = 24
GUIDE_POLICY = "guide"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLineup:
    """Who plays.

    Attributes:
        learners: Agents whose rows are training data.
        policy: `guide` (the five kinds in turn), one strategy's name, or a served model such as `babylon-mmo@3`; through the
            gateway the lineage's name.
        rivals: Whether one agent of each kind of the game's guide plays too, without being trained on.
        temperature: Of a served model; None leaves it to the server.
        through_gateway: Whether each agent tells the endpoint its id and hour, and is answered by the policy deployed for it.
        stand_in: Whether scripted learners stand in for the base policy (`ScriptedPlayer.is_stand_in`).
    """

    learners: int
    policy: str
    rivals: bool = False
    temperature: float | None = None
    through_gateway: bool = False
    stand_in: bool = False

    @property
    def needs_server(self) -> bool:
        """A name with an @ is a served model; any other must be a strategy's, or goes to the gateway."""
        return self.through_gateway or "@" in self.policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawned:
    """What a spawn wrote."""

    windows: tuple[HourWindow, ...]
    rows: int
    mean_pnl_usd: float


def free_windows(engine: sa.Engine, count: int, *, now: datetime, start: HourWindow | None = None) -> list[HourWindow]:
    """Closed hours that nobody has played, in time order.

    Without `start`, the last 24 hours are filled first (that is what `sync-outcomes --hours 24` looks at), the
    oldest first; then the hours before them.

    Raises:
        ConfigError: From `start` on there are not enough closed hours.
    """
    newest = HourWindow.containing(now).next(-1)
    if start is not None:
        wanted: list[HourWindow] = []
        w = start
        while len(wanted) < count and w <= newest:
            batch = [x for x in w.until(w.next(count)) if x <= newest]
            taken = recorded_windows(engine, batch)
            wanted += [x for x in batch if str(x) not in taken]
            w = w.next(count + 1)
        if len(wanted) < count:
            raise ConfigError(
                f"only {len(wanted)} free closed hours from {start} on, {count} wanted; start earlier or play fewer"
            )
        return wanted[:count]
    recent = [newest.next(i) for i in range(1 - LOOK_BACK_HOURS, 1)]
    taken = recorded_windows(engine, recent)
    chosen = [w for w in recent if str(w) not in taken][:count]
    w = recent[0].next(-1)
    while len(chosen) < count:
        batch = [w.next(-i) for i in range(count)]
        taken = recorded_windows(engine, batch)
        chosen += [x for x in batch if str(x) not in taken][: count - len(chosen)]
        w = w.next(-count)
    return sorted(chosen)


async def fill_slots(
    lineup: AgentLineup, stack: AsyncExitStack, inference_url: str | None, *, api_key: str | None = None
) -> list[AgentSlot]:
    """One slot per agent of the lineup; a client opened for a served model closes with `stack`."""
    if lineup.needs_server:
        from babylon_rl.policy.client import PolicyClient

        if inference_url is None:
            raise ConfigError(f"policy {lineup.policy!r} needs a served endpoint; none was given")
        client = await stack.enter_async_context(PolicyClient(inference_url, api_key=api_key or "none"))
        player = PolicyPlayer(client, lineup.policy, lineup.temperature)
        names = [f"agent-{i + 1}" for i in range(lineup.learners)]
        slots = [AgentSlot(n, replace(player, agent_id=n) if lineup.through_gateway else player) for n in names]
    else:
        if lineup.policy != GUIDE_POLICY:
            strategy(lineup.policy)  # refuses an unknown name before anything is played
        kinds = list(GUIDE_KINDS) if lineup.policy == GUIDE_POLICY else [lineup.policy]
        slots = [
            AgentSlot(f"agent-{i + 1}-{kinds[i % len(kinds)]}", ScriptedPlayer(kinds[i % len(kinds)], lineup.stand_in))
            for i in range(lineup.learners)
        ]
    if lineup.rivals:
        slots += [AgentSlot(f"rival-{k}", ScriptedPlayer(k), learner=False) for k in GUIDE_KINDS]
    return slots


def spawn(
    engine: sa.Engine,
    windows: Sequence[HourWindow],
    lineup: AgentLineup,
    *,
    seed: int,
    decisions: int = 3,
    inference_url: str | None = None,
    api_key: str | None = None,
    duration_s: float | None = None,
    windows_at_once: int = 64,
    into_foreign_game: bool = False,
    progress: Progress = ignore_progress,
) -> Spawned:
    """Play `windows` with `lineup` and write every batch in one transaction.

    Args:
        engine: The game's database, ours to write.
        windows: Hours without rows.
        lineup: Who plays.
        seed: Of the world and of the agents' own randomness.
        decisions: Times an agent acts in an hour.
        inference_url: Endpoint of a served policy, or the gateway's.
        api_key: Of the gateway.
        duration_s: Wall time after which no further batch is started; at least one is played.
        windows_at_once: Windows of one batch; all its agents play at once.
        into_foreign_game: Write although our migrations did not create the game's tables.
        progress: Called after each decision.
    """
    began = monotonic()
    played_windows: list[HourWindow] = []
    rows, total_pnl, learners = 0, 0.0, 0
    for i in range(0, len(windows), windows_at_once):
        if played_windows and duration_s is not None and monotonic() - began > duration_s:
            break
        batch = windows[i : i + windows_at_once]
        played = asyncio.run(_play_batch(batch, lineup, seed, decisions, inference_url, api_key, progress))
        rows += record_play(engine, played, seed=seed, into_foreign_game=into_foreign_game)
        pnls = [p.pnl_usd for p in played if p.slot.learner]
        total_pnl += sum(pnls)
        learners += len(pnls)
        played_windows += batch
        logger.info("spawned windows=%d agents=%d rows=%d", len(batch), len(played) // len(batch), rows)
    return Spawned(windows=tuple(played_windows), rows=rows, mean_pnl_usd=total_pnl / max(learners, 1))


async def _play_batch(
    windows: Sequence[HourWindow],
    lineup: AgentLineup,
    seed: int,
    decisions: int,
    inference_url: str | None,
    api_key: str | None,
    progress: Progress,
) -> list[Playthrough]:
    markets = [make_market(w, seed, decisions=decisions) for w in windows]
    async with AsyncExitStack() as stack:
        slots = await fill_slots(lineup, stack, inference_url, api_key=api_key)
        return await play(markets, slots, seed=seed, progress=progress)
