"""Windows whose turns are mostly another model's: set aside when a batch was refused for them, and let through again.

A refused batch would be planned again, the same oldest windows first, and later windows would never train. So every ready
window below the share that training asks for is kept out, with the reason that `check-windows` and `explain` show.
The entry's stage names the lineage and the rules that refused; where they are others now, it counts no more.
"""

import logging
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from typing import Final

from babylon_rl.errors import DataError
from babylon_rl.ingest.reader import stream_window
from babylon_rl.ingest.stitching import stitch
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.store.hours import windows_of
from babylon_rl.store.retries import clear_retry, find_stages, postpone, read_tries
from babylon_rl.training.foreign_turns import OwnTurns, count_own_turns, require_own_share
from babylon_rl.types import GroupMember, RetryKind
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

LOOKED_AT_AGAIN: Final = timedelta(days=1)
"""A window's turns do not change by waiting; new rows, and other rules, let it through at once."""

_PREFIX: Final = "foreign_turns"
_LOOKED_AT: Final = 2  # oldest windows, and as many of the newest


def is_of_training(stage: str | None) -> bool:
    """Whether it is training that refused a window, so that its judgment stands."""
    return stage == "trained_checkpoint" or is_foreign_play(stage)


def is_foreign_play(stage: str | None) -> bool:
    """Whether it is other models' turns that a window was set aside for."""
    return (stage or "").startswith(f"{_PREFIX}/")


def find_set_aside(workspace: Workspace) -> list[HourWindow]:
    """The windows that are set aside now, in time order."""
    return sorted(find_stages(workspace.store.engine, f"{_PREFIX}/"))


def set_aside_foreign_windows(workspace: Workspace, reason: str) -> list[HourWindow]:
    """Keep ready windows out whose share of own turns is below the asked one, or whose turns the rule leaves out.

    Returns:
        The windows set aside, in time order.
    """
    rules, lineage = workspace.settings.training, workspace.ledger.lineage
    foreign: list[HourWindow] = []
    for ready in workspace.ledger.ready():
        window = HourWindow.parse(ready.window_id)
        group = workspace.store.group(window)
        judgment = workspace.store.find_judgment(ready.judgment_key)
        if group is None or judgment is None:
            continue
        # As the batch counted them: a member left out of the ranking is not in it.
        ranked = [m for m in group.members if m.trajectory_id not in judgment.left_out]
        found = count_own_turns(ranked, lineage, rules.base_model)
        if found.share >= rules.min_own_share and (found.own or rules.foreign_turns != "own_only"):
            continue
        foreign.append(window)
        engine = workspace.store.engine
        postpone(
            engine,
            window,
            RetryKind.ERROR,
            f"{found.own} of its {found.turns} turns are own; {reason}",
            stage=_stage(workspace),
            version=read_tries(engine, [window])[window].version,
            now=workspace.now(),
            at_least_s=LOOKED_AT_AGAIN.total_seconds(),
        )
    logger.warning("set aside windows of other models lineage=%s windows=%d", lineage, len(foreign))
    return foreign


def explain_foreign_play(workspace: Workspace, windows: Sequence[HourWindow]) -> str | None:
    """Why training would refuse windows for whose answers they hold; None: at least one of those looked at is own enough.

    Looks at the oldest and the newest of `windows`, whether they were read yet or not.
    """
    rules = workspace.settings.training
    seen = [_count_turns(workspace, w) for w in sorted({*windows[:_LOOKED_AT], *windows[-_LOOKED_AT:]})]
    found = OwnTurns(sum(s.own for s in seen), sum(s.turns for s in seen))
    if not found.turns or any(s.turns and s.share >= rules.min_own_share for s in seen):
        return None
    try:
        require_own_share(
            found, rules.min_own_share, lineage=workspace.ledger.lineage, what=f"training would refuse {windows[0]}"
        )
    except DataError as e:
        return str(e)
    return None


def _count_turns(workspace: Workspace, window: HourWindow) -> OwnTurns:
    """Of the groups of an hour; where it was not grouped yet, of its rows."""
    groups = [workspace.store.group(w) for w in windows_of(workspace.store.engine, [window])[window]]
    members: list[GroupMember] = [m for g in groups if g is not None for m in g.members]
    if not members:
        with workspace.game.connect() as conn, closing(stream_window(conn, window.hour)) as agents:
            for agent in agents:
                members += [
                    GroupMember(trajectory_id=t.trajectory_id, agent_id=t.agent_id, turns=t.turns)
                    for t in stitch(agent.rows)
                ]
    return count_own_turns(members, workspace.ledger.lineage, workspace.settings.training.base_model)


def release_foreign_windows(workspace: Workspace) -> int:
    """Let windows through that were set aside by another lineage, or by rules that no longer hold; returns how many."""
    engine, now = workspace.store.engine, _stage(workspace)
    outdated = {w: stage for w, stage in find_stages(engine, f"{_PREFIX}/").items() if stage != now}
    for window, stage in outdated.items():
        clear_retry(engine, window, stage)
    return len(outdated)


def _stage(workspace: Workspace) -> str:
    rules = workspace.settings.training
    return f"{_PREFIX}/{workspace.ledger.lineage}/{rules.foreign_turns}/{rules.min_own_share:g}"
