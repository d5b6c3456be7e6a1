"""What is stored under a key must be found again: keys, prompts and random scores do not change.

The values were computed with the code of commit f6f448a. Should one change, every judgment would be paid for again.
"""

import asyncio
from hashlib import sha256

import pytest
from judging_factories import a_pair, a_ruler

from babylon_rl.judging.audit.synthetic_groups import make_synthetic_group
from babylon_rl.judging.factory import open_judge
from babylon_rl.judging.hindsight_judge import HindsightJudge
from babylon_rl.judging.judge import Judge
from babylon_rl.judging.random_judge import RandomJudge
from babylon_rl.judging.ruler.prompt import write_prompt
from babylon_rl.settings import Settings

HINDSIGHT = "5ac309c4e0217f219014c9a63b0548b6cfa6b017b438e99faaea9ea0b587ae87"
DICE = "a257c332a4f4f972f3cb844eef3e62a51a2d6a08de33cbf7046bb22ec2d347f4"
RULER = "d18bd8632e7660d3e0218afae485760fbc006c6b0dff1119f6a0d8ea776e0523"
RULER_X3 = "60829235e5a6ee5965a63b25de4f59aef691f0fce9732bd0a7fef5f01467dba2"
PLAIN = "fb83e2acc5274e76faa875a9655c15e6895f353df4fcd349a9a55f49731bc45e"
COMPACT = "d65d9b2c1ae52280d9bcac2f7f9feb04b29cdb239bc198f7314bdd11fa41e139"
SYNTHETIC = "870ee36aa4d1821882e40c8de0a00da87a4bd51b0f999fdbf0ae17fcbd92ca7d"


@pytest.mark.parametrize(
    ("judge", "version", "key"),
    [
        (HindsightJudge(), "hindsight-1", HINDSIGHT),
        (RandomJudge(), "dice-1", DICE),
        (a_ruler("http://x"), "ruler-2-f5489e5a", RULER),
        (a_ruler("http://x", passes=3), "ruler-2-f5489e5a-x3", RULER_X3),
    ],
    ids=["hindsight", "random", "ruler", "three passes"],
)
def test_a_judges_key_and_version_are_those_stored(judge: Judge, version: str, key: str) -> None:
    assert (judge.version, judge.key(*a_pair())) == (version, key)


@pytest.mark.parametrize(("compact", "known"), [(False, PLAIN), (True, COMPACT)])
def test_a_prompt_is_the_same_to_the_byte(compact: bool, known: str) -> None:
    prompt = write_prompt(*a_pair(), rubric="r", key="k|p0/h1of4", compact=compact)
    assert sha256(f"{prompt.system}\0{prompt.user}".encode()).hexdigest() == known


def test_the_setting_dice_opens_the_random_judge_and_its_draws() -> None:
    judge = open_judge(Settings.load(JUDGE_MODEL="dice").judge)
    judgment = asyncio.run(judge.judge(*a_pair()))
    assert [s.value for s in judgment.scores] == [
        0.6480685784547141,
        0.6828373515470199,
        0.0447675646829826,
        0.5619677397620206,
        0.23759153351565498,
    ]
    assert (judgment.judge_model, judgment.key) == ("dice", DICE)


def test_a_synthetic_group_keeps_its_id_and_key() -> None:
    synthetic = make_synthetic_group(7)
    assert synthetic.group.group_id == "2025-01-01T07:00#exam7"
    assert HindsightJudge().key(synthetic.group, synthetic.hindsight) == SYNTHETIC
