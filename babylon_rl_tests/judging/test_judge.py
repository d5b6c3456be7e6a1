"""The rules that hold for every judge: keys, pairing, scores; and which judge the settings open."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from judging_factories import KEY, Pair, a_pair, a_ruler, an_action, reversed_pair, with_decisions

from babylon_rl.errors import ConfigError, DataError
from babylon_rl.judging.audit.audit import audit
from babylon_rl.judging.factory import open_judge
from babylon_rl.judging.hindsight_judge import HindsightJudge
from babylon_rl.judging.judge import validate_scores
from babylon_rl.judging.ruler.endpoint import LiteLlmEndpoint, OpenAIEndpoint
from babylon_rl.judging.ruler.judge import RulerJudge
from babylon_rl.settings import JudgeSettings, Settings
from babylon_rl.store.judge_audits import audit_of, write_audit
from babylon_rl.types import Score

NOWHERE = "http://127.0.0.1:9/v1"


def member_changed(**change: Any) -> Callable[[Pair], Pair]:
    return lambda p: (p[0], replace(p[1], members=(replace(p[1].members[0], **change), *p[1].members[1:])))


def turn_changed(**change: Any) -> Callable[[Pair], Pair]:
    def changed(p: Pair) -> Pair:
        first = p[0].members[0]
        turned = replace(first, turns=(msgspec.structs.replace(first.turns[0], **change), *first.turns[1:]))
        return replace(p[0], members=(turned, *p[0].members[1:])), p[1]

    return changed


def outcomes_changed(**change: Any) -> Callable[[Pair], Pair]:
    return lambda p: (p[0], replace(p[1], outcomes=replace(p[1].outcomes, **change)))


INGREDIENTS: dict[str, Callable[[Pair], Pair]] = {
    "system prompt": turn_changed(system="x"),
    "user prompt": turn_changed(user="x"),
    "response": turn_changed(response="x"),
    "pnl": member_changed(pnl_usd=1.5),
    "unknown pnl": member_changed(pnl_usd=None),
    "balance": member_changed(start_balance_usd=1.0),
    "game knowledge": member_changed(game_knowledge={"x": 1}),
    "decisions": lambda p: with_decisions(p, 0, an_action(correctness="wrong")),
    "stocks": outcomes_changed(stocks=()),
    "predictions": outcomes_changed(predictions=()),
    "group": lambda p: (replace(p[0], group_id="other"), p[1]),
}


@pytest.mark.parametrize("judge", [HindsightJudge(), a_ruler(NOWHERE)], ids=["hindsight", "ruler"])
@pytest.mark.parametrize("ingredient", INGREDIENTS)
def test_the_key_changes_with_every_ingredient(judge: Any, ingredient: str) -> None:
    assert judge.key(*INGREDIENTS[ingredient](a_pair())) != judge.key(*a_pair())


def test_the_judgment_key_depends_on_judge_rubric_and_version() -> None:
    pair, judge = a_pair(), a_ruler(NOWHERE)
    later = a_ruler(NOWHERE)
    later.version = "ruler-next"
    keys = {
        j.key(*pair)
        for j in (
            judge,
            a_ruler(NOWHERE, model="openai/o3"),
            a_ruler(NOWHERE, rubric="Be kind."),
            later,
            HindsightJudge(),
        )
    }
    assert len(keys) == 5
    assert a_ruler(NOWHERE, rubric="Be kind.").version != judge.version


@pytest.mark.parametrize("judge", [HindsightJudge(), a_ruler(NOWHERE)], ids=["hindsight", "ruler"])
def test_the_key_does_not_change_with_order_or_with_who_spoke(judge: Any) -> None:
    pair = a_pair()
    assert judge.key(*reversed_pair(pair)) == judge.key(*pair)
    assert judge.key(*turn_changed(policy_version="m@3", temperature=0.4)(pair)) == judge.key(*pair)


def test_half_an_emoji_fails_one_group_with_its_name() -> None:
    with pytest.raises(DataError, match="2025-01-15T10:00/g"):
        HindsightJudge().key(*turn_changed(response="\ud83d")(a_pair()))


def test_a_group_is_only_judged_with_its_own_hindsight() -> None:
    group, h = a_pair()
    with pytest.raises(DataError, match="agent-4"):
        HindsightJudge().key(group, replace(h, members=h.members[:-1]))


def scores(*values: Any) -> list[Score]:
    return [Score(trajectory_id=f"2025-01-15T10:00/agent-{i}", value=v, explanation="e") for i, v in enumerate(values)]


def test_scores_are_matched_by_id_and_come_back_sorted() -> None:
    group, _ = a_pair((1.0, 2.0, 3.0))
    assert [s.value for s in validate_scores(group, scores(0.1, 0.2, 0.3)[::-1])] == [0.1, 0.2, 0.3]
    assert [s.value for s in validate_scores(group, scores(0, 1, 0.5))] == [0.0, 1.0, 0.5]


@pytest.mark.parametrize("bad", [1.01, -0.01, float("nan"), float("inf"), True, None, "0.5"])
def test_a_score_outside_the_unit_interval_fails_the_group(bad: Any) -> None:
    with pytest.raises(DataError, match="agent-1"):
        validate_scores(a_pair((1.0, 2.0))[0], scores(0.5, bad))


@pytest.mark.parametrize("given", [scores(0.1), scores(0.1, 0.2, 0.3), [*scores(0.1, 0.2), *scores(0.1)]])
def test_a_missing_unknown_or_doubled_id_fails_the_group(given: list[Score]) -> None:
    with pytest.raises(DataError, match="expected one finite score"):
        validate_scores(a_pair((1.0, 2.0))[0], given)


def settings(**env: str) -> JudgeSettings:
    return Settings.load(**env).judge


def test_without_model_and_key_the_hindsight_judge_judges() -> None:
    assert isinstance(open_judge(settings()), HindsightJudge)


def test_a_key_alone_opens_ruler_with_the_default_model() -> None:
    judge = open_judge(settings(OPENAI_API_KEY=KEY))
    assert isinstance(judge, RulerJudge)
    assert judge.model == "openai/gpt-4o-mini"
    assert judge.version.startswith("ruler-2-")
    assert judge.price is not None
    assert isinstance(open_judge(settings(OPENAI_API_KEY=KEY, JUDGE_MODEL="hindsight")), HindsightJudge)


@pytest.mark.parametrize(
    ("env", "endpoint"),
    [
        ({"JUDGE_MODEL": "openai/o3", "OPENAI_API_KEY": KEY}, OpenAIEndpoint),
        ({"JUDGE_MODEL": "qwen3", "JUDGE_BASE_URL": NOWHERE}, OpenAIEndpoint),
        ({"JUDGE_MODEL": "anthropic/claude-x"}, LiteLlmEndpoint),
        ({"JUDGE_MODEL": "anthropic/claude-x", "JUDGE_BASE_URL": NOWHERE}, OpenAIEndpoint),
    ],
)
def test_litellm_is_used_only_where_the_openai_client_cannot_be(env: dict[str, str], endpoint: type) -> None:
    judge = open_judge(settings(**env))
    assert isinstance(judge, RulerJudge)
    assert isinstance(judge._endpoint, endpoint)


@pytest.mark.parametrize("env", [{"JUDGE_MODEL": "openai/o3"}, {"JUDGE_BASE_URL": NOWHERE}])
def test_a_half_configured_judge_is_refused_rather_than_replaced(env: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="JUDGE_MODEL"):
        open_judge(settings(**env))


AT = {"JUDGE_MODEL": "qwen3", "JUDGE_BASE_URL": "https://me:secret@One.example:8000/v1/?key=secret"}


@pytest.mark.parametrize(
    ("env", "is_same"),
    [
        ({"JUDGE_BASE_URL": "https://one.example:8000/v1"}, True),
        ({"JUDGE_NAME": "https://one.example:8000/v1", "JUDGE_BASE_URL": "http://moved.example/v1"}, True),
        ({"JUDGE_BASE_URL": "https://two.example:8000/v1"}, False),
        ({"JUDGE_BASE_URL": "https://one.example:8001/v1"}, False),
        ({"JUDGE_BASE_URL": "https://one.example:8000/v2"}, False),
        ({"JUDGE_NAME": "ours"}, False),
    ],
)
def test_servers_under_one_model_name_share_no_judgment(env: dict[str, str], is_same: bool) -> None:
    """Nor an audit, which is found by model and version."""
    one, other = open_judge(settings(**AT)), open_judge(settings(**AT | env))
    assert one.model == other.model == "qwen3"
    assert (one.version == other.version) is is_same
    assert (one.key(*a_pair()) == other.key(*a_pair())) is is_same


def test_an_audit_of_one_server_does_not_count_for_another(engine: sa.Engine) -> None:
    one = open_judge(settings(**AT))
    other = open_judge(settings(**AT | {"JUDGE_BASE_URL": NOWHERE}))
    figures = asyncio.run(audit(HindsightJudge(), groups=1))
    write_audit(engine, replace(figures, judge_model=one.model, judge_version=one.version))
    assert audit_of(engine, one.model, one.version) is not None
    assert audit_of(engine, other.model, other.version) is None


def test_without_an_address_version_and_key_are_those_stored() -> None:
    judge = open_judge(settings(OPENAI_API_KEY=KEY))
    assert judge.version == "ruler-2-f5489e5a"
    named = open_judge(settings(OPENAI_API_KEY=KEY, JUDGE_NAME="ours"))
    assert named.version.startswith("ruler-2-f5489e5a@")


@pytest.mark.parametrize(
    "address", ["one.example/v1", "ftp://one.example", "http://", "http://one.example:port/v1", "http://[::1"]
)
def test_an_address_that_is_none_is_refused_when_it_opens(address: str) -> None:
    with pytest.raises(ConfigError, match="JUDGE_BASE_URL is not an address"):
        open_judge(settings(JUDGE_MODEL="qwen3", JUDGE_BASE_URL=address))
