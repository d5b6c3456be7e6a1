"""Batches requests: those that arrive at about the same time are sampled together.

What belongs here: which checkpoints are loaded, and which requests share a batch. HTTP is `server.py`; tokens are `sampling.py`.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from babylon_rl.policy.catalog import ServablePolicy
from babylon_rl.policy.model import LoadedPolicy, load_policy
from babylon_rl.policy.sampling import Sampled, SampleRequest, TokenListener, sample

logger = logging.getLogger(__name__)

MAX_CACHED_CHECKPOINTS: Final = 6  # beside the base
SINGLE_THREAD_BELOW_PARAMETERS: Final = 20_000_000
"""A model smaller than this gained nothing from a second thread: 118 calls/s with two threads, 137 with one."""


@dataclass(slots=True)
class EngineStats:
    """Counts since the start."""

    requests: int = 0
    batches: int = 0
    largest_batch: int = 0


@dataclass(slots=True)
class _PendingRequest:
    request: SampleRequest
    model: LoadedPolicy
    answer: asyncio.Future[Sampled]
    on_token: Callable[[int, float], None] | None = None


@dataclass(slots=True)
class SamplingEngine:
    """Samples for many callers on one event loop; the models run on one worker thread, and are loaded on another.

    Attributes:
        base: Directory of the base policy.
        gather_s: Seconds that the first request of a batch waits for more to join it.
        max_batch: Most requests in one batch.
        threads: Processor threads of the model; None: one for a small model, torch's choice for a larger one.
    """

    base: Path
    gather_s: float = 0.02
    max_batch: int = 256
    threads: int | None = None
    stats: EngineStats = field(default_factory=EngineStats)
    _queues: "OrderedDict[ServablePolicy, list[_PendingRequest]]" = field(default_factory=OrderedDict)
    _loaded: "OrderedDict[str, LoadedPolicy]" = field(default_factory=OrderedDict)  # by digest: a name can change hands
    _loading: "dict[str, asyncio.Future[LoadedPolicy]]" = field(default_factory=dict)
    _base_policy: LoadedPolicy | None = None
    _loader: ThreadPoolExecutor | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[LoadedPolicy]:
        """Load the base and answer requests until the end of the block; yields the base policy."""
        with (
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy") as worker,
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy-loader") as self._loader,
        ):
            loop = asyncio.get_running_loop()
            self._base_policy = await loop.run_in_executor(worker, self._load_base)
            answering = loop.create_task(self._answer_all(worker))
            try:
                yield self._base_policy
            finally:
                answering.cancel()
                with suppress(asyncio.CancelledError):
                    await answering
                for waiting in [w for queue in self._queues.values() for w in queue]:
                    waiting.answer.cancel()

    async def ask(
        self,
        policy: ServablePolicy,
        request: SampleRequest,
        *,
        on_token: Callable[[int, float], None] | None = None,
    ) -> Sampled:
        """Answer one request by one policy. A caller that is cancelled is not sampled for any longer.

        Args:
            policy: Who answers.
            request: What is asked.
            on_token: Called on the event loop with each token's id and log-prob soon after it is drawn, and with all of
                them before this returns.

        Raises:
            DataError: Its files are not those recorded, it cannot be loaded, or the request does not fit it.
        """
        self.stats.requests += 1
        model = await self._load(policy)
        waiting = _PendingRequest(request, model, asyncio.get_running_loop().create_future(), on_token)
        self._queues.setdefault(policy, []).append(waiting)
        self._wake.set()
        return await waiting.answer

    async def prepare(self, policy: ServablePolicy) -> None:
        """Load a policy before it is asked; raises as `ask`."""
        await self._load(policy)

    async def _answer_all(self, worker: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            if max(map(len, self._queues.values())) < self.max_batch:
                await asyncio.sleep(self.gather_s)
            key, batch = self._next_batch()
            if not batch:
                continue
            try:
                answers = await loop.run_in_executor(worker, self._sample, batch[0].model, batch, loop)
            except Exception as e:  # noqa: BLE001  # a failed batch is reported to its callers; the server keeps running
                logger.warning("batch failed policy=%s requests=%d error=%s", key.name, len(batch), e)
                for w in batch:
                    if not w.answer.done():
                        w.answer.set_exception(e)
                continue
            self.stats.batches += 1
            self.stats.largest_batch = max(self.stats.largest_batch, len(batch))
            for w, answer in zip(batch, answers, strict=True):
                if not w.answer.done():  # its caller may have gone
                    w.answer.set_result(answer)

    def _next_batch(self) -> tuple[ServablePolicy, list[_PendingRequest]]:
        """Up to `max_batch` requests of the checkpoint that has waited longest; checkpoints take turns."""
        key, queue = self._queues.popitem(last=False)
        live = [w for w in queue if not w.answer.done()]
        batch, rest = live[: self.max_batch], live[self.max_batch :]
        if rest:
            self._queues[key] = rest
        if not self._queues:
            self._wake.clear()
        return key, batch

    def _load_base(self) -> LoadedPolicy:
        """Load the base and set how many threads torch uses; called on the worker, because torch keeps that per thread."""
        policy = load_policy(self.base)
        threads = self.threads or (1 if policy.parameters < SINGLE_THREAD_BELOW_PARAMETERS else None)
        if threads:
            torch.set_num_threads(threads)
        return policy

    def _sample(
        self, policy: LoadedPolicy, batch: list[_PendingRequest], loop: asyncio.AbstractEventLoop
    ) -> list[Sampled]:
        # A batch in which nobody streams is sampled without a word in between.
        listener = _listen(batch, loop) if any(w.on_token for w in batch) else None
        return sample(policy, [w.request for w in batch], on_tokens=listener)

    async def _load(self, policy: ServablePolicy) -> LoadedPolicy:
        """The policy's weights, checked and loaded at first use, while others are sampled."""
        if self._base_policy is None or self._loader is None:
            raise RuntimeError("the engine is not running")
        if policy.directory is None:
            return self._base_policy
        key = policy.digest
        if key not in self._loaded:
            if key not in self._loading:
                self._loading[key] = asyncio.get_running_loop().run_in_executor(self._loader, self._read, policy)
                self._loading[key].add_done_callback(lambda done: self._keep(key, done))
            return await asyncio.shield(self._loading[key])
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _read(self, policy: ServablePolicy) -> LoadedPolicy:
        policy.check_files()
        model = load_policy(self.base, policy.directory)
        logger.info("loaded policy=%s digest=%s", policy.name, policy.digest[:12])
        return model

    def _keep(self, key: str, done: "asyncio.Future[LoadedPolicy]") -> None:
        del self._loading[key]
        if done.cancelled() or done.exception() is not None:
            return
        self._loaded[key] = done.result()
        if len(self._loaded) > MAX_CACHED_CHECKPOINTS:
            self._loaded.popitem(last=False)


def _listen(batch: list[_PendingRequest], loop: asyncio.AbstractEventLoop) -> TokenListener:
    """Hand what the worker thread draws to the event loop: one call a step, however many stream."""

    def deliver(drawn: Mapping[int, tuple[int, float]]) -> None:
        for i, (token, logprob) in drawn.items():
            w = batch[i]
            if w.on_token is not None and not w.answer.done():
                w.on_token(token, logprob)

    def on_tokens(drawn: Mapping[int, tuple[int, float]]) -> list[int]:
        loop.call_soon_threadsafe(deliver, drawn)
        return [i for i in drawn if batch[i].answer.done()]  # only cancelled ones are done before their batch

    return on_tokens
