"""Sub-batches of a group too long for one prompt: places are balanced over passes, and their effect is removed."""

import asyncio
import statistics
from dataclasses import replace

import pytest
from judge_server import JudgeServer, pnls_in
from judging_factories import a_ruler

from babylon_rl.common.rank_agreement import kendall_tau
from babylon_rl.judging.audit.synthetic_groups import SyntheticGroup, make_synthetic_group
from babylon_rl.judging.ruler.judge import RulerJudge, trading_rubric
from babylon_rl.judging.ruler.prompt import write_forms
from babylon_rl.judging.ruler.sub_batches import ShownBatch, balance_places, balanced_key
from babylon_rl.judging.score import ScoreReport, score_groups
from babylon_rl.types import Judgment

GROUPS = [make_synthetic_group(s, agents=8, steps=2) for s in range(24)]


def a_short_sighted_ruler(server: JudgeServer, synthetic: SyntheticGroup, *, passes: int) -> RulerJudge:
    """A judge whose context takes a sub-batch of the group, and not the group."""
    forms = write_forms(synthetic.group, synthetic.hindsight, rubric=trading_rubric(), key="k")
    context = min(tokens for _, _, tokens in forms.by_preference()) - 100
    return a_ruler(server.url, passes=passes, context_tokens=context)


def judge_in_sub_batches(server: JudgeServer, synthetic: SyntheticGroup, *, passes: int = 3) -> Judgment:
    async def ask() -> Judgment:
        async with a_short_sighted_ruler(server, synthetic, passes=passes) as judge:
            return await judge.judge(synthetic.group, synthetic.hindsight)

    return asyncio.run(ask())


def tau(judgment: Judgment, synthetic: SyntheticGroup) -> float:
    found = kendall_tau({s.trajectory_id: s.value for s in judgment.scores}, synthetic.truth)
    assert found is not None
    return found


def mean_tau(server: JudgeServer, mode: str) -> float:
    server.set_rules([(mode, None, "")])
    return statistics.fmean(tau(judge_in_sub_batches(server, s), s) for s in GROUPS)


def test_position_bias_is_removed_from_sub_batches_too(server: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    biased = mean_tau(server, "position_biased")
    honest = mean_tau(server, "honest")
    with capsys.disabled():
        print(f"\nsub-batches in 3 passes, {len(GROUPS)} groups of 8: tau {biased:.3f} biased, {honest:.3f} honest")  # noqa: T201
    assert biased >= 0.97  # 0.821 when a sub-batch kept its order in all passes
    assert honest >= 0.99


def test_a_member_stands_elsewhere_in_each_pass(server: JudgeServer) -> None:
    """Relative places of the members of the first sub-batches: early in one pass, late in another."""
    for synthetic in GROUPS[:6]:
        seen: dict[float | None, list[float]] = {}
        before = server.calls
        judge_in_sub_batches(server, synthetic)
        for call in range(before, server.calls):
            shown = list(pnls_in(server.prompt(call)).values())
            for place, pnl in enumerate(shown):
                seen.setdefault(pnl, []).append(place / (len(shown) - 1))
        assert len(seen) == 8
        assert all(0.25 <= statistics.fmean(places) <= 0.75 for places in seen.values())
        assert all(len(set(places)) > 1 for places in seen.values())


def test_balancing_places_depends_on_what_was_shown_alone() -> None:
    members = [f"m{i}" for i in range(5)]
    shown = [ShownBatch(tuple(members), dict.fromkeys(members, 0.5))]
    arranged = balance_places(members, shown, key="k")
    assert {*arranged[:2]} <= {"m2", "m3", "m4"}  # who stood late stands early
    assert all(a != b for a, b in zip(arranged, members, strict=True))
    assert balance_places(members[::-1], shown, key="k") == arranged
    assert sorted(balance_places(members, [], key="k")) == members


def test_only_sub_batches_of_several_passes_have_own_keys(server: JudgeServer) -> None:
    synthetic = GROUPS[0]
    small = a_short_sighted_ruler(server, synthetic, passes=3)
    base = small.key(synthetic.group, synthetic.hindsight)
    in_sub_batches = judge_in_sub_batches(server, synthetic)
    assert (in_sub_batches.key, in_sub_batches.judge_version) == (balanced_key(base), small.version)
    once = judge_in_sub_batches(server, synthetic, passes=1)
    assert once.key == a_ruler(server.url).key(synthetic.group, synthetic.hindsight)


@pytest.mark.parametrize(("passes", "judged_anew"), [(3, True), (1, False)])
def test_what_was_judged_before_places_were_balanced(passes: int, judged_anew: bool, server: JudgeServer) -> None:
    """Judged anew where its requests changed, once; kept where they did not."""
    synthetic = GROUPS[0]
    judge = a_short_sighted_ruler(server, synthetic, passes=passes)
    old = replace(
        judge_in_sub_batches(server, synthetic, passes=passes),
        key=judge.key(synthetic.group, synthetic.hindsight),
        details={"form": "heats", "passes": passes},
    )
    shelf = {old.key: old}

    def run() -> ScoreReport:
        items = [(synthetic.group, synthetic.hindsight)]
        return asyncio.run(score_groups(judge, items, cached=shelf.get, store=lambda j: shelf.update({j.key: j})))

    first, second = run(), run()
    assert (first.calls, second.calls, second.cached) == (int(judged_anew), 0, 1)
    assert (first.judgments[synthetic.group.group_id] == old) is not judged_anew
    assert first.judgments == second.judgments
    assert shelf[old.key] == old


def test_one_pass_asks_what_it_asked_before(server: JudgeServer) -> None:
    """Slot names of one pass are those of stored replies, and the anchors lead the second sub-batch as they did."""
    synthetic = GROUPS[0]
    judge_in_sub_batches(server, synthetic, passes=1)
    first, second = (list(pnls_in(server.prompt(i)).values()) for i in range(2))
    assert second[:2] == [min(v for v in first if v is not None), max(v for v in first if v is not None)]
