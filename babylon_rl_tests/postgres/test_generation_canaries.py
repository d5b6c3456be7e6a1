"""A canary in every field of both generations: what was shown and said trains, hindsight reaches the judge, nothing else does."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from babylon_rl.judging.ruler.prompt import write_prompt
from babylon_rl.pipeline.group import group_window
from babylon_rl.pipeline.ingest import ingest_window
from babylon_rl.pipeline.outcomes import snapshot_outcomes
from babylon_rl.policy.shipped import shipped_base
from babylon_rl.training.sequences import plan_training
from babylon_rl.training.trainer import RewardedGroup, TrainingBatch
from babylon_rl.types import Json
from babylon_rl_tests.factories import WINDOW
from babylon_rl_tests.postgres.games import (
    G1,
    G2,
    Game,
    a_game,
    a_game_call,
    a_game_row,
    a_game_step,
    a_reward_judgment,
    open_read_only,
)

CANARY = re.compile(r"cnry\d{5}x")
SHORT = {"npcRole", "arcPhase"}


class Cage:
    """Numbers canaries; remembers who may read each."""

    def __init__(self) -> None:
        self.trained: set[str] = set()
        self.judged: set[str] = set()
        self.ignored: set[str] = set()

    def _new(self, where: set[str]) -> str:
        c = f"cnry{len(self.trained) + len(self.judged) + len(self.ignored):05d}x"
        where.add(c)
        return c

    def shown(self) -> str:
        return self._new(self.trained)

    def later(self) -> str:
        return self._new(self.judged)

    def other(self) -> str:
        return self._new(self.ignored)


def a_caged_row(game: Game, cage: Cage, agent: str, tick: int) -> Json:
    start = WINDOW.start_at + timedelta(minutes=20 * tick)
    second = game.generation.is_second
    own: Json = {"reasoning": cage.other(), "actionType": cage.other(), "metadata": {"a": cage.other()}}
    step: Json = {"reward": cage.other(), "observation": {"o": cage.other()}}
    metadata: Json = {
        "gameKnowledge": {
            "trueProbabilities": {"m": cage.later()},
            "actualOutcomes": [cage.later()],
            "futureOutcomes": {"k": {"l": cage.later()}},
        }
        if tick == 0  # of two rows of an agent the later one's knowledge counts
        else {},
        "recordedBy": cage.other(),
    }
    columns: Json = {"aiJudgeReasoning": cage.other(), "batchId": cage.other(), "episodeId": cage.other()}
    columns |= {"rewardComponentsJson": f'{{"a":"{cage.other()}"}}', "metricsJson": f'{{"a":"{cage.other()}"}}'}
    if second:
        own |= {k: cage.other() for k in ("rawReasoningTrace", "privateAnalysis", "reasoningSource", "traceVisibility")}
        step |= {"trustState": {"profile": cage.later()}, "counterpartyContext": {"counterpartyTeam": cage.later()}}
        step |= {"privateAnalysis": {"e": cage.other()}, "stepWeight": cage.other(), "attributedReward": cage.other()}
        metadata |= {
            "interactionLabels": [{"counterpartyId": cage.later(), "counterpartyTeam": "red"}],
            "redTeamNpcIds": [cage.later()],
            **({"scenarioIntent": cage.later()} if tick == 1 else {}),  # the last one counts
            **{k: cage.other() for k in ("scenarioProfile", "agentDecisionClass", "memorySnapshot", "npcRole")},
        }
        named = ("worldStateSnapshotId", "packId", "npcRole", "questionIds", "eventIds", "arcPhase", "archetype")
        columns |= {k: cage.other() for k in (*named, "memorySnapshotJson", "relationshipSnapshotJson")}
    calls = [
        a_game_call(cage.other(), purpose="reasoning", user=cage.other(), systemPrompt=cage.other()),
        a_game_call(
            f"HOLD {cage.shown()}",
            user=f"Markets {cage.shown()}",
            systemPrompt=f"You {cage.shown()}",
            modelVersion="line@0",
            **own,
        ),
    ]
    action = {
        "actionType": "HOLD",
        "parameters": {"p": cage.later()},
        "success": True,
        "result": {"fill": cage.later()},
        "error": cage.later(),
        "correctness": {"was": cage.later()},
    }
    steps = [a_game_step(start, *calls, action=action, **step)]
    steps[0]["providerAccesses"] = [{"providerName": "X", "data": {"d": cage.other()}, "purpose": cage.other()}]
    return a_game_row(game, agent, start, steps, metadata=metadata, pnl=float(tick), **columns)


@pytest.fixture(params=[G1, G2], ids=["g1", "g2"])
def game(request: pytest.FixtureRequest, server_url: str) -> Iterator[Game]:
    with a_game(server_url, request.param) as game:
        yield game


def test_no_hindsight_of_either_generation_is_trained_on(game: Game, empty_database_url: str, tmp_path: Path) -> None:
    cage = Cage()
    rows = [a_caged_row(game, cage, f"agent-{i}", tick) for i in range(6) for tick in range(2)]
    game.insert("trajectories", *rows)
    game.insert("reward_judgments", *[a_reward_judgment(r) | {"reasoning": cage.other()} for r in rows])
    truth: Json = {"windowId": str(WINDOW), "createdAt": game.now_at(WINDOW.end_at)}
    news = f'[{{"headline":"{cage.later()}"}}]'
    game.insert(
        "market_outcomes", {"id": "1", "stockTicker": "BTC", "startPrice": 1, "endPrice": 2, "newsEvents": news} | truth
    )
    game.insert(
        "market_outcomes", {"id": "2", "predictionMarketId": "q", "question": cage.later(), "outcome": "YES"} | truth
    )
    with open_read_only(game, empty_database_url, tmp_path) as w:
        ingest_window(WINDOW, w.game, w.store)
        snapshot_outcomes(WINDOW, w.game, w.store, now=WINDOW.next(24).start_at, sync=False)
        group_window(WINDOW, w.store, min_agents=5)
        group, hindsight = w.store.group(WINDOW), w.store.hindsight(WINDOW)
    assert group is not None
    assert hindsight is not None

    tokenizer = AutoTokenizer.from_pretrained(shipped_base(), local_files_only=True)
    rewards = {m.trajectory_id: i / 5 for i, m in enumerate(group.members)}
    rewarded = RewardedGroup(group=group, rewards=rewards, judgment_key="k")
    batch = TrainingBatch(lineage="line", step=1, window_id=str(WINDOW), groups=(rewarded,))
    plan = plan_training(batch, tokenizer, context=100_000)
    ids = [(*s.prompt_ids, *s.response_ids) for d in plan.decisions for s in d.sequences]
    trained = set(CANARY.findall("".join(tokenizer.decode(i) for i in ids)))
    assert trained == cage.trained
    assert len(cage.trained) == 6 * 2 * 3

    for compact in (False, True):
        asked = set(CANARY.findall(write_prompt(group, hindsight, rubric="r", key="k", compact=compact).user))
        assert cage.judged - asked == set()
        assert cage.ignored & asked == set()
    assert len(cage.judged) >= 6 * (11 if game.generation.is_second else 7)
