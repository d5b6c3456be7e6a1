"""`babylon-rl adopt-checkpoint`: a remote step that the ledger does not know becomes its next checkpoint.

What belongs here: the cases where a person must say so. A step whose job is named in the plan is taken over without
being asked (`training/serverless_backend.py`).
"""

import asyncio
from dataclasses import dataclass

from babylon_rl.errors import ConfigError, DataError
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.training.serverless import RemoteCheckpoint, ServerlessEngine
from babylon_rl.training.trainer import NoJob
from babylon_rl.types import policy_name
from babylon_rl.windows import HourWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """What was recorded, or would be.

    Attributes:
        policy: Name of the checkpoint.
        windows: What the ledger then says it trained on; they train no more.
        sentence: The same in words, for a person.
    """

    policy: str
    windows: tuple[str, ...]
    sentence: str


def adopt_next_checkpoint(workspace: Workspace, *, is_confirmed: bool) -> Adoption:
    """Record the remote checkpoint after the ledger's last, for the planned batch or the one that would be planned now.

    Args:
        workspace: Its ledger gets the checkpoint; its settings name W&B.
        is_confirmed: Write. Otherwise only find out what would be written.

    Raises:
        ConfigError: The trainer is not `serverless`.
        DataError: There is no such step, or no batch that it could have trained.
        TransientError: The lineage is being trained, or W&B is out of reach.
    """
    ledger, training = workspace.ledger, workspace.settings.training
    if training.trainer != "serverless":
        raise ConfigError(
            f"BABYLON_TRAINER is {training.trainer!r}, whose checkpoints are made again from their plan; only those of "
            "`serverless` can be adopted"
        )
    with ledger.training():
        last = ledger.latest()
        step = 1 if last is None else last.step + 1
        planned = ledger.unfinished_batch()
        found = asyncio.run(_read_remote(workspace))
        if step not in found:
            newest = max(found, default=0)
            raise DataError(
                f"W&B has no checkpoint {step} of lineage {ledger.lineage!r}: its newest is {newest}, the ledger's last is "
                f"{step - 1}; "
                + (
                    "nothing is to be adopted"
                    if newest == step - 1
                    else "start a new lineage with BABYLON_LINEAGE, or correct the address and the key"
                ),
                facts={"lineage": ledger.lineage, "found": newest, "expected": step},
            )
        target = None
        if planned is None:
            target = ledger.next_partition(training.min_windows)
            if target is None:
                raise DataError(
                    f"W&B has checkpoint {step} of lineage {ledger.lineage!r}, but no batch is planned and fewer than "
                    f"{training.min_windows} windows are ready, so it cannot be said what it trained on; judge its windows "
                    "first, or start a new lineage with BABYLON_LINEAGE",
                    facts={"lineage": ledger.lineage, "step": step},
                )
            if is_confirmed:
                planned = ledger.plan(target, training.min_windows, learning_rate=training.learning_rate)
        windows = planned.windows if planned else _windows_to_plan(workspace, target)
        if is_confirmed and planned is not None:
            ledger.record(
                planned,
                trainer="serverless",
                base_model=training.base_model or "shipped",
                path=found[step].path,
                manifest={},
                metrics=found[step].metrics,
            )
    policy = policy_name(ledger.lineage, step)
    verb = "recorded" if is_confirmed else "would record"
    return Adoption(
        policy=policy,
        windows=windows,
        sentence=f"{verb} {found[step].path} as {policy}, trained on {len(windows)} windows: {', '.join(windows)}; "
        "they do not train again",
    )


def _windows_to_plan(workspace: Workspace, target: HourWindow | None) -> tuple[str, ...]:
    ready = workspace.ledger.ready(up_to=target)
    return tuple(w.window_id for w in ready[: workspace.settings.training.min_windows])


async def _read_remote(workspace: Workspace) -> dict[int, RemoteCheckpoint]:
    settings = workspace.settings
    engine = ServerlessEngine.from_settings(settings.training, settings.checkpoints_dir, NoJob())
    try:
        return await engine.list_checkpoints(settings.lineage)
    finally:
        await engine.backend.close()
