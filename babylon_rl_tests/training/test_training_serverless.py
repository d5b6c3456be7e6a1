"""A whole training over HTTP, by ART's own client, against a server that keeps what it was sent."""

import asyncio
import json
from dataclasses import replace

import pytest
from factories import make_group
from serverless_server import ENTITY, KEY, ServerlessServer
from training_factories import FIRST, LINEAGE, MemoryJobs, a_batch, a_group

from babylon_rl.errors import BabylonRLError, ConfigError, DataError, TransientError
from babylon_rl.policy.shipped import shipped_base
from babylon_rl.settings import Settings
from babylon_rl.training.factory import open_trainer
from babylon_rl.training.trainer import RewardedGroup
from babylon_rl.types import Trajectory

BATCH = a_batch(a_group(0, agents=5, decisions=2), a_group(1, agents=5, decisions=2))


@pytest.fixture
def server():
    with ServerlessServer() as server:
        yield server


@pytest.fixture
def settings(tmp_path, server) -> Settings:
    return Settings.load(
        BABYLON_HOME=str(tmp_path),
        BABYLON_TRAINER="serverless",
        BABYLON_BASE_MODEL=str(shipped_base()),  # a real run names a model of W&B's; its tokenizer is what is read here
        BABYLON_WANDB_TRAINING_URL=server.url,
        WANDB_API_KEY=KEY,
    )


def train(settings, batch=BATCH, jobs=None):
    async def run():
        async with open_trainer(
            settings.training, checkpoints=settings.checkpoints_dir, jobs=jobs or MemoryJobs()
        ) as trainer:
            return await trainer.train(batch)

    return asyncio.run(run())


def test_serverless_training_sends_what_agents_saw_and_said(server, settings) -> None:
    made = train(settings)

    (job,) = server.jobs
    expected = [
        (rewarded.group.window_id, decision)
        for rewarded in BATCH.groups
        for decision in range(len(rewarded.group.members[0].turns))
    ]
    assert [(g["metadata"]["window_id"], g["metadata"]["decision"]) for g in job["trajectory_groups"]] == expected
    turns = {
        (m.trajectory_id, d): (t, rewarded.rewards[m.trajectory_id])
        for rewarded in BATCH.groups
        for m in rewarded.group.members
        for d, t in enumerate(m.turns)
    }
    # Ranks 0, 1/4, 1/2, 3/4, 1: mean 1/2, deviation √(1/8) = 0.35355.
    advantages = {0.0: -1.41421, 0.25: -0.70711, 0.5: 0.0, 0.75: 0.70711, 1.0: 1.41421}
    answered = [g["trajectories"][:-1] for g in job["trajectory_groups"]]
    for sent in (t for trajectories in answered for t in trajectories):
        turn, reward = turns.pop((sent["metadata"]["trajectory_id"], sent["metadata"]["decision"]))
        system, user, choice = sent["messages_and_choices"]
        assert system == {"role": "system", "content": turn.system}
        assert user == {"role": "user", "content": turn.user}
        assert choice["message"]["content"] == turn.response
        assert sent["reward"] == pytest.approx(advantages[reward], abs=1e-4)
        # Without log-probs a Choice does not train; these are placeholders, which the server must replace.
        assert {t["logprob"] for t in choice["logprobs"]["content"]} == {0.0}
    assert not turns, "a turn was not sent"
    config = job["experimental_config"]
    assert config["scale_rewards"] is False
    assert (config["learning_rate"], config["ppo"], config["precalculate_logprobs"]) == (1e-5, True, True)
    assert made.path == f"{ENTITY}/babylon-agents/{LINEAGE}:step1"
    assert made.manifest == {}
    assert made.metrics["loss/train"] == pytest.approx(0.375)
    assert made.metrics["behaviour/unknown"] == 20


def read_back(server, settings, batch):
    """What a job that trains `batch` holds, tokenised as ART does."""
    from art.preprocessing.tokenize import tokenize_trajectory_groups
    from art.trajectories import Trajectory, TrajectoryGroup
    from openai.types.chat.chat_completion import Choice
    from transformers import AutoTokenizer

    train(settings, batch)

    tokenizer = AutoTokenizer.from_pretrained(shipped_base())
    groups = []
    for sent in server.jobs[0]["trajectory_groups"]:
        members = []
        for t in sent["trajectories"]:
            messages = [Choice.model_validate(m) if "finish_reason" in m else m for m in t["messages_and_choices"]]
            members.append(Trajectory(messages_and_choices=messages, reward=t["reward"], metadata=t["metadata"]))
        groups.append(TrajectoryGroup(members))
    scaled = server.jobs[0]["experimental_config"]["scale_rewards"]
    return tokenizer, list(tokenize_trajectory_groups(tokenizer, groups, False, scaled))


def test_what_is_sent_trains_under_arts_own_tokenizer(server, settings) -> None:
    """Every turn has trainable tokens, to its end; the baselines have none."""
    tokenizer, results = read_back(server, settings, BATCH)

    assert len(results) == 2 * 2 * 4  # the member in the middle has no advantage
    for r in results:
        trained = [t for t, m in zip(r.token_ids, r.assistant_mask, strict=True) if m]
        assert trained[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(trained[:-1]) == r.trajectory.messages()[-1]["content"]


def test_what_is_sent_gives_each_trajectory_its_one_advantage(server, settings) -> None:
    """Agents with 1, 5 and 3 turns of ranks 0, 1/2 and 1, by ART's own tokenizer and packer: what the loss multiplies."""
    from art.preprocessing.pack import packed_tensors_from_tokenized_results

    made = a_group(0, agents=3, decisions=5)
    members = tuple(replace(m, turns=m.turns[:n]) for m, n in zip(made.group.members, (1, 5, 3), strict=True))
    ranks = {m.trajectory_id: r for m, r in zip(members, (0.25, 0.0, 1.0), strict=True)}
    batch = a_batch(replace(made, group=replace(made.group, members=members), rewards=ranks))

    tokenizer, results = read_back(server, settings, batch)

    pulls: dict[str, list[float]] = {}
    for r in results:
        # A row each, in the order of the results, so that the numbers of one turn are those of its row.
        pulls.setdefault(r.trajectory.metadata["trajectory_id"][-1], [])
    width = max(len(r.token_ids) for r in results)
    packed = packed_tensors_from_tokenized_results(results, width, tokenizer.pad_token_id, pack_results=False)
    by_tokens = {tuple(r.token_ids): r.trajectory.metadata["trajectory_id"][-1] for r in results}
    assert len(by_tokens) == len(results) == 9
    for tokens, groups, advantage, weight in zip(
        packed["tokens"], packed["group_ids"], packed["advantages"], packed["weights"], strict=True
    ):
        agent = by_tokens[tuple(tokens[groups != -1].tolist())]
        pulls[agent].append(float((advantage * weight).sum()))
    totals = {agent: sum(p) for agent, p in pulls.items()}
    # Advantages of 1/4, 0 and 1: −0.39223, −0.98058 and +1.37281 (test_training_tokens); only ratios are kept by packing.
    assert [totals[a] / totals["2"] for a in "01"] == pytest.approx([-0.28571, -0.71429], abs=1e-4)
    for agent, turns in {"0": 1, "1": 5, "2": 3}.items():
        assert pulls[agent] == pytest.approx([totals[agent] / turns] * turns, rel=1e-3)


def test_a_step_that_the_ledger_does_not_know_is_refused(server, settings) -> None:
    train(settings)
    second = replace(BATCH, step=2)

    assert train(settings, second).path.endswith(":step2")
    with pytest.raises(DataError, match=rf"is at {LINEAGE}@2 before training step 2, but the ledger says 1"):
        train(settings, second)
    assert len(server.jobs) == 2, "nothing was paid for twice"


def test_a_failing_job_is_one_clear_error_and_is_not_sent_again(server, settings) -> None:
    server.fails_with = "out of luck in rank 3"
    jobs = MemoryJobs()

    with pytest.raises(BabylonRLError, match=r"out of luck in rank 3.*discard-plan --even-if-sent") as failure:
        train(settings, jobs=jobs)

    assert not isinstance(failure.value, TransientError), "a retry by itself would cost money"
    with pytest.raises(BabylonRLError, match="out of luck"):
        train(settings, jobs=jobs)
    assert len(server.jobs) == 1


@pytest.mark.parametrize(
    ("status", "error"), [(403, ConfigError), (422, DataError), (408, TransientError), (503, TransientError)]
)
def test_a_refusal_says_who_must_act(server, settings, status, error) -> None:
    server.refuses_with = status

    with pytest.raises(error, match=f"HTTP {status}") as refusal:
        train(settings)

    assert KEY not in str(refusal.value)


def test_no_server_is_a_transient_error(settings) -> None:
    closed = settings.changed(training={"wandb_base_url": "http://127.0.0.1:9/v1"})

    with pytest.raises(TransientError, match="no connection"):
        train(closed)


def test_a_batch_without_spread_never_reaches_the_network(server, settings) -> None:
    with pytest.raises(DataError, match="same reward"):
        train(settings, a_batch(a_group(0, rewards=dict.fromkeys(range(5), 0.5))))

    assert server.paths == []


def test_no_hindsight_reaches_the_body(server, settings) -> None:
    """Canaries where the game keeps what only the future knew; the group is made as the pipeline makes it."""
    trajectories = [
        Trajectory(
            trajectory_id=member.trajectory_id,
            agent_id=member.agent_id,
            window_id=member.trajectory_id.partition("/")[0],
            row_ids=("CANARY-row",),
            turns=member.turns,
            decisions=({"actionType": "trade", "result": {"pnl": "CANARY"}, "correctness": {"was": "CANARY"}},) * 2,
            start_balance_usd=10_000.0,
            pnl_usd=123.456,
            game_knowledge={"trueProbabilities": "CANARY"},
        )
        for member in a_group(0).group.members
    ]
    group = make_group(FIRST, trajectories, min_agents=2)
    assert group is not None
    rewards = {m.trajectory_id: i / 4 for i, m in enumerate(group.members)}

    train(settings, a_batch(RewardedGroup(group=group, rewards=rewards, judgment_key="CANARY-judgment")))

    sent = json.dumps(server.jobs)
    assert sent.count('"role": "assistant"') == 10
    assert "CANARY" not in sent
    assert "123.456" not in sent


@pytest.mark.parametrize(
    ("trainer", "changes", "names"),
    [
        ("serverless", {"wandb_api_key": None}, "WANDB_API_KEY"),
        ("serverless", {"base_model": None}, "BABYLON_BASE_MODEL"),
        ("local", {}, r"pip install 'babylon_rl\[gpu\]'"),
    ],
)
def test_a_missing_key_base_or_package_is_named(settings, trainer, changes, names) -> None:
    lacking = settings.changed(training={"trainer": trainer, **changes})

    with pytest.raises(ConfigError, match=names):
        train(lacking)
