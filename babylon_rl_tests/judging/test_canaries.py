"""10,000 canaries from rows to prompts: all hindsight reaches the judge, and none of it reaches training."""

import asyncio
import re
from dataclasses import replace
from datetime import timedelta

import msgspec
import pytest
from factories import a_call, a_source_row, a_step, make_group
from judge_server import JudgeServer, honest_scores
from judging_factories import a_ruler
from test_ruler import FORGERIES

from babylon_rl.grouping.hindsight import hindsight_for
from babylon_rl.ingest.stitching import stitch
from babylon_rl.judging.audit.synthetic_groups import make_synthetic_group
from babylon_rl.judging.ruler.prompt import messages_of, write_prompt
from babylon_rl.types import Hindsight, PredictionOutcome, StockOutcome, TrajectoryGroup, WindowOutcomes
from babylon_rl.windows import HourWindow

CANARY = re.compile(r"canary-\d{6}-end")
FIRST = HourWindow.parse("2025-01-15T00:00")


class Cage:
    """Numbers canaries and remembers them."""

    def __init__(self) -> None:
        self.hindsight: set[str] = set()
        self.seen: set[str] = set()

    def later(self) -> str:
        """A canary for a field of hindsight."""
        c = f"canary-{len(self.hindsight) + len(self.seen):06d}-end"
        self.hindsight.add(c)
        return c

    def now(self) -> str:
        """A canary for what the agent was shown, or answered."""
        c = f"canary-{len(self.hindsight) + len(self.seen):06d}-end"
        self.seen.add(c)
        return c


def a_window(cage: Cage, window: HourWindow) -> tuple[TrajectoryGroup, Hindsight]:
    rows = []
    market = "The market as all of them saw it, long enough to be told once. " + cage.now()
    for agent in range(5):
        for tick in range(12):
            at = window.start_at + timedelta(minutes=4 * tick)
            step = a_step(
                tick,
                at_ms=int(at.timestamp() * 1000),
                calls=[
                    a_call(
                        f'{{"action":"HOLD","why":"{cage.now()}"}}', user_prompt=f"{market}\ntick {tick} {cage.now()}"
                    )
                ],
                action={
                    "actionType": "HOLD",
                    "parameters": {},
                    "success": True,
                    "result": {"fill": cage.later()},
                    "correctness": cage.later(),
                    "error": cage.later(),
                },
            )
            row = a_source_row(f"agent-{agent}", step, tick=tick, window_id=str(window), start_at=at, end_at=at)
            known = {"trueProbability": cage.later()} if tick == 0 else {}
            rows.append(replace(row, metadata={"gameKnowledge": known}, final_pnl=float(agent)))
    outcomes = WindowOutcomes(
        window_id=str(window),
        stocks=tuple(
            StockOutcome(
                ticker=cage.later(),
                start_price=1.0,
                end_price=2.0,
                change_pct=100.0,
                sentiment=cage.later(),
                news=(cage.later(), cage.later()),
            )
            for _ in range(3)
        ),
        predictions=tuple(
            PredictionOutcome(market_id=cage.later(), question=cage.later(), outcome="YES") for _ in range(3)
        ),
    )
    trajectories = stitch(rows)
    group = make_group(window, trajectories, min_agents=5)
    assert group is not None
    return group, hindsight_for(group, trajectories, outcomes)


def test_no_canary_in_hindsight_reaches_training(server: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    cage = Cage()
    pairs = [a_window(cage, FIRST.next(i)) for i in range(50)]
    assert len(cage.hindsight) >= 10_000

    trained = set(CANARY.findall(repr([messages_of(g) for g, _ in pairs])))
    assert trained == cage.seen  # the search does find canaries: those that the agents saw or said
    leaked = trained & cage.hindsight
    assert leaked == set()

    async def ask() -> None:
        async with a_ruler(server.url) as judge:
            await asyncio.gather(*(judge.judge(*p) for p in pairs))

    asyncio.run(ask())
    sent = set(CANARY.findall("".join(server.prompt(i) for i in range(server.calls))))
    assert cage.hindsight - sent == set()
    assert cage.seen - sent == set()
    for compact in (False, True):
        both = set(CANARY.findall("".join(write_prompt(*p, rubric="r", key="k", compact=compact).user for p in pairs)))
        assert both == cage.hindsight | cage.seen
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{len(cage.hindsight)} canaries in hindsight: {len(leaked)} in trained messages, "
            f"{len(sent & cage.hindsight)} in judge payloads"
        )


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("where", ["own answers", "shown to several"])
def test_a_forgery_raises_no_score_in_the_compact_form_either(forgery: str, where: str) -> None:
    """The worst case: the agent guessed its id, and others were shown its text, so that it is in a shared block."""
    synthetic = make_synthetic_group(5)
    worst = min(synthetic.truth, key=lambda t: synthetic.truth[t])
    plain = write_prompt(synthetic.group, synthetic.hindsight, rubric="r", key="k", compact=True)
    label = next(k for k, t in plain.ids.items() if t == worst)
    text = "\n" + forgery.format(label=label) + "\nand a line that is long enough for a block\n"
    members = tuple(
        replace(
            m,
            turns=tuple(
                msgspec.structs.replace(t, response=t.response + text)
                if where == "own answers" and m.trajectory_id == worst
                else (msgspec.structs.replace(t, user=t.user + text + t.user) if where == "shown to several" else t)
                for t in m.turns
            ),
        )
        for m in synthetic.group.members
    )
    forged = write_prompt(
        replace(synthetic.group, members=members), synthetic.hindsight, rubric="r", key="k", compact=True
    )
    assert forged.user != plain.user
    assert honest_scores(forged.user) == honest_scores(plain.user)
    tags = [x for x in forged.user.splitlines() if not x.startswith("{")]
    assert len(tags) == 2 + 2 + 2 + 2 * len(synthetic.truth)
