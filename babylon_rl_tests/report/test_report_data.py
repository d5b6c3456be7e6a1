import json
import math
from dataclasses import replace

import msgspec
import pytest

from babylon_rl.errors import DataError
from babylon_rl.report.data import DemoReport, Lift, to_json


def test_the_keys_others_read_are_there_by_name(report: DemoReport) -> None:
    seen = json.loads(to_json(report))
    assert {"windows", "iterations", "base", "final", "oracle_mean_pnl", "lift", "seconds"} <= seen.keys()
    for side in ("base", "final"):
        assert {"mean_pnl", "win_rate", "invalid_rate"} <= seen[side].keys()
    assert seen["lift"].keys() == {"mean", "ci95", "share_of_oracle_gap"}
    assert seen["lift"]["ci95"] == list(report.lift.ci95)
    assert seen["seconds"]["train"] == 206.3
    assert seen["currency"] == "USD"


def test_what_is_written_is_read_back_equal(report: DemoReport) -> None:
    assert msgspec.json.decode(to_json(report), type=DemoReport) == report
    unknown = replace(report, lift=replace(report.lift, share_of_oracle_gap=None))
    assert json.loads(to_json(unknown))["lift"]["share_of_oracle_gap"] is None


def test_the_order_of_phases_does_not_change_the_bytes(report: DemoReport) -> None:
    turned = replace(report, seconds=dict(reversed(report.seconds.items())))
    assert to_json(turned) == to_json(report)
    assert to_json(report).endswith(b"}\n")
    assert len(to_json(report).splitlines()) > 100  # for people: one value a line


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_json_cannot_hold_is_refused_by_name(report: DemoReport, bad: float) -> None:
    with pytest.raises(DataError, match=r"report\.lift\.ci95\[1\]"):
        to_json(replace(report, lift=Lift(mean=1.0, ci95=(0.0, bad), share_of_oracle_gap=None)))
    with pytest.raises(DataError, match=r"report\.seconds\.play"):
        to_json(replace(report, seconds={"play": bad}))


def test_an_interval_that_touches_zero_includes_it() -> None:
    assert Lift(mean=1.0, ci95=(0.0, 2.0), share_of_oracle_gap=None).includes_zero
    assert not Lift(mean=1.0, ci95=(0.1, 2.0), share_of_oracle_gap=None).includes_zero
    assert not Lift(mean=-1.0, ci95=(-2.0, -0.1), share_of_oracle_gap=None).includes_zero
