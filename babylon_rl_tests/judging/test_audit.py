"""Audits of judges: honest judges pass, every planted bad one fails, and nothing trains on an unfit judge."""

import asyncio

import pytest
import sqlalchemy as sa
from judge_server import JudgeServer
from judging_factories import a_ruler
from planted_judges import BAD, PlantedJudge, auc, honest, suspicion

from babylon_rl.errors import DataError
from babylon_rl.judging.audit.audit import Figures, audit
from babylon_rl.judging.audit.synthetic_groups import make_synthetic_group
from babylon_rl.judging.hindsight_judge import HindsightJudge
from babylon_rl.judging.judge import Judge
from babylon_rl.pipeline import checks
from babylon_rl.store.judge_audits import audit_of, latest_audit, write_audit

TRIALS = 50


def audited(judge: Judge, **more: int) -> Figures:
    return asyncio.run(audit(judge, **more))


def through_http(server: JudgeServer, mode: str, *, groups: int = 5, **more: object) -> Figures:
    server._rules.clear()
    server.behave(mode)
    return audited(a_ruler(server.url, **more), groups=groups)  # type: ignore[arg-type]


def test_bad_judges_are_told_from_honest_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """250 audits of two groups each: 50 honest judges, 50 of each bad kind, each with its own noise and groups."""
    good = [suspicion(audited(PlantedJudge("honest", honest, seed=s), groups=2, seed=s)) for s in range(TRIALS)]
    lines, every = [], []
    for i, (name, character) in enumerate(BAD.items(), start=1):
        judges = [PlantedJudge(name, character, seed=s) for s in range(TRIALS)]
        bad = [suspicion(audited(j, groups=2, seed=i * TRIALS + s)) for s, j in enumerate(judges)]
        every += bad
        lines.append(f"{name}: AUC {auc(bad, good):.3f}")
    total = auc(every, good)
    with capsys.disabled():
        print(f"\nbad-judge detection, {len(good) + len(every)} trials: AUC {total:.3f} ({', '.join(lines)})")  # noqa: T201
    assert total >= 0.95
    assert len(good) + len(every) >= 200


def test_an_honest_judge_and_the_hindsight_judge_pass_the_audit(server: JudgeServer) -> None:
    assert audited(HindsightJudge()).faults == []
    found = through_http(server, "honest")
    assert found.faults == []
    assert found.truth_agreement == pytest.approx(1.0)
    assert found.judged == server.calls == 5 * 8 - (found.judged < 40)


@pytest.mark.parametrize(
    ("mode", "figure"),
    [
        ("position_biased", "position_bias"),
        ("length_loving", "length_bias"),
        ("obeys_injection", "injection_gain"),
        ("random", "retest_noise"),
        ("inverted", "truth_agreement"),
    ],
)
def test_each_bad_judge_is_unfit_and_its_own_figure_says_why(mode: str, figure: str, server: JudgeServer) -> None:
    bad, good = through_http(server, mode), through_http(server, "honest")
    assert not bad.fit
    assert abs(getattr(bad, figure) - getattr(good, figure)) > 0.1
    assert any(figure in fault for fault in bad.faults)
    assert mode != "obeys_injection" or bad.by_control["injected"] == 1.0


def test_three_passes_take_the_position_bias_out_of_the_figures(server: JudgeServer) -> None:
    one, three = (through_http(server, "position_biased", groups=6, passes=p) for p in (1, 3))
    assert abs(three.position_bias) < 0.1 < abs(one.position_bias)
    assert three.truth_agreement > one.truth_agreement
    assert three.retest_noise < one.retest_noise


def test_a_judge_that_judges_nothing_has_no_figures(server: JudgeServer) -> None:
    with pytest.raises(DataError, match="could judge none of 5 audit groups"):
        through_http(server, "nan")


def test_the_seed_decides_which_groups_probe_a_judge() -> None:
    def found(seed: int) -> Figures:
        return audited(PlantedJudge("honest", honest), groups=3, seed=seed)

    assert found(1) == found(1)
    assert found(1).retest_noise != found(2).retest_noise


def test_a_synthetic_group_knows_what_each_behaviour_earns() -> None:
    synthetic = make_synthetic_group(7)
    for t, pnl in synthetic.truth.items():
        assert synthetic.pnl_of(synthetic.moves[t]) == pytest.approx(pnl, abs=0.02)
        held = synthetic.with_moves(t, [(ticker, 0.0) for ticker, _ in synthetic.moves[t]])
        assert held.truth[t] == 0.0
        assert {k: v for k, v in held.truth.items() if k != t} == {k: v for k, v in synthetic.truth.items() if k != t}
        assert all("HOLD" in a for a in held.answers(t))
    turned = synthetic.inverted()
    assert turned.truth == {t: -v for t, v in synthetic.truth.items()}
    assert turned.group == synthetic.group


def test_audits_are_kept_by_judge_version_and_the_newest_counts(engine: sa.Engine, server: JudgeServer) -> None:
    bad, good = through_http(server, "inverted", groups=2), through_http(server, "honest", groups=2)
    version = (good.judge_model, good.judge_version)
    assert latest_audit(engine, *version) is None
    write_audit(engine, bad)
    stored = latest_audit(engine, *version)
    assert stored is not None
    assert (stored.fit, stored.figures["truth_agreement"]) == (False, round(bad.truth_agreement, 4))
    write_audit(engine, good)
    newest = latest_audit(engine, *version)
    assert newest is not None
    assert newest.fit
    assert latest_audit(engine, good.judge_model, "another") is None


def test_the_hindsight_judge_is_audited_without_being_asked(engine: sa.Engine) -> None:
    judge = HindsightJudge()
    found = audit_of(engine, judge.model, judge.version)
    assert found is not None
    assert found.fit
    assert audit_of(engine, judge.model, judge.version) == found
    assert audit_of(engine, "openai/gpt-4o-mini", "ruler-2") is None


def test_scores_of_an_unfit_judge_do_not_pass() -> None:
    synthetic = make_synthetic_group(1)
    judgment = asyncio.run(HindsightJudge().judge(synthetic.group, synthetic.hindsight))
    assert checks.judge_fit(judgment, (True, {})).passed
    assert not checks.judge_fit(judgment, (False, {"faults": ["length_bias 0.3 is above 0.05"]})).passed
    unknown = checks.judge_fit(judgment, None)
    assert unknown.passed
    assert unknown.facts["audited"] is False
