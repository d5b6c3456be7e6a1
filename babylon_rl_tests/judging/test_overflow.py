"""A prompt that is too long becomes compact, then sub-batches; every member is judged whole, or the group fails by name."""

import asyncio
import json
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_server import JudgeServer, pnls_in
from judging_factories import a_pair, a_ruler

from babylon_rl.common.rank_agreement import kendall_tau
from babylon_rl.errors import DataError
from babylon_rl.judging.audit.synthetic_groups import SyntheticGroup, make_synthetic_group
from babylon_rl.judging.ruler.endpoint import TooLongError
from babylon_rl.judging.ruler.judge import trading_rubric
from babylon_rl.judging.ruler.prompt import write_forms
from babylon_rl.judging.ruler.sub_batches import score_in_sub_batches
from babylon_rl.types import Judgment


def judged(server: JudgeServer, synthetic: SyntheticGroup, **more: object) -> Judgment:
    async def ask() -> Judgment:
        async with a_ruler(server.url, **more) as judge:  # type: ignore[arg-type]
            return await judge.judge(synthetic.group, synthetic.hindsight)

    return asyncio.run(ask())


def test_a_group_that_fits_is_sent_in_one_call(server: JudgeServer) -> None:
    judgment = judged(server, make_synthetic_group(1, agents=8, steps=8, tickers=12))
    assert server.calls == 1
    assert judgment.details["form"] == "compact"
    assert 0 < judgment.details["compact_tokens"] < 0.7 * judgment.details["plain_tokens"]


def test_a_prompt_refused_as_too_long_is_sent_compact(server: JudgeServer) -> None:
    # Two members share little, so plain is preferred; the limit lies between the two forms.
    synthetic = make_synthetic_group(4, agents=2, steps=4, tickers=3, news=0)
    forms = write_forms(synthetic.group, synthetic.hindsight, rubric="r", key="k")
    assert forms.compact is not None
    assert [n for n, _, _ in forms.by_preference()] == ["plain", "compact"]
    whole = sum(len(m["content"]) for m in _payload(server, synthetic)["messages"])
    server.context_chars = whole - 1
    judgment = judged(server, synthetic)
    assert judgment.details["form"] == "compact"
    assert server.calls == 3  # the one that measured, the refused one, the compact one
    assert kendall_tau(_values(judgment), synthetic.truth) == 1.0


@pytest.mark.parametrize("known", [True, False], ids=["limit known", "limit learnt from refusals"])
@pytest.mark.parametrize("agents", [3, 4, 5, 8, 11])
def test_a_group_that_does_not_fit_is_judged_in_sub_batches(agents: int, known: bool, server: JudgeServer) -> None:
    synthetic = make_synthetic_group(10 + agents, agents=agents, steps=4)
    if known:
        judgment = judged(server, synthetic, context_tokens=_just_too_small(synthetic))
    else:
        forms = write_forms(synthetic.group, synthetic.hindsight, rubric=trading_rubric(), key="k")
        server.context_chars = min(len(p.system) + len(p.user) for _, p, _ in forms.by_preference()) - 100
        judgment = judged(server, synthetic)
    assert judgment.details["form"] == "heats"
    assert [s.trajectory_id for s in judgment.scores] == sorted(synthetic.truth)
    asked = [server.prompt(i) for i in range(server.calls)]
    assert {pnl for p in asked for pnl in pnls_in(p).values()} == set(synthetic.truth.values())
    for p in asked:
        records = [json.loads(x) for x in p.splitlines() if x.startswith("{")]
        batch = {r["result"]["pnl_usd"] for r in records if "result" in r}
        for h in synthetic.hindsight.members:  # whole, or not in this sub-batch at all
            assert all(any(a in _actions(r) for r in records) for a in h.decisions) or h.pnl_usd not in batch
    agreement = kendall_tau(_values(judgment), synthetic.truth)
    assert agreement is not None
    assert agreement >= 0.8
    assert not known or server.calls <= 6


def test_a_group_fails_when_not_even_two_members_fit(server: JudgeServer) -> None:
    server.context_chars = 500
    with pytest.raises(TooLongError, match=r"two of its trajectories are longer than judge .*longer context"):
        judged(server, make_synthetic_group(3))
    assert issubclass(TooLongError, DataError)


def test_a_known_limit_sends_nothing_that_would_be_refused(server: JudgeServer) -> None:
    with pytest.raises(TooLongError):
        judged(server, make_synthetic_group(3), context_tokens=50)
    assert server.calls == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=3, max_size=20, unique=True), st.integers(0, 10**6))
def test_sub_batches_of_a_relative_judge_rank_as_one_would(truth: list[int], seed: int) -> None:
    """The judge stretches each sub-batch to its own scale, as RULER does; anchors bring them back onto one."""
    values = {f"m{i}": float(t) for i, t in enumerate(truth)}
    order = random.Random(seed).sample(sorted(values), len(values))
    sizes = []

    async def run(batch: object, name: str) -> dict[str, float]:
        members = list(batch)  # type: ignore[call-overload]
        sizes.append(len(members))
        known = [values[m] for m in members]
        low, high = min(known), max(known)
        return {m: 0.1 + 0.8 * (values[m] - low) / (high - low) for m in members}

    scores = asyncio.run(score_in_sub_batches(order, run))
    assert scores.keys() == values.keys()
    assert all(0 <= v <= 1 for v in scores.values())
    assert max(sizes) < len(order)
    if len(order) > 3:  # with three there is one anchor, which gives a level but no scale
        found = kendall_tau(scores, values)
        assert found is not None
        assert found >= 0.6


def test_ranks_survive_sub_batches_on_average(server: JudgeServer) -> None:
    taus = []
    for seed in range(8):
        synthetic = make_synthetic_group(50 + seed, agents=8)
        judgment = judged(server, synthetic, context_tokens=_just_too_small(synthetic))
        taus.append(kendall_tau(_values(judgment), synthetic.truth) or 0.0)
    assert statistics.fmean(taus) >= 0.95


def _values(judgment: Judgment) -> dict[str, float]:
    return {s.trajectory_id: s.value for s in judgment.scores}


def _payload(server: JudgeServer, synthetic: SyntheticGroup) -> dict[str, object]:
    judged(server, synthetic)
    return server.payloads[-1]


def _actions(record: dict[str, object]) -> list[object]:
    usual = record.get("usual", {})
    return [*({**usual, **a} for a in record.get("actions", [])), record.get("action")]  # type: ignore[misc, attr-defined]


def _just_too_small(synthetic: SyntheticGroup) -> int:
    """A context that takes a sub-batch of the group, and not the group."""
    forms = write_forms(synthetic.group, synthetic.hindsight, rubric=trading_rubric(), key="k")
    return min(n for _, _, n in forms.by_preference()) - 100


def test_an_ordinary_group_is_untouched_by_all_this(server: JudgeServer) -> None:
    async def ask() -> Judgment:
        async with a_ruler(server.url) as judge:
            return await judge.judge(*a_pair())

    judgment = asyncio.run(ask())
    assert (judgment.details["form"], judgment.details["requests"], server.calls) == ("plain", 1, 1)
