"""The order of members: places are balanced, and three calls a group remove a planted position bias."""

import asyncio
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_server import JudgeServer, pnls_in
from judging_factories import a_pair, a_ruler

from babylon_rl.common.rank_agreement import kendall_tau
from babylon_rl.judging.audit.synthetic_groups import SyntheticGroup, make_synthetic_group
from babylon_rl.judging.ruler.order import combine_passes, orders, pass_agreement
from babylon_rl.pipeline.check_rules import scores_spread
from babylon_rl.types import Judgment, Score

GROUPS = [make_synthetic_group(s, agents=8, steps=2) for s in range(24)]


def judged(server: JudgeServer, synthetic_groups: list[SyntheticGroup], passes: int) -> list[Judgment]:
    async def ask() -> list[Judgment]:
        async with a_ruler(server.url, passes=passes, max_concurrency=4) as judge:
            return await asyncio.gather(*(judge.judge(e.group, e.hindsight) for e in synthetic_groups))

    return asyncio.run(ask())


def tau(judgment: Judgment, synthetic: SyntheticGroup) -> float:
    found = kendall_tau({s.trajectory_id: s.value for s in judgment.scores}, synthetic.truth)
    assert found is not None
    return found


@pytest.mark.parametrize("members", range(2, 13))
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_every_pass_shows_everybody_once_and_places_add_up_alike(members: int, passes: int) -> None:
    names = [f"m{i}" for i in range(members)]
    shown = orders(names, passes)
    assert len(shown) == passes
    assert all(sorted(p) == sorted(names) for p in shown)
    places = [sum(p.index(m) for p in shown) for m in names]
    assert passes == 1 or max(places) - min(places) <= 1
    assert members == 2 or len({tuple(p) for p in shown}) == passes


def test_three_calls_remove_a_planted_position_bias(server: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.behave("position_biased")
    single, triple = judged(server, GROUPS, 1), judged(server, GROUPS, 3)
    one = statistics.fmean(tau(j, e) for j, e in zip(single, GROUPS, strict=True))
    three = statistics.fmean(tau(j, e) for j, e in zip(triple, GROUPS, strict=True))
    with capsys.disabled():
        print(f"\nplanted position bias, {len(GROUPS)} groups of 8: tau {one:.3f} in 1 call, {three:.3f} in 3 calls")  # noqa: T201
    assert three >= 0.95 > one
    assert server.calls == 4 * len(GROUPS)
    agreed = [j.details["position_consistency"] for j in triple]
    assert statistics.fmean(agreed) < 0.7  # and the judge's inconsistency is reported
    assert all("position_consistency" not in j.details for j in single)


def test_passes_of_an_honest_judge_agree_and_change_nothing(server: JudgeServer) -> None:
    once, thrice = judged(server, GROUPS[:3], 1), judged(server, GROUPS[:3], 3)
    for a, b in zip(once, thrice, strict=True):
        assert b.details["position_consistency"] == 1.0
        assert [s.value for s in a.scores] == pytest.approx([s.value for s in b.scores], abs=1e-6)
        assert a.judge_version + "-x3" == b.judge_version
        assert a.key != b.key


def test_ids_are_drawn_anew_in_each_pass(server: JudgeServer) -> None:
    judged(server, GROUPS[:1], 3)
    ids = [set(pnls_in(server.prompt(i))) for i in range(3)]
    assert len(set.union(*ids)) == 3 * 8


score = st.floats(0, 1).map(lambda x: round(x, 3))


@settings(max_examples=60, deadline=None)
@given(st.lists(score, min_size=3, max_size=9), st.lists(st.floats(-0.3, 0.3), min_size=9, max_size=9))
def test_three_passes_separate_worth_from_position(worth: list[float], places: list[float]) -> None:
    names = [f"m{i}" for i in range(len(worth))]
    truth = dict(zip(names, worth, strict=True))
    shown = orders(names, 3)
    passes = [{m: 0.4 + 0.3 * truth[m] + 0.3 * places[i] for i, m in enumerate(p)} for p in shown]
    plain = {m: sum(p[m] for p in passes) / 3 for m in names}
    found = combine_passes(passes, shown)

    def off(scores: dict[str, float]) -> float:
        gaps = [scores[m] - 0.3 * truth[m] for m in names]
        return max(gaps) - min(gaps)

    assert off(found) <= 0.5 * off(plain) + 0.02
    assert all(0 <= v <= 1 for v in found.values())


def test_tau_is_the_textbook_number() -> None:
    a = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    assert kendall_tau(a, a) == 1.0
    assert kendall_tau(a, {k: -v for k, v in a.items()}) == -1.0
    assert kendall_tau(a, {"a": 2.0, "b": 1.0, "c": 3.0, "d": 4.0}) == pytest.approx(4 / 6)
    assert kendall_tau(a, {"a": 1.0, "b": 1.0, "c": 3.0, "d": 4.0}) == pytest.approx(5 / (6 * 5) ** 0.5)
    assert kendall_tau(a, dict.fromkeys(a, 1.0)) is None
    assert pass_agreement([a]) is None


@pytest.mark.parametrize(
    ("model", "spread", "trains"),
    [
        ("openai/gpt-4o-mini", 0.009, False),
        ("openai/gpt-4o-mini", 0.02, True),
        ("hindsight", 0.0002, True),
        ("hindsight", 1e-9, False),
        ("openai/gpt-4o-mini", 0.0, False),
    ],
)
def test_a_group_of_ties_is_kept_out_whole_and_says_why(model: str, spread: float, trains: bool) -> None:
    group, _ = a_pair()
    values = [0.5, 0.5 + spread, *[0.5] * (len(group.members) - 2)]
    judgment = Judgment(
        key="k",
        group_id="g",
        window_id="w",
        judge_model=model,
        judge_version="1",
        scores=tuple(
            Score(trajectory_id=m.trajectory_id, value=v, explanation="")
            for m, v in zip(group.members, values, strict=True)
        ),
    )
    result = scores_spread(judgment)
    assert result.passed is trains
    assert ("reason" in result.facts) is not trains
