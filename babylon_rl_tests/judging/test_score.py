"""Scoring many groups: one bad group costs no other, and nothing is judged twice."""

import asyncio

import pytest
from judge_server import JudgeServer
from judging_factories import a_pair, a_ruler

from babylon_rl.errors import ConfigError, TransientError
from babylon_rl.judging.hindsight_judge import HindsightJudge
from babylon_rl.judging.judge import ConnectionlessJudge, Judge
from babylon_rl.judging.score import Item, ScoreReport, score_groups
from babylon_rl.types import Hindsight, Judgment, TrajectoryGroup

HOURS = [f"2025-01-15T{h:02}:00" for h in range(10)]


def items() -> list[Item]:
    return [a_pair(window=w) for w in HOURS]


class Shelf(dict[str, Judgment]):
    """A cache by key."""

    def store(self, judgment: Judgment) -> None:
        self[judgment.key] = judgment


def run(judge: Judge, shelf: Shelf, what: list[Item] | None = None, **more: object) -> ScoreReport:
    return asyncio.run(score_groups(judge, what or items(), cached=shelf.get, store=shelf.store, **more))  # type: ignore[arg-type]


def test_one_bad_group_fails_visibly_and_the_others_go_on(server: JudgeServer) -> None:
    server.behave("nan", only="04:00")
    done: list[int] = []
    shelf = Shelf()
    report = run(a_ruler(server.url), shelf, progress=lambda steps=1, **_: done.append(steps))
    assert list(report.failed) == ["2025-01-15T04:00/g"]
    assert "no usable reply" in report.failed["2025-01-15T04:00/g"].reason
    assert list(report.judgments) == [f"{w}/g" for w in HOURS if not w.endswith("04:00")]
    assert (report.calls, report.cached, len(shelf)) == (10, 0, 9)
    assert done == [1] * len(HOURS)


def test_a_second_run_asks_only_about_what_failed(server: JudgeServer) -> None:
    server.behave("broken", times=3, only="04:00")
    shelf = Shelf()
    run(a_ruler(server.url), shelf)
    before = server.calls
    second = run(a_ruler(server.url), shelf)
    assert (second.calls, second.cached, len(second.judgments)) == (1, 9, 10)
    assert server.calls == before + 1
    third = run(a_ruler(server.url), shelf)
    assert (third.calls, third.cached) == (0, 10)
    assert server.calls == before + 1
    assert third.judgments == second.judgments


def test_unknown_pnl_of_one_member_costs_only_its_group() -> None:
    what = [*items(), a_pair((1.0, None, 2.0, 3.0, 4.0), window="2025-01-16T00:00")]
    report = run(HindsightJudge(), Shelf(), what)
    assert list(report.failed) == ["2025-01-16T00:00/g"]
    assert len(report.judgments) == 10


@pytest.mark.parametrize(("mode", "error"), [("500", TransientError), ("401", ConfigError)])
def test_paid_scores_are_kept_when_the_judge_goes_away(mode: str, error: type[Exception], server: JudgeServer) -> None:
    server.behave(mode, only="05:00")
    shelf = Shelf()
    with pytest.raises(error):
        run(a_ruler(server.url), shelf, concurrency=2)
    assert 5 <= len(shelf) < 10  # the ones before it, and the one in flight beside it
    good = server.calls - (3 if mode == "500" else 1)
    assert good == len(shelf)  # nothing that was answered was lost


class KilledAfter(ConnectionlessJudge):
    """A judge whose process dies right after its nth answer: only what is stored by then remains."""

    def __init__(self, n: int) -> None:
        self._inner, self._left, self.asked = HindsightJudge(), n, 0
        self.model, self.version = self._inner.model, self._inner.version

    def key(self, group: TrajectoryGroup, hindsight: Hindsight) -> str:
        return self._inner.key(group, hindsight)

    async def judge(self, group: TrajectoryGroup, hindsight: Hindsight) -> Judgment:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        self.asked += 1
        return await self._inner.judge(group, hindsight)


def test_each_judgment_is_stored_before_the_next_is_asked_for() -> None:
    shelf = Shelf()
    with pytest.raises(KeyboardInterrupt):
        run(KilledAfter(4), shelf, concurrency=1)
    assert len(shelf) == 4
    again = KilledAfter(100)
    report = run(again, shelf)
    assert (again.asked, report.cached, len(report.judgments)) == (6, 4, 10)


def test_a_store_that_fails_stops_the_run() -> None:
    def full(_: Judgment) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        asyncio.run(score_groups(HindsightJudge(), items(), cached=lambda _: None, store=full, concurrency=1))


def test_no_groups_are_no_work() -> None:
    report = asyncio.run(score_groups(HindsightJudge(), [], cached=lambda _: None, store=lambda _: None))
    assert report == ScoreReport()
