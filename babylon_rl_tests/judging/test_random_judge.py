import asyncio
import statistics

from judging_factories import a_pair

from babylon_rl.judging.random_judge import RandomJudge


def test_the_control_ignores_play_and_repeats_itself() -> None:
    """Scores spread over [0, 1] and do not follow P&L."""
    group, hindsight = a_pair()
    first = asyncio.run(RandomJudge().judge(group, hindsight))
    assert first == asyncio.run(RandomJudge().judge(group, hindsight))
    values = [s.value for s in first.scores]
    assert len(set(values)) == len(values)
    assert 0 < statistics.mean(values) < 1
