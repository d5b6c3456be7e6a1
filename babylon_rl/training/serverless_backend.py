"""ART's `ServerlessBackend` with one change: a job is paid once, whatever breaks.

What belongs here: sending a job, following it, and finding out what became of one whose answer was lost. The journal
(`trainer.JobJournal`) is written before the request and right after its answer; only a journal that is empty lets a
job be sent.

The API (client of ART 0.5.18) offers a job's events by its id, and a model's checkpoints; it cannot list jobs, and a
request carries no key of ours. So a job whose id was lost is found by the checkpoint it leaves.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from json import JSONDecodeError
from typing import Any, Final, TypeVar

import httpx
import openai

from babylon_rl.common.backoff import backoff
from babylon_rl.errors import BabylonRLError, DataError, TransientError
from babylon_rl.training.art_import import isolated_art_import
from babylon_rl.training.trainer import JobJournal, TrainingBatch

with isolated_art_import():
    from art.metrics_taxonomy import (
        TRAIN_GRADIENT_STEPS_KEY,
        build_training_summary_metrics,
        summarize_trajectory_groups,
    )
    from art.serverless import ServerlessBackend
    from art.serverless.backend import _canonicalize_upstream_metrics
    from art.serverless.client import ExperimentalTrainingConfig

logger = logging.getLogger(__name__)
T = TypeVar("T")

POLL: Final = timedelta(seconds=1)
LONGEST_WAIT: Final = timedelta(seconds=30)
_MAY_PASS: Final = (openai.InternalServerError, openai.RateLimitError, openai.APIConnectionError, JSONDecodeError)
_NOTHING_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_DOUBTFUL: Final = frozenset({408, 409, 425})
"""Refusals after which the request may still have been taken: it timed out, or met another of its kind."""


class JournaledBackend(ServerlessBackend):  # type: ignore[misc]  # ART is not typed for us
    """A complete `art.backend.Backend` whose `train` resumes the job that the journal names, and sends one only if it names none.

    Args:
        api_key: W&B's.
        base_url: Address of the API; None: ART's default.
        jobs: The journal of the batch that `set_batch` names.
        patience: How long the service may be out of reach without a break, and how long after the request a job whose
            answer was lost may take to leave its checkpoint.
    """

    def __init__(self, *, api_key: str, base_url: str | None, jobs: JobJournal, patience: timedelta) -> None:
        super().__init__(api_key=api_key, base_url=base_url)
        self._jobs, self._patience = jobs, patience
        self._batch: TrainingBatch | None = None

    def set_batch(self, batch: TrainingBatch) -> None:
        """Set what the next `train` makes."""
        self._batch = batch

    async def list_checkpoints(self, model: Any, *, limit: int | None = None) -> dict[int, dict[str, float]]:
        """Step → metrics of the checkpoints that the service has, newest first; at most `limit` of them."""
        found: dict[int, dict[str, float]] = {}
        page = {} if limit is None else {"limit": limit}
        async for c in self._client.models.checkpoints.list(model_id=model.id, order="desc", **page):
            found[c.step] = dict(c.metrics or {})
            if limit is not None and len(found) >= limit:
                break
        return found

    async def _get_step(self, model: Any) -> int:
        """The newest step. Before a job is sent an outage is the caller's to retry; afterwards it is waited for."""
        if self._batch is None or not self._jobs.is_begun():
            return max(await self.list_checkpoints(model, limit=1), default=0)
        return max(await self._ask(self._batch, lambda: self.list_checkpoints(model, limit=1)), default=0)

    async def _train_model(
        self, model: Any, trajectory_groups: Any, config: Any, dev_config: Any, verbose: bool = False
    ) -> AsyncIterator[dict[str, float]]:
        """As ART's, but a job is sent at most once, and what breaks while it runs is waited for."""
        batch = self._batch
        if batch is None:
            raise DataError(
                "no batch was set for this backend, so its job could not be found again; call set_batch first"
            )
        summary = summarize_trajectory_groups(trajectory_groups)
        base_metrics = build_training_summary_metrics(summary, include_trainable_groups=True)
        job_id = self._jobs.job_id()
        if job_id is None and not self._jobs.is_begun():
            fields = ExperimentalTrainingConfig.__annotations__
            experimental = {name: dev_config.get(name) for name in fields} | {"learning_rate": config.learning_rate}
            job_id = await self._send(batch, model, trajectory_groups, experimental)
        if job_id is None:
            yield {**base_metrics, **await self._find_checkpoint(batch, model)}
            return
        async for metrics in self._follow(batch, job_id):
            yield {**base_metrics, **metrics}

    async def _send(self, batch: TrainingBatch, model: Any, groups: Any, experimental: dict[str, Any]) -> str | None:
        """Send the job; its id, or None where the answer was lost and a job may exist.

        Raises:
            openai.OpenAIError: It was refused, or never left this machine: no job exists, and the journal says so.
        """
        self._jobs.begin()
        try:
            job = await self._client.training_jobs.create(
                model_id=model.id, trajectory_groups=groups, experimental_config=experimental
            )
        except openai.APIConnectionError as e:
            if isinstance(e.__cause__, _NOTHING_SENT):
                self._jobs.take_back()
                raise
            lost: object = type(e.__cause__ or e).__name__
        except openai.APIStatusError as e:
            if e.status_code < 500 and e.status_code not in _DOUBTFUL:
                self._jobs.take_back()
                raise
            lost = f"HTTP {e.status_code}"
        except JSONDecodeError:
            lost = "an answer that is not JSON"
        else:
            job_id = getattr(job, "id", None)
            if isinstance(job_id, str) and job_id:
                self._jobs.store_id(job_id)
                return job_id
            lost = "an answer without an id"
        logger.warning(
            "lost the answer to a training, a job may exist policy=%s@%d why=%s", batch.lineage, batch.step, lost
        )
        return None

    async def _follow(self, batch: TrainingBatch, job_id: str) -> AsyncIterator[dict[str, float]]:
        """Metrics of each gradient step of a job, until it ends.

        Raises:
            BabylonRLError: The job failed.
            TransientError: The service was out of reach for too long; the next attempt follows the same job.
        """
        after: str | None = None
        sequences = 0.0
        while True:
            await asyncio.sleep(POLL.total_seconds())
            for event in await self._ask(batch, partial(self._read_events, job_id, after)):
                after = event.id
                if event.type == "training_started":
                    sequences = float(event.data["num_sequences"])
                elif event.type == "gradient_step":
                    metrics = _canonicalize_upstream_metrics({k: float(v) for k, v in event.data.items()})
                    yield {**metrics, TRAIN_GRADIENT_STEPS_KEY: sequences}
                elif event.type == "training_failed":
                    why = str(event.data.get("error_message", "no reason given"))
                    raise BabylonRLError(
                        f"training job {job_id!r} of {batch.lineage}@{batch.step} failed at W&B: {why[:500]}; nothing was "
                        "recorded, and no other job is sent by itself because each costs money; look at the job on W&B, "
                        "then run `babylon-rl discard-plan --even-if-sent` to let the next training send another",
                        facts={"lineage": batch.lineage, "step": batch.step, "job_id": job_id},
                    )
                elif event.type == "training_ended":
                    return

    async def _read_events(self, job_id: str, after: str | None) -> list[Any]:
        listed = self._client.training_jobs.events.list(
            training_job_id=job_id, **({} if after is None else {"after": after})
        )
        return [event async for event in listed]

    async def _find_checkpoint(self, batch: TrainingBatch, model: Any) -> dict[str, float]:
        """Metrics of the checkpoint that a job whose id was lost has made; waited for as long as it may take.

        Raises:
            BabylonRLError: There is none; a person must look.
        """
        begun_s_ago = self._jobs.seconds_since_begun() or 0.0
        until = time.monotonic() + self._patience.total_seconds() - begun_s_ago
        looks = 0
        while True:
            steps = await self._ask(batch, lambda: self.list_checkpoints(model, limit=1))
            if batch.step in steps:
                logger.warning("found the checkpoint of a job without an id policy=%s@%d", batch.lineage, batch.step)
                return steps[batch.step]
            if max(steps, default=0) > batch.step:
                raise DataError(f"{batch.lineage} stands at {max(steps)} at W&B, after step {batch.step}")
            looks += 1
            if time.monotonic() >= until:
                raise BabylonRLError(
                    f"a training job for {batch.lineage}@{batch.step} was sent {begun_s_ago / 60:.0f} minutes ago, its answer was "
                    f"lost, and W&B has no checkpoint {batch.step}: the job may still run, or never have existed; no other "
                    "is sent by itself because each costs money; look at the model's jobs on W&B: if one runs, wait and train "
                    "again (its checkpoint is then taken over); if there is none, run "
                    "`babylon-rl discard-plan --even-if-sent`, then train again",
                    facts={"lineage": batch.lineage, "step": batch.step},
                )
            await asyncio.sleep(backoff(looks, first=POLL, longest=LONGEST_WAIT).total_seconds())

    async def _ask(self, batch: TrainingBatch, question: Callable[[], Awaitable[T]]) -> T:
        """Ask until there is an answer; only questions that change nothing."""
        failures, since = 0, time.monotonic()
        while True:
            try:
                return await question()
            except _MAY_PASS as e:
                if time.monotonic() - since > self._patience.total_seconds():
                    raise TransientError(
                        f"training {batch.lineage}@{batch.step} runs at W&B, which has not answered for "
                        f"{self._patience.total_seconds():.0f} s ({type(e).__name__}); the next attempt follows the same job"
                    ) from e
                failures += 1
                logger.warning("asking again policy=%s@%d error=%s", batch.lineage, batch.step, type(e).__name__)
                await asyncio.sleep(backoff(failures, first=POLL, longest=LONGEST_WAIT).total_seconds())
