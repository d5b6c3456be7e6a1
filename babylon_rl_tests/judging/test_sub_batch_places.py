"""Sub-batches of a group too long for one prompt: places are balanced over passes, and their effect is removed."""

import asyncio
import statistics

import pytest
from judge_server import JudgeServer
from judging_factories import a_ruler

from babylon_rl.common.rank_agreement import kendall_tau
from babylon_rl.judging.audit.synthetic_groups import SyntheticGroup, make_synthetic_group
from babylon_rl.judging.ruler.judge import RulerJudge, trading_rubric
from babylon_rl.judging.ruler.prompt import write_forms
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
    assert biased >= 0.95
    assert honest >= 0.99
