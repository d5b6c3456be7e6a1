"""Where each step is answered: one interface, and from a step to its upstream and its name there."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

from babylon_rl.errors import BabylonRLError, ConfigError
from babylon_rl.gateway.errors import Failure, UpstreamError
from babylon_rl.gateway.heard import Heard
from babylon_rl.gateway.reading import Asked
from babylon_rl.gateway.state import ServedState
from babylon_rl.policy.catalog import ServablePolicy, servable_policy
from babylon_rl.store.ledger_identity import RecordedCheckpoint
from babylon_rl.training.factory import locate_base, locate_policy
from babylon_rl.training.trainer import ServedPolicy
from babylon_rl.types import Checkpoint, Json, policy_name

if TYPE_CHECKING:
    from pydantic import SecretStr

    from babylon_rl.settings import Settings


ENGINE: Final = "engine"
OPENAI: Final = "openai"


class Upstream(Protocol):
    """Answers for policies, each named as the upstream knows it."""

    async def answer(self, asked: Asked, heard: Heard) -> Json:
        """A whole `chat.completion`; what it said is put into `heard`.

        Raises:
            RequestError: The request itself is wrong; nobody else would answer it.
            UpstreamError: It did not answer.
        """
        ...

    def stream(self, asked: Asked, heard: Heard) -> AsyncIterator[Json]:
        """The answer's `chat.completion.chunk`s as they come, without `[DONE]`; raises as `answer`, also between chunks."""
        ...

    async def prepare(self) -> None:
        """Load what an answer needs, where it is loaded here; raises `UpstreamError`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One policy at its upstream.

    Attributes:
        name: `babylon-mmo@3`.
        kind: Of upstream: `engine` or `openai`.
        key: Tells apart what fails by itself: upstream and model.
        digest: Of the recorded manifest; empty for the base and for remote weights.
    """

    name: str
    kind: str
    key: tuple[str, str]
    digest: str
    upstream: Upstream


class Upstreams:
    """Finds the upstream of each step, and keeps it while the step stays what it was.

    Use inside `running()`.
    """

    def __init__(self, settings: "Settings") -> None:
        self._settings = settings
        self._known: dict[tuple[str, int], tuple[RecordedCheckpoint | None, Target]] = {}
        self._opened = AsyncExitStack()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Open what is needed from the start; the rest is opened when it is first asked."""
        from babylon_rl.gateway.engine_upstream import Engines
        from babylon_rl.gateway.openai_upstream import open_session

        async with self._opened:
            self._engines = Engines(self._settings, self._opened)
            self._session = await self._opened.enter_async_context(open_session(self._settings.gateway.timeout_s))
            if self._settings.training.trainer == "cpu" and self._settings.serving.inference_url is None:
                await self._engines.open()
            yield self

    def find(self, state: ServedState, step: int) -> Target:
        """The upstream of a step.

        Raises:
            UpstreamError: Nothing is configured to serve it.
        """
        lineage, recorded = state.deployment.lineage, state.policies.get(step)
        known = self._known.get((lineage, step))
        if known is not None and known[0] == recorded:
            return known[1]
        try:
            target = self._locate_base(lineage) if step == 0 else self._locate_checkpoint(lineage, step, recorded)
        except BabylonRLError as e:
            raise UpstreamError(Failure.UNAVAILABLE, str(e)) from e
        self._known[lineage, step] = recorded, target
        return target

    async def prepare(self, state: ServedState, step: int) -> None:
        """Make a step ready to be asked.

        Raises:
            UpstreamError: It cannot be served here.
        """
        await self.find(state, step).upstream.prepare()

    @property
    def waiting(self) -> int:
        """Requests that wait for our engine or are being sampled."""
        return self._engines.waiting

    def _locate_base(self, lineage: str) -> Target:
        settings, name = self._settings, policy_name(lineage, 0)
        own = settings.gateway
        if own.base_url is not None:
            model = own.base_model or settings.training.base_model or name
            served = ServedPolicy(base_url=own.base_url.rstrip("/"), model=model, base_model=model)
            return self._over_http(name, served, model, own.base_key)
        if settings.training.trainer == "cpu" and settings.serving.inference_url is None:
            return self._over_engine(ServablePolicy(name=name))
        served = locate_base(settings.training, lineage, inference_url=settings.serving.inference_url)
        return self._over_http(name, served, own.base_model or served.base_model, self._key_of(served))

    def _locate_checkpoint(self, lineage: str, step: int, recorded: RecordedCheckpoint | None) -> Target:
        name = policy_name(lineage, step)
        if recorded is None:
            raise ConfigError(f"{name} is deployed, but the ledger has not recorded it; roll it back")
        if recorded.trainer == "cpu" and self._settings.serving.inference_url is None:
            return self._over_engine(servable_policy(self._settings.checkpoints_dir, recorded))
        checkpoint = Checkpoint(
            lineage=lineage,
            step=step,
            window_id="",
            trainer=recorded.trainer,
            path=recorded.path,
            windows=(),
            judgment_keys=(),
            metrics={},
        )
        served = locate_policy(self._settings.training, checkpoint, inference_url=self._settings.serving.inference_url)
        return self._over_http(name, served, served.model, self._key_of(served))

    def _key_of(self, served: ServedPolicy) -> "SecretStr | None":
        return None if served.key_variable is None else self._settings.training.wandb_api_key

    def _over_engine(self, policy: ServablePolicy) -> Target:
        from babylon_rl.gateway.engine_upstream import EngineUpstream

        upstream = EngineUpstream(self._engines, policy, self._settings)
        return Target(name=policy.name, kind=ENGINE, key=(ENGINE, policy.name), digest=policy.digest, upstream=upstream)

    def _over_http(self, name: str, served: ServedPolicy, model: str, key: "SecretStr | None") -> Target:
        from babylon_rl.gateway.openai_upstream import OpenAIUpstream, find_proxy

        upstream = OpenAIUpstream(
            session=self._session,
            base_url=served.base_url,
            model=model,
            name=name,
            key=key,
            project=served.project,
            proxy=find_proxy(served.base_url),
            temperature=self._settings.serving.serve_temperature,
            most_tokens=self._settings.gateway.max_answer_tokens,
        )
        return Target(name=name, kind=OPENAI, key=(served.base_url, model), digest="", upstream=upstream)
