"""The OpenAI-compatible endpoint of the recorded checkpoints: `/v1/chat/completions`, `/v1/models`, `/healthz`.

What belongs here: HTTP, and turning messages into token ids and answers back into text. Which checkpoints there are is
`catalog.py`, batching is `engine.py`. There is no authentication: it listens on loopback by default, and answers anyone who
can reach it.
"""

import argparse
import json
import logging
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from babylon_rl.common.child_server import exit_with_parent, read_line
from babylon_rl.database.connection import connect
from babylon_rl.errors import DataError
from babylon_rl.policy.catalog import Catalog, Snapshot
from babylon_rl.policy.http import answer_error, read_body, run_app
from babylon_rl.policy.prompting import PromptRenderer
from babylon_rl.policy.shipped import require_base, shipped_base
from babylon_rl.policy.wire import DEFAULT_ANSWER_TOKENS, ChatRequest, RequestError, build_chunk, build_completion

if TYPE_CHECKING:
    from babylon_rl.policy.engine import SamplingEngine
    from babylon_rl.policy.model import LoadedPolicy

logger = logging.getLogger(__name__)

DEFAULT_LINEAGE: Final = "babylon-mmo"


def create_app(
    *,
    base: Path,
    catalog: Catalog,
    default_temperature: float,
    gather_ms: float = 20,
    max_batch: int = 256,
    threads: int | None = None,
) -> FastAPI:
    """Make the application; it loads the base when it starts, and a checkpoint when it is first asked for.

    Args:
        base: Directory of the base policy.
        catalog: Which checkpoints there are.
        default_temperature: For requests that name none.
        gather_ms: Milliseconds that the first request of a batch waits for more to join it.
        max_batch: Most requests sampled together.
        threads: Processor threads of the model; None: one for a small model, torch's choice for a larger one.
    """
    from babylon_rl.policy.engine import SamplingEngine

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = SamplingEngine(base=base, gather_s=gather_ms / 1000, max_batch=max_batch, threads=threads)
        async with engine.running() as policy:
            app.state.endpoint = _Endpoint(engine, policy, catalog, default_temperature)
            yield

    app = FastAPI(title="Babylon policy", lifespan=lifespan, openapi_url=None)

    app.add_exception_handler(RequestError, answer_error)

    async def chat_completions(request: Request) -> Response:
        endpoint: _Endpoint = request.app.state.endpoint
        return await endpoint.complete(await read_body(request.receive))

    async def models(request: Request) -> Response:
        endpoint: _Endpoint = request.app.state.endpoint
        return JSONResponse(await endpoint.models())

    async def healthz(request: Request) -> Response:
        endpoint: _Endpoint = request.app.state.endpoint
        return JSONResponse(endpoint.health())

    app.add_api_route("/v1/chat/completions", chat_completions, methods=["POST"])
    app.add_api_route("/v1/models", models, methods=["GET"])
    app.add_api_route("/healthz", healthz, methods=["GET"])
    return app


class _Endpoint:
    """What the routes do. Only the event loop's thread uses the tokenizer: fast tokenizers are not thread-safe."""

    def __init__(
        self,
        engine: "SamplingEngine",
        policy: "LoadedPolicy",
        catalog: Catalog,
        default_temperature: float,
    ) -> None:
        self._engine = engine
        self._policy = policy
        self._catalog = catalog
        self._temperature = default_temperature
        self._renderer = PromptRenderer(policy.tokenizer)

    async def complete(self, body: bytes) -> Response:
        from babylon_rl.policy.sampling import SampleRequest

        request = ChatRequest.read(body)
        try:
            policy = (await self._read_catalog()).resolve(request.model)
        except DataError as e:
            raise RequestError(404, str(e), param="model", code="model_not_found") from None
        prompt = self._renderer.ids_of([m.plain() for m in request.messages])
        room = self._policy.context - len(prompt)
        if room < 1:
            raise RequestError(
                400,
                f"the prompt has {len(prompt)} tokens, but the context has {self._policy.context}, answer included; shorten it",
                param="messages",
                code="context_length_exceeded",
            )
        try:
            answer = await self._engine.ask(
                policy,
                SampleRequest(
                    prompt_ids=prompt,
                    temperature=self._temperature if request.temperature is None else request.temperature,
                    seed=secrets.randbits(63) if request.seed is None else request.seed,
                    max_tokens=min(request.limit or DEFAULT_ANSWER_TOKENS, room),
                ),
            )
        except DataError as e:
            raise RequestError(422, str(e), param="model") from None
        response = build_completion(
            model=policy.name,
            created=int(time.time()),
            text=self._policy.tokenizer.decode(answer.token_ids, skip_special_tokens=True),
            token_ids=answer.token_ids,
            logprobs=answer.logprobs if request.logprobs else None,
            finish_reason=answer.finish_reason,
            prompt_tokens=len(prompt),
        )
        if request.stream:
            events = f"data: {json.dumps(build_chunk(response))}\n\ndata: [DONE]\n\n"
            return Response(events, media_type="text/event-stream")
        return JSONResponse(response)

    async def models(self) -> dict[str, Any]:
        named = (await self._read_catalog()).names()
        cards = [
            {"id": n, "object": "model", "created": 0 if at is None else int(at.timestamp()), "owned_by": "babylon-rl"}
            for n, at in named
        ]
        return {"object": "list", "data": cards}

    async def _read_catalog(self) -> Snapshot:
        try:
            return await self._catalog.read()
        except sa.exc.DBAPIError as e:
            logger.warning("the ledger cannot be read error=%s", type(e.orig).__name__)
            raise RequestError(
                503, "the ledger, which says what may be served, cannot be read; start its database and try again"
            ) from None

    def health(self) -> dict[str, Any]:
        stats = self._engine.stats
        return {
            "status": "ok",
            "requests": stats.requests,
            "batches": stats.batches,
            "largest_batch": stats.largest_batch,
        }


def serve(
    *,
    base: Path,
    root: Path,
    database_url: str,
    default_temperature: float,
    host: str = "127.0.0.1",
    port: int = 8000,
    listener: socket.socket | None = None,
    gather_ms: float = 20,
    max_batch: int = 256,
    threads: int | None = None,
    lineage: str = DEFAULT_LINEAGE,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        base: See `create_app`.
        root: `Settings.checkpoints_dir`.
        database_url: Of the ledger.
        default_temperature: See `create_app`.
        host: Address to listen on. Anything but loopback is open to everybody who can reach it.
        port: 0 takes a free one; the log names it.
        listener: A bound socket to use instead of `host` and `port`.
        gather_ms: See `create_app`.
        max_batch: See `create_app`.
        threads: See `create_app`.
        lineage: The lineage that can be asked for before its first checkpoint; others must have one.

    Raises:
        ConfigError: `base` holds no model, or the ledger's database cannot be reached.
    """
    require_base(base)
    app = create_app(
        base=base,
        catalog=Catalog(connect(database_url), root, lineage),
        default_temperature=default_temperature,
        gather_ms=gather_ms,
        max_batch=max_batch,
        threads=threads,
    )
    run_app(app, host=host, port=port, listener=listener, what=f"base={base}")


def main(argv: list[str] | None = None) -> None:
    """Serve the checkpoints; `running_server` starts this as a process of its own.

    The first line of stdin is the URL of the ledger's database: it may hold a password, and arguments can be read by all.
    """
    p = argparse.ArgumentParser(prog="babylon_rl.policy.server", description=main.__doc__)
    p.add_argument("--base", type=Path, default=shipped_base())
    p.add_argument("--root", type=Path, required=True)
    p.add_argument("--temperature", type=float, default=0.0)
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=8000)
    p.add_argument("--fd", type=int, help="descriptor of a bound socket, instead of --host and --port")
    p.add_argument("--gather-ms", type=float, default=20)
    p.add_argument("--max-batch", type=int, default=256)
    p.add_argument("--threads", type=int)
    p.add_argument("--lineage", default=DEFAULT_LINEAGE)
    p.add_argument(
        "--parent", type=int, help="id of the process that started this one: stop when it dies or closes our stdin"
    )
    a = p.parse_args(argv)
    database_url = read_line(sys.stdin.fileno())
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
    if a.parent is not None:
        exit_with_parent(a.parent)
    serve(
        base=a.base,
        root=a.root,
        database_url=database_url,
        default_temperature=a.temperature,
        host=a.host,
        port=a.port,
        listener=None if a.fd is None else socket.socket(fileno=a.fd),
        gather_ms=a.gather_ms,
        max_batch=a.max_batch,
        threads=a.threads,
        lineage=a.lineage,
    )


if __name__ == "__main__":
    main()
