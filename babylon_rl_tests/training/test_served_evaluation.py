"""Checkpoints that others serve: W&B in the simulator, and vLLM, which says how likely an answer is."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr
from serverless_server import KEY, ServerlessServer

from babylon_rl.errors import ConfigError
from babylon_rl.pipeline.evaluate import Comparison, evaluate, evaluate_checkpoint
from babylon_rl.pipeline.held_out_log import better_over_worse, evaluate_on_log, rank_best_first
from babylon_rl.pipeline.train import train_range
from babylon_rl.pipeline.workspace import Workspace, open_workspace
from babylon_rl.policy.prompting import PromptRenderer
from babylon_rl.policy.shipped import shipped_base
from babylon_rl.settings import Settings
from babylon_rl.store.log_evaluations import LogEvaluation, NotEvaluated
from babylon_rl.training.factory import locate_policy
from babylon_rl.training.serverless import load_tokenizer
from babylon_rl.training.trainer import ServedPolicy
from babylon_rl.types import Checkpoint
from babylon_rl.windows import HourWindow
from babylon_rl_tests.played import hours, play_and_judge


@pytest.fixture
def server() -> Iterator[ServerlessServer]:
    with ServerlessServer() as server:
        yield server


@contextmanager
def at_wandb(settings: Settings, server: ServerlessServer, **changes: Any) -> Iterator[Workspace]:
    training = {
        "trainer": "serverless",
        "base_model": str(shipped_base()),
        "wandb_base_url": server.url,
        "wandb_api_key": SecretStr(KEY),
        "min_windows": 1,
        **changes,
    }
    with open_workspace(settings.changed(training=training, serving={"evaluation_windows": 2})) as workspace:
        yield workspace


def train(workspace: Workspace) -> Checkpoint:
    train_range(workspace, [hours(1)[0]], batch_size=1)
    return workspace.ledger.checkpoints()[0]


def test_wandb_plays_the_simulator_where_it_trained_there(server: ServerlessServer, settings: Settings) -> None:
    server.says = {"base": "hm", "wandb-artifact:///test-entity/babylon-agents/babylon-mmo:step1": '{"action": "HOLD"}'}
    with at_wandb(settings, server) as workspace:
        play_and_judge(workspace, hours(2))
        made = train(workspace)
        result = evaluate(workspace, made)
        assert evaluate_checkpoint(workspace, 1) == result

    assert isinstance(result, Comparison)
    assert (result.base.invalid_rate, result.policy.invalid_rate) == (1.0, 0.0)
    assert len(server.chats) == 2 * 2 * 3, "both, two windows, three decisions; read back, not asked again"


def test_an_outage_after_a_paid_training_is_a_reason(server: ServerlessServer, settings: Settings) -> None:
    with at_wandb(settings, server) as workspace:
        play_and_judge(workspace, hours(2))
        made = train(workspace)
    elsewhere = {"wandb_inference_url": f"{server.url}/elsewhere"}
    with at_wandb(settings, server, **elsewhere) as workspace:
        result = evaluate(workspace, made)
    assert isinstance(result, NotEvaluated)
    assert "HTTP 404" in result.reason
    assert KEY not in result.reason


def a_checkpoint(trainer: str, path: str = "team/project/mmo:step3") -> Checkpoint:
    return Checkpoint(
        lineage="mmo", step=3, window_id="w", trainer=trainer, path=path, windows=(), judgment_keys=(), metrics={}
    )


def test_each_trainer_says_where_it_serves() -> None:
    plain = Settings.load(BABYLON_BASE_MODEL="org/model", WANDB_API_KEY=KEY).training
    wandb = locate_policy(plain, a_checkpoint("serverless"), inference_url="http://ours/v1")
    assert wandb == ServedPolicy(
        base_url="https://api.inference.wandb.ai/v1",
        model="wandb-artifact:///team/project/mmo:step3",
        base_model="org/model",
        key_variable="WANDB_API_KEY",
        project="team/project",
    )
    assert KEY not in repr(wandb)
    assert locate_policy(plain, a_checkpoint("local"), inference_url="http://vllm/v1/") == ServedPolicy(
        base_url="http://vllm/v1", model="mmo@3", base_model="org/model", has_likelihoods=True
    )
    assert locate_policy(plain, a_checkpoint("cpu"), inference_url="http://ours/v1") == ServedPolicy(
        base_url="http://ours/v1", model="mmo@3", base_model="mmo@0"
    )


@pytest.mark.parametrize(
    ("trainer", "path", "variables", "sentence"),
    [
        ("serverless", "team/project/mmo:step3", {}, "mmo@3 is served by W&B, which needs WANDB_API_KEY"),
        ("serverless", "team/project/mmo:step3", {"WANDB_API_KEY": KEY}, "set BABYLON_BASE_MODEL"),
        ("serverless", "mmo:step3", {"WANDB_API_KEY": KEY, "BABYLON_BASE_MODEL": "b"}, "W&B named no artifact"),
        ("local", "/somewhere", {"BABYLON_BASE_MODEL": "b"}, "set BABYLON_INFERENCE_URL"),
        ("other", "/somewhere", {}, "was trained by 'other'"),
    ],
)
def test_what_nothing_serves_says_what_is_missing(
    trainer: str, path: str, variables: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        locate_policy(Settings.load(**variables).training, a_checkpoint(trainer, path), inference_url=None)


# ── vLLM ──────────────────────────────────────────────────────────────────────────────────────────────────


class Vllm(BaseHTTPRequestHandler):
    """What vLLM answers: completions with `prompt_logprobs`, and chat. The base finds every token equally likely."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        common = {"id": "x", "created": 1, "model": body["model"]}
        if self.path == "/v1/completions":
            ids = body["prompt"]
            given = [None, *({str(i): {"logprob": logprob(body["model"], i), "rank": 1}} for i in ids[1:])]
            choice = {"index": 0, "text": "x", "finish_reason": "length", "logprobs": None, "prompt_logprobs": given}
            answer = {**common, "object": "text_completion", "choices": [choice]}
        else:
            message = {"role": "assistant", "content": '{"action":"HOLD"}'}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            answer = {**common, "object": "chat.completion", "choices": [choice]}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Be silent."""


def logprob(model: str, token: int) -> float:
    return -(token % 13) / 10 if model.endswith("@1") else -1.0


@pytest.fixture
def vllm_url() -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Vllm)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}/v1"
    http.shutdown()
    http.server_close()
    thread.join(timeout=10)


def test_vllm_says_how_likely_logged_answers_are(settings: Settings, vllm_url: str) -> None:
    local = settings.changed(training={"base_model": str(shipped_base())}, serving={"inference_url": vllm_url})
    with open_workspace(local) as workspace:
        play_and_judge(workspace, hours(4))
        batch = workspace.ledger.plan(hours(1)[0], 1, learning_rate=None)
        assert batch is not None
        made = workspace.ledger.record(
            batch, trainer="local", base_model="b", path="/somewhere", manifest={"a": "b"}, metrics={}
        )

        result = evaluate_on_log(workspace, made, base_digest="base")

        expected = [read_off(workspace, w) for w in hours(4)[1:]]
    assert isinstance(result, LogEvaluation)
    assert result.unknown == {}
    assert result.policy.ranks_best_first == pytest.approx(sum(r for r, _ in expected) / 3)
    assert result.policy.better_over_worse_nats == pytest.approx(sum(m for _, m in expected) / 3)
    assert (result.base.ranks_best_first, result.base.better_over_worse_nats) == (0.5, 0.0)


def read_off(workspace: Workspace, window: HourWindow) -> tuple[float, float]:
    """Both figures of a window, by the server's own rule over the tokens of the logged answers."""
    tokenizer = load_tokenizer(str(shipped_base()))
    assert PromptRenderer(tokenizer).ids("s", "u"), "a prompt stands before each answer"
    group, judgment = workspace.store.group(window), workspace.store.judgment(window)
    assert group is not None
    assert judgment is not None
    score = {s.trajectory_id: s.value for s in judgment.scores}
    likelihoods = []
    for member in group.members:
        ids = [i for turn in member.turns for i in tokenizer(turn.response, add_special_tokens=False)["input_ids"]]
        likelihoods.append(sum(logprob("mmo@1", i) for i in ids) / len(ids))
    scores = [score[m.trajectory_id] for m in group.members]
    ranked, margin = rank_best_first(scores, likelihoods), better_over_worse(scores, likelihoods)
    assert ranked is not None
    assert margin is not None
    return ranked, margin
