"""What a checkpoint's evaluation must say before it may answer a live agent by itself.

It passes where the simulator's held-out windows show more money than the base's, with the whole interval above 0. What the
log's held-out windows say is not money: then the platform waits for an operator's word (`babylon-rl deploy`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from babylon_rl.pipeline.evaluate import suite_of
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.evaluations import read_lifts
from babylon_rl.store.log_evaluations import LogEvaluation, read_log_rows
from babylon_rl.types import policy_name


class Gate(StrEnum):
    """What an evaluation says of a rollout."""

    PASSED = "passed"
    NOT_MONEY = "not_money"
    """Better on the log, which is no money: an operator's word is needed."""
    NOT_BETTER = "not_better"
    UNKNOWN = "unknown"
    """Nothing was said of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """What the evaluation of one checkpoint says.

    Attributes:
        sentence: Without its full stop.
    """

    step: int
    gate: Gate
    sentence: str


_ON_THE_LOG: Final = ("better_over_worse_nats", "ranks_best_first")


def judge_evaluations(workspace: Workspace, steps: Sequence[int]) -> Mapping[int, GateResult]:
    """What the evaluations of some checkpoints say, by step."""
    engine, lineage = workspace.store.engine, workspace.settings.lineage
    lifts = read_lifts(engine, lineage, suite_of(workspace).name)
    logs = {row.step: row.result for row in read_log_rows(engine, lineage)} if set(steps) - set(lifts) else {}
    results = {}
    for step in steps:
        name, log = policy_name(lineage, step), logs.get(step)
        if (lift := lifts.get(step)) is not None:
            better = lift.lo > 0
            gate = Gate.PASSED if better else Gate.NOT_BETTER
            said = (
                f"{name} earns {lift.mean:+,.2f} USD a held-out window beside its base, 95 % interval {lift.lo:+,.2f} to "
                f"{lift.hi:+,.2f}" + ("" if better else ", which is not above 0")
            )
        elif isinstance(log, LogEvaluation):
            above = [f for f in _ON_THE_LOG if f in log.changes and log.changes[f].lo > 0]
            gate = Gate.NOT_MONEY if above else Gate.NOT_BETTER
            said = (
                f"{name} is better than its base on the log ({', '.join(above)}), which is not money: an operator's word is needed"
                if above
                else f"{name} is not shown to be better than its base on the log"
            )
        else:
            gate, said = Gate.UNKNOWN, f"{name} has no evaluation" + ("" if log is None else f": {log.reason}")
        results[step] = GateResult(step=step, gate=gate, sentence=said)
    return results
