"""Which process executes a run, and the end of runs whose process is gone.

Dagster's own launcher cannot tell whether a run's process lives: a run that a reboot or a SIGKILL left behind would stay
STARTED for the 6 hours that `dagster.yaml` allows, and everything that waits for it with it.
"""

import socket
from typing import Final

import dagster as dg
import psutil
from dagster._core.storage.dagster_run import FINISHED_STATUSES

from babylon_rl.common.running import is_running

PROCESS_TAG: Final = "babylon_rl/process"


def make_process_tag() -> str:
    """`host/pid/start` of this process: a pid alone may belong to another process by now."""
    process = psutil.Process()
    return f"{socket.gethostname()}/{process.pid}/{process.create_time():.0f}"


def tag_run(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Note on a run that this process executes it. A re-executed run carries its parent's tag until then."""
    tag = make_process_tag()
    if run.tags.get(PROCESS_TAG) != tag:
        instance.add_run_tags(run.run_id, {PROCESS_TAG: tag})


def end_dead_runs(instance: dg.DagsterInstance, *, untagged: bool = False) -> list[str]:
    """Mark as failed the unfinished runs whose process is gone.

    Args:
        instance: Where the runs are recorded.
        untagged: Also end started runs that name no process; only where no daemon and no webserver runs.

    Returns:
        Ids of the runs ended, newest first. Runs of another machine are left alone, and so are runs that wait in the
        queue; a command's own run names its process before it starts.
    """
    waiting = {dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED}
    unfinished = [s for s in dg.DagsterRunStatus if s not in FINISHED_STATUSES]
    ended = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=unfinished)):
        owner = _find_owner(instance, run)
        if (untagged and run.status not in waiting) if owner is None else not _may_be_alive(owner):
            instance.report_run_failed(run, "the process of this run was killed; what it wrote is kept")
            ended.append(run.run_id)
    return ended


def end_runs_left_behind() -> list[str]:
    """End what an earlier daemon and webserver left unfinished, on the instance of DAGSTER_HOME; neither may run now."""
    with dg.DagsterInstance.get() as instance:
        return end_dead_runs(instance, untagged=True)


def _find_owner(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """The run's own tag: Dagster copies tags to a re-executed run, and those name the parent's process."""
    owner = run.tags.get(PROCESS_TAG)
    if owner is None or run.parent_run_id is None:
        return owner
    parent = instance.get_run_by_id(run.parent_run_id)
    return None if parent is not None and parent.tags.get(PROCESS_TAG) == owner else owner


def _may_be_alive(tag: str) -> bool:
    host, pid, started = tag.rsplit("/", 2)
    return host != socket.gethostname() or is_running(int(pid), float(started))
