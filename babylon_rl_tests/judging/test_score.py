"""Scoring many groups: one bad group costs no other, and nothing is judged twice."""

import asyncio

import pytest
import sqlalchemy as sa
from judge_server import JudgeServer
from judging_factories import Waits, a_pair, a_ruler

from babylon_rl.errors import ConfigError, TransientError
from babylon_rl.judging.hindsight_judge import HindsightJudge
from babylon_rl.judging.judge import BudgetSpentError, ConnectionlessJudge, Judge, NoOutcomesError
from babylon_rl.judging.ruler.retry import RetryPolicy
from babylon_rl.judging.score import Item, ScoreReport, score_groups
from babylon_rl.types import Hindsight, Judgment, RetryKind, TrajectoryGroup

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


def test_a_group_of_unknown_pnls_costs_no_other_its_scores() -> None:
    what = [*items(), a_pair((1.0, None, None, None, None), window="2025-01-16T00:00")]
    report = run(HindsightJudge(), Shelf(), what)
    assert list(report.failed) == ["2025-01-16T00:00/g"]
    assert len(report.judgments) == 10


@pytest.mark.parametrize("concurrency", [1, 2, 8])
def test_a_group_that_gets_no_answer_costs_no_other_its_scores(concurrency: int, server: JudgeServer) -> None:
    server.behave("500", only="05:00")
    shelf = Shelf()
    report = run(a_ruler(server.url), shelf, concurrency=concurrency)
    assert {g: f.kind for g, f in report.failed.items()} == {"2025-01-15T05:00/g": RetryKind.JUDGE_FAILED}
    assert (len(shelf), server.calls) == (9, 9 + 3)


def test_what_was_judged_is_kept_when_the_judge_goes_down(server: JudgeServer) -> None:
    server.behave("honest", times=4)
    server.behave("500")
    shelf = Shelf()
    report = run(a_ruler(server.url), shelf, concurrency=1)
    assert len(shelf) == len(report.judgments) == 4
    assert {f.kind for f in report.failed.values()} == {RetryKind.JUDGE_DOWN}
    assert len(report.failed) == 6
    assert server.calls == 4 + 3 + 1  # one group's tries and one probe
    assert "is down: 2 groups in a row got no answer" in report.failed["2025-01-15T09:00/g"].reason
    server._rules.clear()
    assert len(run(a_ruler(server.url), shelf).judgments) == 10
    assert server.calls == 8 + 6


@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_a_judge_that_is_down_is_asked_a_few_times_only(concurrency: int, server: JudgeServer) -> None:
    """At most what was in flight at first, and one request a round after that."""
    server.behave("503")
    server.delay_s = 0.02
    waits = Waits()
    judge = a_ruler(server.url, waits=waits, max_concurrency=8)
    what = [a_pair(window=f"2025-01-{d:02}T{h:02}:00") for d in range(1, 5) for h in range(24)]
    report = run(judge, Shelf(), what, concurrency=concurrency)
    assert len(report.failed) == 96
    assert {f.kind for f in report.failed.values()} == {RetryKind.JUDGE_DOWN}
    in_flight = min(8, concurrency)
    assert server.calls == (3 + 1 if concurrency == 1 else in_flight + 2)
    assert len(waits) == 2


def test_a_short_outage_costs_one_wait_and_no_group(server: JudgeServer) -> None:
    server.behave("503", times=8)
    server.delay_s = 0.05
    waits = Waits()
    report = run(a_ruler(server.url, waits=waits, max_concurrency=8), Shelf(), concurrency=8)
    assert (len(report.judgments), server.calls) == (10, 8 + 10)
    assert len(waits) == 1


def test_an_outage_in_the_middle_is_not_hammered(server: JudgeServer) -> None:
    server.behave("honest", times=20)
    server.behave("503")
    server.delay_s = 0.02
    judge = a_ruler(server.url, max_concurrency=8)
    what = [a_pair(window=f"2025-01-{d:02}T{h:02}:00") for d in range(1, 5) for h in range(24)]
    report = run(judge, Shelf(), what, concurrency=16)
    assert (len(report.judgments), len(report.failed)) == (20, 76)
    assert {f.kind for f in report.failed.values()} == {RetryKind.JUDGE_DOWN}
    assert server.calls <= 20 + 2 * 8 + 3  # those in flight, once more each, and a round at a time


def test_the_longest_wait_asked_for_is_in_every_failure(server: JudgeServer) -> None:
    server.behave("429", retry_after="7200")
    report = run(a_ruler(server.url), Shelf(), concurrency=1)
    assert {(f.kind, f.retry_after_s) for f in report.failed.values()} == {(RetryKind.JUDGE_DOWN, 7200.0)}
    assert server.calls == 2


def test_an_hours_wait_for_one_group_is_not_everybodys(server: JudgeServer) -> None:
    server.behave("429", only="05:00", retry_after="3600")
    waits = Waits()
    report = run(a_ruler(server.url, waits=waits), Shelf(), concurrency=1)
    assert {g: (f.kind, f.retry_after_s) for g, f in report.failed.items()} == {
        "2025-01-15T05:00/g": (RetryKind.JUDGE_FAILED, 3600.0)
    }
    assert (server.calls, waits) == (10, [])


def test_nobody_is_asked_while_one_waits_as_it_was_told(server: JudgeServer) -> None:
    """The others of the first four finish; then one request follows the wait, and the rest follow its answer."""
    during: list[int] = []

    async def wait(_: float) -> None:
        await asyncio.sleep(0.3)  # the others in flight have been answered by then, and nothing else has been sent
        during.append(server.calls)

    server.behave("429", times=1, retry_after="9")
    judge = a_ruler(server.url, max_concurrency=4, retry_policy=RetryPolicy(tries=3, sleep=wait))
    report = run(judge, Shelf(), concurrency=10)
    assert (len(report.judgments), during, server.calls) == (10, [4], 11)


def test_a_lone_group_without_an_answer_says_the_judge_is_down(server: JudgeServer) -> None:
    server.behave("500")
    report = run(a_ruler(server.url), Shelf(), items()[:1])
    assert [f.kind for f in report.failed.values()] == [RetryKind.JUDGE_DOWN]


def test_stored_judgments_are_found_while_the_judge_is_down(server: JudgeServer) -> None:
    shelf = Shelf()
    run(a_ruler(server.url), shelf, items()[5:])
    server.behave("401")
    report = run(a_ruler(server.url), shelf, concurrency=1)
    assert (report.cached, len(report.judgments), len(report.failed)) == (5, 5, 5)
    assert isinstance(report.refusal, ConfigError)
    assert server.calls == 5 + 1


class Raises(ConnectionlessJudge):
    """A judge that raises what it is told for one window, and judges the others by hindsight."""

    def __init__(self, error: BaseException) -> None:
        self._inner, self._error = HindsightJudge(), error
        self.model, self.version = self._inner.model, self._inner.version

    def key(self, group: TrajectoryGroup, hindsight: Hindsight) -> str:
        return self._inner.key(group, hindsight)

    async def judge(self, group: TrajectoryGroup, hindsight: Hindsight) -> Judgment:
        await asyncio.sleep(0.01)  # all others are in flight when it raises
        if group.window_id == HOURS[0]:
            raise self._error
        return await self._inner.judge(group, hindsight)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (AttributeError("secret"), RetryKind.JUDGE_FAILED, "raised AttributeError"),
        (TypeError("secret"), RetryKind.JUDGE_FAILED, "raised TypeError"),
        (sa.exc.DataError("x", {}, Exception("integer out of range")), RetryKind.JUDGE_FAILED, "raised DataError"),
        (BudgetSpentError("spent"), RetryKind.OVER_BUDGET, "spent"),
        (NoOutcomesError("none"), RetryKind.WAITING_FOR_OUTCOMES, "none"),
        (TransientError("gone"), RetryKind.JUDGE_FAILED, "gone"),
    ],
)
def test_whatever_one_group_raises_its_siblings_are_judged(error: Exception, kind: RetryKind, says: str) -> None:
    report = run(Raises(error), Shelf(), concurrency=2)
    assert len(report.judgments) == 9
    assert [f.kind for f in report.failed.values()] == [kind]
    reason = report.failed[f"{HOURS[0]}/g"].reason
    assert says in reason
    assert "secret" not in reason


def test_a_lost_database_ends_the_run_after_those_in_flight() -> None:
    shelf = Shelf()
    with pytest.raises(sa.exc.OperationalError):
        run(Raises(sa.exc.OperationalError("SELECT 1", {}, Exception("gone"))), shelf, concurrency=3)
    assert len(shelf) == 2


def test_a_cancelled_judging_is_not_a_failed_group() -> None:
    with pytest.raises(asyncio.CancelledError):
        run(Raises(asyncio.CancelledError()), Shelf())


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
