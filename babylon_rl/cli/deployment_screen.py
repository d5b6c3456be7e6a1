"""What is deployed, for a person: one screen of lines."""

import textwrap
from collections.abc import Iterator
from typing import Final

from babylon_rl.deployment.stages import Stage
from babylon_rl.pipeline.deployment_status import DeploymentStatus
from babylon_rl.report import formatting
from babylon_rl.store.deployments import Move
from babylon_rl.store.looks import Look

_INDENT: Final = 12  # of the text, behind the titles
_SHARES = {
    Stage.NONE: "it answers nobody",
    Stage.CANDIDATE: "it waits for its evaluation",
    Stage.SHADOW: "it is asked beside the incumbent, and answers nobody",
    Stage.CANARY: "it answers a tenth of the agents, and half of the test agents",
    Stage.HALF: "it answers half of the agents",
}


def describe(status: DeploymentStatus) -> Iterator[str]:
    """One screen: incumbent, candidate, stage, interval, last moves."""
    d = status.deployment
    yield f"incumbent   {d.incumbent_name}" + (" (the base)" if d.incumbent == 0 else "")
    if status.problem is not None:
        yield f"            PROBLEM: {status.problem}"
    if d.candidate_name is None:
        yield "candidate   none"
    else:
        yield f"candidate   {d.candidate_name}, stage {d.stage.value}: {_SHARES[d.stage]}"
    if d.paused:
        yield "paused      nothing moves by itself; `babylon-rl resume` ends that"
    look = status.newest_look
    if look is not None:
        title = "interval" if look.rollout == d.rollout else "last trial"
        yield f"{title:<11} {_describe_interval(look)}"
        yield f"            {look.window_id}: {look.decision.replace('_', ' ')}: {look.reason}"
    due = f" ({formatting.count(status.due, 'hour')} to look at)" if status.due else ""
    yield f"next        {status.next}{due}"
    for i, move in enumerate(status.moves):
        yield f"{'moves' if i == 0 else '':<11} {describe_move(move)}"


def wrap(line: str, width: int) -> str:
    """A line of the screen at a terminal's width: what does not fit goes on under the text, not under its title."""
    return textwrap.fill(line, width, subsequent_indent=" " * _INDENT, break_long_words=False, break_on_hyphens=False)


def describe_move(move: Move) -> str:
    """One move in a line."""
    at = "" if move.at is None else f"{move.at:%Y-%m-%d %H:%M} UTC "
    hour = "" if move.window_id is None else f", by the hour {move.window_id}"
    kind = move.kind.value.replace("_", " ")
    return f"{at}#{move.after.number} {kind} @{move.subject} ({move.made_by}{hour}): {move.reason}"


def _describe_interval(look: Look) -> str:
    over = f"after {formatting.count(look.windows, 'window')}"
    if look.mean_usd is None:
        return f"{over} no window in which both arms had an agent"
    digits = formatting.money_digits([v for v in (look.mean_usd, look.lo_usd, look.hi_usd) if v is not None])
    mean = formatting.money(look.mean_usd, digits=digits, signed=True)
    if look.lo_usd is None or look.hi_usd is None:
        return f"{over} {mean} an agent and window; too few for an interval"
    lo, hi = (formatting.money(v, digits=digits, signed=True) for v in (look.lo_usd, look.hi_usd))
    return f"{over} {mean} [{lo}, {hi}] an agent and window, candidate less incumbent"
