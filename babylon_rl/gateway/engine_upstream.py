"""The upstream inside this process: our CPU engine, asked for whole answers or token by token."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from babylon_rl.errors import BabylonRLError
from babylon_rl.gateway.errors import Failure, UpstreamError
from babylon_rl.gateway.heard import Heard
from babylon_rl.gateway.reading import Asked
from babylon_rl.policy.catalog import ServablePolicy
from babylon_rl.policy.detokenizing import Detokenizer
from babylon_rl.policy.process import base_of
from babylon_rl.policy.prompting import PromptRenderer
from babylon_rl.policy.wire import DEFAULT_ANSWER_TOKENS, ChatRequest, RequestError, build_completion, build_piece
from babylon_rl.types import Json

if TYPE_CHECKING:
    from babylon_rl.policy.engine import SamplingEngine
    from babylon_rl.policy.model import LoadedPolicy
    from babylon_rl.policy.sampling import Sampled, SampleRequest
    from babylon_rl.settings import Settings


class Engines:
    """The one engine of this process, loaded when it is first needed and closed with `stack`."""

    def __init__(self, settings: "Settings", stack: AsyncExitStack) -> None:
        self._settings, self._stack = settings, stack
        self._opening = asyncio.Lock()
        self._open: _OpenEngine | None = None
        self.waiting = 0

    async def open(self) -> "_OpenEngine":
        """The engine, running.

        Raises:
            BabylonRLError: Its base cannot be loaded.
        """
        async with self._opening:
            if self._open is None:
                from babylon_rl.policy.engine import SamplingEngine

                engine = SamplingEngine(base=base_of(self._settings.training))
                base = await self._stack.enter_async_context(engine.running())
                most_letters = base.context * max(map(len, base.tokenizer.get_vocab()))
                self._open = _OpenEngine(engine, base, PromptRenderer(base.tokenizer), most_letters)
        return self._open


@dataclass(frozen=True, slots=True)
class _OpenEngine:
    """Only the event loop's thread uses the tokenizer: fast tokenizers are not thread-safe."""

    engine: "SamplingEngine"
    base: "LoadedPolicy"
    renderer: PromptRenderer
    most_letters: int
    """No longer prompt fits the context, however well it is tokenized."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request that the engine can take."""

    opened: _OpenEngine
    request: "SampleRequest"
    logprobs: bool


class EngineUpstream:
    """One policy of our engine; an `Upstream`."""

    def __init__(self, engines: Engines, policy: ServablePolicy, settings: "Settings") -> None:
        self._engines, self._policy = engines, policy
        self._temperature = settings.serving.serve_temperature
        self._most_tokens = settings.gateway.max_answer_tokens
        self._timeout_s = settings.gateway.timeout_s

    async def answer(self, asked: Asked, heard: Heard) -> Json:
        prepared = await self._prepare(asked, heard)
        answer = await self._sample(prepared, None)
        body = build_completion(
            model=self._policy.name,
            created=int(time.time()),
            text=prepared.opened.base.tokenizer.decode(answer.token_ids, skip_special_tokens=True),
            token_ids=answer.token_ids,
            logprobs=answer.logprobs if prepared.logprobs else None,
            finish_reason=answer.finish_reason,
            prompt_tokens=len(prepared.request.prompt_ids),
        )
        heard.take_completion(body)
        heard.logprobs = list(answer.logprobs)
        return body

    async def stream(self, asked: Asked, heard: Heard) -> AsyncIterator[Json]:
        prepared = await self._prepare(asked, heard)
        drawn: asyncio.Queue[tuple[int, float] | None] = asyncio.Queue()
        sampling = asyncio.create_task(self._sample(prepared, lambda token, p: drawn.put_nowait((token, p))))
        sampling.add_done_callback(lambda _: drawn.put_nowait(None))
        created = int(time.time())

        def piece(delta: Json, logprobs: list[tuple[int, float]] | None = None, reason: str | None = None) -> Json:
            kept = logprobs if prepared.logprobs else None
            chunk = build_piece(
                model=self._policy.name, created=created, delta=delta, logprobs=kept, finish_reason=reason
            )
            heard.take_chunk(chunk)
            return chunk

        text = Detokenizer(prepared.opened.base.tokenizer)
        untold: list[tuple[int, float]] = []
        heard.logprobs, heard.completion_tokens = [], 0
        try:
            while (got := await drawn.get()) is not None:
                if not heard.completion_tokens:
                    yield piece({"role": "assistant", "content": ""})
                heard.completion_tokens += 1
                heard.logprobs.append(got[1])
                untold.append(got)
                if new := text.add(got[0]):
                    yield piece({"content": new}, untold)
                    untold = []
            answer = await sampling
            rest = text.end()
            yield piece({"content": rest} if rest else {}, untold or None, answer.finish_reason)
            if asked.include_usage:
                yield build_piece(
                    model=self._policy.name,
                    created=created,
                    usage=(len(prepared.request.prompt_ids), len(answer.token_ids)),
                )
        finally:
            sampling.cancel()

    async def prepare(self) -> None:
        await self._load()

    async def _load(self) -> _OpenEngine:
        try:
            opened = await self._engines.open()
            async with asyncio.timeout(self._timeout_s):
                await opened.engine.prepare(self._policy)
        except TimeoutError as e:
            raise UpstreamError(Failure.TIMED_OUT, "its weights are not loaded yet") from e
        except BabylonRLError as e:
            raise UpstreamError(Failure.UNAVAILABLE, str(e)) from e
        except Exception as e:  # a file that no library understands
            raise UpstreamError(Failure.FAILED, f"{type(e).__name__}: {e}") from e
        return opened

    async def _prepare(self, asked: Asked, heard: Heard) -> _Prepared:
        from babylon_rl.policy.sampling import SampleRequest

        request = ChatRequest.of(asked.fields)
        opened = await self._load()
        # To tokenize these would hold up everybody else for up to seconds; each message is one token at least.
        if (count := len(request.messages)) > opened.base.context:
            raise _refuse_length(f"{count} messages", opened)
        if (letters := sum(len(m.text) for m in request.messages)) > opened.most_letters:
            raise _refuse_length(f"{letters} letters", opened)
        prompt = opened.renderer.ids_of([m.plain() for m in request.messages])
        room = opened.base.context - len(prompt)
        if room < 1:
            raise _refuse_length(f"{len(prompt)} tokens", opened)
        heard.prompt_tokens = len(prompt)
        sample = SampleRequest(
            prompt_ids=prompt,
            temperature=self._temperature if request.temperature is None else request.temperature,
            seed=secrets.randbits(63) if request.seed is None else request.seed,
            max_tokens=min(request.limit or DEFAULT_ANSWER_TOKENS, room, self._most_tokens),
        )
        return _Prepared(opened, sample, bool(request.logprobs))

    async def _sample(self, prepared: _Prepared, on_token: Any) -> "Sampled":
        self._engines.waiting += 1
        try:
            return await prepared.opened.engine.ask(self._policy, prepared.request, on_token=on_token)
        except BabylonRLError as e:
            raise UpstreamError(Failure.UNAVAILABLE, str(e)) from e
        except Exception as e:  # whatever sinks a batch is a failure of this policy, and another one may answer
            raise UpstreamError(Failure.FAILED, f"{type(e).__name__}: {e}") from e
        finally:
            self._engines.waiting -= 1


def _refuse_length(found: str, opened: _OpenEngine) -> RequestError:
    return RequestError(
        400,
        f"the prompt has {found}, but the context has {opened.base.context} tokens, answer included; shorten it",
        param="messages",
        code="context_length_exceeded",
    )
