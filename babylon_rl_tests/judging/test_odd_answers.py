"""Answers that are odd, too long or broken off: each ends in scores, or in one failed group with its reason."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from judge_server import ODD, SIZE, STATUSES, USELESS, JudgeServer
from judging_factories import PNLS, a_pair, a_ruler

from babylon_rl.database import tables as t
from babylon_rl.errors import ConfigError, DataError
from babylon_rl.judging.ruler.completion import MAX_REPLY_CHARS, NoCompletionError, decode_completion, read_completion
from babylon_rl.judging.ruler.endpoint import LiteLlmEndpoint
from babylon_rl.judging.score import ScoreReport, score_groups
from babylon_rl.store.judge_calls import PostgresCallLog
from babylon_rl.types import Judgment, RetryKind

SCRIPT = Path(__file__).with_name("judge_memory.py")
HOURS = [f"2025-01-15T{h:02}:00" for h in range(3)]
BAD = "2025-01-15T01:00"
EXPECTED = [round(0.05 + 0.9 * (p - min(PNLS)) / (max(PNLS) - min(PNLS)), 6) for p in PNLS]


async def ask(url: str, call_log: PostgresCallLog | None = None, endpoint: LiteLlmEndpoint | None = None) -> Judgment:
    judge = a_ruler(url, call_log=call_log)
    if endpoint is not None:
        judge._endpoint = endpoint
    async with judge:
        return await judge.judge(*a_pair())


def score_three(server: JudgeServer, mode: str, **more: object) -> ScoreReport:
    """Three windows, of which the second is always answered in `mode`."""
    server.behave(mode, only=BAD)
    items = [a_pair(window=w) for w in HOURS]
    kept: dict[str, Judgment] = {}
    report = asyncio.run(
        score_groups(
            a_ruler(server.url, **more),  # type: ignore[arg-type]
            items,
            cached=kept.get,
            store=lambda j: kept.__setitem__(j.key, j),
            concurrency=1,
        )
    )
    assert list(report.judgments) == [f"{w}/g" for w in HOURS if w != BAD or mode in ODD]
    return report


@pytest.mark.parametrize("mode", ODD)
def test_an_odd_answer_with_an_honest_reply_gives_scores(mode: str, server: JudgeServer, engine: sa.Engine) -> None:
    server.behave(mode)
    judgment = asyncio.run(ask(server.url, PostgresCallLog(engine)))
    assert [s.value for s in judgment.scores] == EXPECTED
    assert server.calls == 1
    with engine.connect() as conn:
        row = conn.execute(sa.select(t.judge_calls)).mappings().one()
    assert row["state"] == "replied"
    if "usage" in mode:  # no count, so all that was reserved is booked
        assert row["cost_usd"] == row["reserved_usd"] > 0
        assert row["prompt_tokens"] == row["completion_tokens"] == 0


@pytest.mark.parametrize("mode", USELESS)
def test_a_useless_answer_fails_its_group_alone(mode: str, server: JudgeServer) -> None:
    failure = score_three(server, mode).failed[f"{BAD}/g"]
    assert failure.kind is RetryKind.JUDGE_FAILED
    assert "gave no usable reply in 3 asks" in failure.reason
    assert server.calls == 2 + 3


@pytest.mark.parametrize("mode", ["html", "error_page", "broken_off", "500", "502", "hang"])
def test_a_judge_broken_for_one_group_costs_its_siblings_nothing(mode: str, server: JudgeServer) -> None:
    failure = score_three(server, mode, timeout_s=0.3).failed[f"{BAD}/g"]
    assert failure.kind is RetryKind.JUDGE_FAILED
    assert "gave up after 3 of 3 tries" in failure.reason
    assert server.calls == 2 + 3


def test_a_connection_that_breaks_in_mid_answer_may_be_paid(server: JudgeServer, engine: sa.Engine) -> None:
    server.behave("broken_off", times=2)
    judgment = asyncio.run(ask(server.url, PostgresCallLog(engine)))
    assert [s.value for s in judgment.scores] == EXPECTED
    assert states(engine) == ["lost", "lost", "replied"]


def states(engine: sa.Engine) -> list[str]:
    with engine.connect() as conn:
        return list(conn.scalars(sa.select(t.judge_calls.c.state).order_by(t.judge_calls.c.serial)))


@pytest.mark.parametrize(
    ("mode", "state"),
    [
        *((status, "lost") for status in ("408", "502", "503", "504")),
        *((status, "refused") for status in ("409", "425", "429", "500", "529")),
        ("html", "lost"),
    ],
)
def test_what_a_proxy_says_may_be_paid_what_the_judge_says_not(
    mode: str, state: str, server: JudgeServer, engine: sa.Engine
) -> None:
    server.behave(mode, times=1)
    asyncio.run(ask(server.url, PostgresCallLog(engine)))
    assert states(engine) == [state, "replied"]


@pytest.mark.parametrize("mode", ["401", "402", "403", "404", "quota", "unsupported", "no_model"])
def test_a_configuration_error_is_one_error_and_ends_the_asking(mode: str, server: JudgeServer) -> None:
    server.behave("honest", times=1)
    server.behave(mode)
    items = [a_pair(window=w) for w in HOURS]
    kept: dict[str, Judgment] = {}
    report = asyncio.run(
        score_groups(
            a_ruler(server.url),
            items,
            cached=kept.get,
            store=lambda j: kept.__setitem__(j.key, j),
            concurrency=1,
        )
    )
    assert isinstance(report.refusal, ConfigError)
    assert f"HTTP {STATUSES[mode]}" in str(report.refusal)
    assert list(report.judgments) == [f"{HOURS[0]}/g"]
    assert {(f.kind, f.reason) for f in report.failed.values()} == {(RetryKind.JUDGE_DOWN, str(report.refusal))}
    assert len(report.failed) == 2
    assert server.calls == 2


# ── through litellm ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("usage_text", ["replied"]),
        ("content_object", ["replied", "replied"]),
        ("broken_off", ["lost", "replied"]),
        ("html", ["lost", "replied"]),
        ("502", ["lost", "replied"]),
        ("500", ["refused", "replied"]),
        ("usage_infinite", ["replied", "replied"]),
    ],
)
def test_litellms_odd_answers_are_read_and_booked_alike(
    mode: str, expected: list[str], server: JudgeServer, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", server.url)
    server.behave(mode, times=1)
    endpoint = LiteLlmEndpoint("hosted_vllm/some-model", timeout_s=20)
    judgment = asyncio.run(ask(server.url, PostgresCallLog(engine), endpoint))
    assert [s.value for s in judgment.scores] == EXPECTED
    assert states(engine) == expected


def test_an_unknown_provider_is_the_operators_error(server: JudgeServer) -> None:
    with pytest.raises(ConfigError, match="JUDGE_MODEL is 'nobody/some-model'"):
        asyncio.run(ask(server.url, endpoint=LiteLlmEndpoint("nobody/some-model", timeout_s=20)))


def test_litellms_unsupported_parameter_is_the_operators_error(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", server.url)
    server.behave("unsupported")
    with pytest.raises(ConfigError, match="unsupported_parameter"):
        asyncio.run(ask(server.url, endpoint=LiteLlmEndpoint("hosted_vllm/some-model", timeout_s=20)))


# ── too long ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["long", "long_ids", "long_error"])
def test_an_answer_of_50_mb_takes_a_few_and_is_not_echoed(
    mode: str, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behave(mode, only="2025-01-15T02:00")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), server.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=SCRIPT.parents[2],
        env={"PYTHONPATH": str(SCRIPT.parents[2]), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    reason_chars, peak_mb = map(float, done.stdout.split())
    assert server.calls == 4
    assert max(len(json.dumps(p)) for p in server.payloads) < 60_000
    assert reason_chars < 600
    with capsys.disabled():
        print(f"\n{mode}, {SIZE // 10**6} MB: {peak_mb:.1f} MB of memory at the peak")  # noqa: T201
    assert peak_mb < 25


def test_of_a_long_faulty_reply_only_the_beginning_goes_back(server: JudgeServer, engine: sa.Engine) -> None:
    text = "x" * (MAX_REPLY_CHARS + 1)
    body = {"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 5, "completion_tokens": 5}}
    reply = decode_completion(json.dumps(body).encode())
    assert len(reply.text) == 2_000
    assert reply.fault is not None
    assert "1000001 characters" in reply.fault
    assert (reply.prompt_tokens, reply.completion_tokens) == (5, 5)

    server.behave("wordy", times=1)
    asyncio.run(ask(server.url))
    _, second = (p["messages"] for p in server.payloads)
    assert len(second[2]["content"]) == 2_000


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b"null", b'{"object": "list"}', b"[" * 100_000, b"\xff{}"])
def test_what_is_no_completion_is_told_apart(body: bytes) -> None:
    with pytest.raises(NoCompletionError):
        decode_completion(body)


def test_deep_nesting_in_a_completion_is_a_fault() -> None:
    deep: list[object] = []
    for _ in range(50_000):
        deep = [deep]
    assert read_completion({"choices": [{"message": {"content": deep}}]}).fault


def test_a_failed_group_keeps_what_its_replies_cost(server: JudgeServer) -> None:
    server.behave("choices_object")
    with pytest.raises(DataError) as e:
        asyncio.run(ask(server.url))
    assert e.value.facts["prompt_tokens"]
