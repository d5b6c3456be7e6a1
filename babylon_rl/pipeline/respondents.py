"""How an evaluation asks a policy: in this process, or at the endpoint where its trainer serves it.

Each gives one answer per prompt and, where it can, how likely it finds a given answer.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from babylon_rl.common.progress import Progress
from babylon_rl.errors import ConfigError, DataError
from babylon_rl.policy.process import base_of
from babylon_rl.training.trainer import ServedPolicy
from babylon_rl.types import Turn

if TYPE_CHECKING:  # torch
    from babylon_rl.policy.client import PolicyClient
    from babylon_rl.policy.likelihood import Likelihood
    from babylon_rl.settings import Settings

ANSWER_TOKENS: Final = 256
AT_ONCE: Final = 16  # requests to a remote endpoint
_OF_THIS_PROMPT: Final = (400, 413, 422)  # statuses that refuse one prompt, as one that is too long
T = TypeVar("T")


class Respondent(Protocol):
    """One policy.

    Attributes:
        name: The model's.
        no_likelihoods: Why it cannot say how likely an answer is; None: it can.
    """

    @property
    def name(self) -> str: ...

    @property
    def no_likelihoods(self) -> str | None: ...

    async def answer(self, turns: Sequence[Turn], *, temperature: float, progress: Progress) -> list[str | None]:
        """Sample one answer to the prompts of each turn; None where the prompt is refused, as one that is too long."""
        ...

    async def score(self, turns: Sequence[Turn]) -> "list[Likelihood | None]":
        """How likely each turn's own answer is; None where it is empty or does not fit the context."""
        ...


class InProcessPolicy:
    """A base, or one of the CPU trainer's checkpoints, loaded here."""

    no_likelihoods = None

    def __init__(self, name: str, base: Path, adapter: Path | None) -> None:
        from babylon_rl.policy.model import load_policy
        from babylon_rl.policy.prompting import PromptRenderer

        self.name = name
        self._policy = load_policy(base, adapter)
        self._renderer = PromptRenderer(self._policy.tokenizer)

    async def answer(self, turns: Sequence[Turn], *, temperature: float, progress: Progress) -> list[str | None]:
        """See `Respondent.answer`."""
        from babylon_rl.policy.sampling import SampleRequest, sample

        prompts = [self._renderer.ids(turn.system, turn.user) for turn in turns]
        fitting = [i for i, p in enumerate(prompts) if len(p) < self._policy.context]
        requests = [
            SampleRequest(
                prompt_ids=prompts[i],
                temperature=temperature,
                seed=i,
                max_tokens=min(ANSWER_TOKENS, self._policy.context - len(prompts[i])),
            )
            for i in fitting
        ]
        answers: list[str | None] = [None] * len(turns)
        for i, sampled in zip(fitting, sample(self._policy, requests), strict=True):
            answers[i] = self._policy.tokenizer.decode(sampled.token_ids, skip_special_tokens=True)
            progress()
        return answers

    async def score(self, turns: Sequence[Turn]) -> "list[Likelihood | None]":
        """See `Respondent.score`."""
        from babylon_rl.policy.likelihood import score_answers

        answers = self._policy.tokenizer([t.response for t in turns], add_special_tokens=False)["input_ids"]
        prompts = [self._renderer.ids(t.system, t.user) for t in turns]
        return score_answers(self._policy, list(zip(prompts, answers, strict=True)))


class ServedRespondent:
    """A model at an OpenAI-compatible endpoint.

    Every such endpoint answers prompts. vLLM also says how likely a text is; it is given the very tokens that would train,
    so the base's tokenizer is needed here.
    """

    def __init__(self, client: "PolicyClient", name: str, model: str, served: ServedPolicy) -> None:
        self.name = name
        self._client, self._model, self._served = client, model, served

    @property
    def no_likelihoods(self) -> str | None:
        return (
            None
            if self._served.has_likelihoods
            else f"the endpoint {self._served.base_url} gives no log-probabilities of prompts"
        )

    async def answer(self, turns: Sequence[Turn], *, temperature: float, progress: Progress) -> list[str | None]:
        """See `Respondent.answer`; an answer without text counts as an empty one."""
        room = asyncio.Semaphore(AT_ONCE)

        async def ask(number: int, turn: Turn) -> str | None:
            async with room:
                try:
                    completion = await self._client.complete(
                        model=self._model,
                        system=turn.system,
                        user=turn.user,
                        temperature=temperature,
                        seed=number,
                        max_tokens=ANSWER_TOKENS,
                    )
                except DataError:
                    return ""
                except ConfigError as e:
                    if e.facts.get("status") in _OF_THIS_PROMPT:
                        return None
                    raise
            progress()
            return completion.text

        return await _gather([ask(i, turn) for i, turn in enumerate(turns)])

    async def score(self, turns: Sequence[Turn]) -> "list[Likelihood | None]":
        """See `Respondent.score`."""
        from babylon_rl.policy.likelihood import Likelihood
        from babylon_rl.policy.prompting import PromptRenderer
        from babylon_rl.training.serverless import context_of, load_tokenizer

        tokenizer = load_tokenizer(self._served.base_model)
        renderer, context = PromptRenderer(tokenizer), context_of(tokenizer)
        answers = tokenizer([t.response for t in turns], add_special_tokens=False)["input_ids"]
        room = asyncio.Semaphore(AT_ONCE)

        async def ask(turn: Turn, answer: list[int]) -> Likelihood | None:
            prompt = renderer.ids(turn.system, turn.user)
            if not answer or len(prompt) + len(answer) >= context:
                return None
            async with room:
                nats = await self._client.score_prompt(model=self._model, token_ids=[*prompt, *answer])
            return Likelihood(sum(nats[-len(answer) :]), len(answer))

        return await _gather([ask(turn, answer) for turn, answer in zip(turns, answers, strict=True)])


async def _gather(asking: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Wait for all; once one is refused, nothing more is sent, and nothing more is paid."""
    tasks = [asyncio.create_task(a) for a in asking]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def open_client(settings: "Settings", served: ServedPolicy) -> "AsyncGenerator[PolicyClient]":
    """A client of the endpoint, with the key that it takes."""
    from babylon_rl.policy.client import PolicyClient

    key = settings.training.wandb_api_key if served.key_variable is not None else None
    secret = "none" if key is None else key.get_secret_value()
    async with PolicyClient(served.base_url, api_key=secret, project=served.project) as client:
        yield client


def load_base_and_checkpoint(settings: "Settings", name: str, adapter: Path) -> tuple[InProcessPolicy, InProcessPolicy]:
    """The base and a checkpoint of the CPU trainer, loaded here."""
    base = base_of(settings.training)
    return InProcessPolicy(f"{name.partition('@')[0]}@0", base, None), InProcessPolicy(name, base, adapter)
