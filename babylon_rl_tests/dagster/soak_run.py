"""One run of the soak, in a process of its own that may be killed at any moment: a forked copy of a server that has
imported everything, so that a run costs a second and not ten.
"""

import os
from dataclasses import replace
from datetime import datetime

import dagster as dg

from babylon_rl.cli.runner import materialize_range
from babylon_rl.cli.services import prepare_dagster
from babylon_rl.common.progress import ignore_progress
from babylon_rl.judging.ruler.endpoint import OpenAIEndpoint
from babylon_rl.judging.ruler.judge import RulerJudge, trading_rubric
from babylon_rl.judging.ruler.prices import Price
from babylon_rl.judging.ruler.retry import RetryPolicy
from babylon_rl.pipeline.workspace import open_workspace
from babylon_rl.settings import Settings
from babylon_rl.store.judge_calls import PostgresCallLog
from babylon_rl.training.art_import import isolated_art_import
from babylon_rl.windows import HourWindow

with isolated_art_import():
    import art  # noqa: F401  # once, here: a training would import it anew in every process


def run(
    environment: dict[str, str],
    job: str,
    span: tuple[str, str],
    tags: dict[str, str],
    assets: list[str] | None,
    now: str,
    judge_url: str,
) -> None:
    """Materialize a job's assets over a span of windows, as if it were `now`; the exit status says whether it worked."""
    os.environ.update(environment)
    settings = Settings.load()
    prepare_dagster(settings)
    with dg.DagsterInstance.get() as instance, open_workspace(settings) as workspace:
        judge = RulerJudge(
            OpenAIEndpoint("gpt-4o-mini", api_key="k", base_url=judge_url, timeout_s=20),
            model="openai/gpt-4o-mini",
            rubric=trading_rubric(),
            max_concurrency=2,
            price=Price(1e-7, 1e-7),
            retry_policy=RetryPolicy(tries=2, first_wait_s=0.02),
            call_log=PostgresCallLog(workspace.store.engine, now=lambda: datetime.fromisoformat(now)),
        )
        materialize_range(
            instance,
            job,
            HourWindow.parse(span[0]),
            HourWindow.parse(span[1]),
            assets=assets,
            tags=tags,
            resources={
                "workspace": replace(workspace, now=lambda: datetime.fromisoformat(now)),
                "judge": judge,
                "progress": ignore_progress,
            },
        )
