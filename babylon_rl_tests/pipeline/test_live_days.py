"""Three days of a live game on a live clock, over the change of a year, and nobody watching.

A checkpoint every six hours, some evaluated hours late; rows of an hour land minutes or hours after it, or never; agents join and
vanish; the gateway is down for three hours; each hour's look comes while agents already play the next.
"""

import random
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

import pytest

from babylon_rl.pipeline.deploy import find_due_hours
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.deployments import Move, read_moves
from babylon_rl.store.looks import read_looks
from babylon_rl.store.rollout_hours import count_calls_by_hour
from babylon_rl.store.served_calls import write_calls
from babylon_rl.types import Trajectory, policy_name
from babylon_rl.windows import HourWindow
from babylon_rl_tests.factories import a_trajectory
from babylon_rl_tests.live_game import AGENTS, LiveGame, name_policy

START: Final = HourWindow.parse("2025-12-30T12:00")
HOURS: Final = 72
DOWN: Final = range(30, 33)
NEVER_READ: Final = (20, 47)
GAIN_USD: Final = 60.0
"""More an hour than the base earns, of each third checkpoint; the others earn as much less."""


@dataclass
class LiveDays:
    """The days as they go by; `now` is the workspace's clock."""

    workspace: Workspace
    now: datetime = START.start_at
    game: LiveGame = field(init=False)
    chance: random.Random = field(default_factory=lambda: random.Random(3))
    unread: list[tuple[datetime, HourWindow, list[Trajectory]]] = field(default_factory=list)
    unevaluated: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.workspace = replace(self.workspace, now=lambda: self.now)
        self.game = LiveGame(self.workspace, agents=list(AGENTS))

    def go_by(self) -> None:
        for i in range(HOURS):
            self.come_and_go(i)
            self.play(i, START.next(i))
        # Everything that was ever to be read is read.
        self.now = START.next(HOURS).start_at + timedelta(hours=12)
        self.tick()

    def come_and_go(self, i: int) -> None:
        """Checkpoints, evaluations and agents."""
        game = self.game
        if i % 6 == 0:
            step = i // 6 + 1
            is_late = step % 4 == 0
            game.add_checkpoint(step, lift_usd=None if is_late else 50.0)
            self.unevaluated += [(i + 4, step)] if is_late else []
        for _, step in [u for u in self.unevaluated if u[0] == i]:
            game.evaluate(step, 50.0)
        if i % 7 == 3:
            game.agents = [*game.agents[1:], f"newcomer-{i:02d}"]

    def play(self, i: int, window: HourWindow) -> None:
        """Agents ask three times in the hour, and the platform ticks in between."""
        game, earned, turns = self.game, dict[str, float](), dict[str, list[str]]()
        for minute in (5, 25, 45):
            self.now = window.start_at + timedelta(minutes=minute)
            self.tick()
            d = game.deployed
            if i not in DOWN:
                write_calls(self.workspace.store.engine, [game.make_call(d, window, a) for a in game.agents])
            for a in game.agents:
                step = d.step_of(game.arm_of(d, a))
                gain = 0.0 if step == 0 else GAIN_USD if step % 3 == 0 else -GAIN_USD
                earned[a] = earned.get(a, 0.0) + self.chance.gauss(gain / 3, 5)
                turns.setdefault(a, []).append("gpt-4o" if i in DOWN else policy_name(d.lineage, step))
        played = [a_trajectory(a, window, pnl_usd=earned[a], turns=tuple(map(name_policy, turns[a]))) for a in turns]
        if i not in NEVER_READ:
            after = timedelta(minutes=self.chance.choice((10, 10, 10, 90, 300)))
            self.unread.append((window.end_at + after, window, played))
            if i % 10 == 0:  # rewritten long after its look
                self.unread.append((window.end_at + timedelta(hours=9), window, played[:-1]))

    def tick(self) -> None:
        """What is to be read by now is read; then what the sensor does."""
        for _, window, played in [u for u in self.unread if u[0] <= self.now]:
            self.workspace.store.write_ingest(window, played, [], rows=len(played))
        self.unread = [u for u in self.unread if u[0] > self.now]
        while hours := find_due_hours(self.workspace, limit=48)[0]:
            before = self.progress
            said = [self.game.look(hour).reason for hour in hours]
            assert self.progress != before, f"{hours[0]} is due, and looking at it changes nothing: {said[0]}"

    @property
    def moves(self) -> list[Move]:
        return read_moves(self.workspace.store.engine, "babylon-mmo")

    @property
    def progress(self) -> tuple[int, int]:
        rollout = self.game.deployed.rollout
        looks = read_looks(self.workspace.store.engine, "babylon-mmo", rollout) if rollout else ()
        return len(self.moves), len(looks)


@pytest.fixture
def days(workspace: Workspace) -> LiveDays:
    return LiveDays(workspace)


def test_days_of_a_live_game_end_with_what_earns_more(days: LiveDays) -> None:
    days.go_by()
    moves, engine = days.moves, days.workspace.store.engine

    assert [m.after.number for m in moves] == list(range(1, len(moves) + 1))
    begun = [m.subject for m in moves if m.kind == "canary"]
    assert len(begun) == len(set(begun)), "no checkpoint is tried twice"
    assert set(begun) & {4, 8, 12}, "also one whose evaluation was late"
    promoted = [m.subject for m in moves if m.kind == "promoted"]
    assert promoted
    assert all(step % 3 == 0 for step in promoted), "nothing that earns less is ever promoted"
    assert {m.subject for m in moves if m.kind == "rolled_back"}.isdisjoint(promoted)
    assert len({m.window_id for m in moves}) == len(moves), "an hour moves once"
    assert {(m.window_id or "")[:4] for m in moves} == {"2025", "2026"}
    for m in [m for m in moves if m.kind == "canary"]:
        rollout = m.after.rollout or ""
        looked = [look.window_id for look in read_looks(engine, "babylon-mmo", rollout)]
        asked = list(count_calls_by_hour(engine, rollout, up_to=START.next(HOURS)))
        assert looked == asked[: len(looked)], "each hour of a trial is looked at, in order, until it is decided"
