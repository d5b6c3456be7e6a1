"""The gateway as an application: its routes, and what runs while it does."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from babylon_rl.gateway.access import Access
from babylon_rl.gateway.answering import Answerer
from babylon_rl.gateway.breaker import Breakers
from babylon_rl.gateway.chat import ChatEndpoint
from babylon_rl.gateway.follower import DeploymentFollower
from babylon_rl.gateway.metrics import GatewayMetrics
from babylon_rl.gateway.preparing import preparing
from babylon_rl.gateway.recording import CallRecorder
from babylon_rl.gateway.routing import names_of
from babylon_rl.gateway.upstreams import Upstreams
from babylon_rl.policy.http import answer_error, respond_to_error
from babylon_rl.policy.wire import RequestError
from babylon_rl.types import Json, policy_name

if TYPE_CHECKING:
    from babylon_rl.gateway.state import ServedState
    from babylon_rl.settings import Settings


def create_gateway(settings: "Settings", follower: DeploymentFollower, recorder: CallRecorder) -> FastAPI:
    """Make the application.

    Args:
        settings: Where policies are served, the key, the limits, and whose test agents go first.
        follower: Knows what is deployed.
        recorder: Takes ended calls.
    """
    metrics, breakers = GatewayMetrics(), Breakers()
    upstreams = Upstreams(settings)
    answerer = Answerer(settings, upstreams, recorder, metrics, breakers)
    access = Access(settings.gateway.key)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for part in (follower, recorder, upstreams, answerer):
                await stack.enter_async_context(part.running())
            await stack.enter_async_context(preparing(follower, upstreams))
            yield

    def age_s() -> float:
        return max(0.0, (datetime.now(UTC) - follower.current().read_at).total_seconds())

    metrics.watch(
        {
            "deployment_number": (
                "Number of the deployment answered by.",
                lambda: follower.current().deployment.number,
            ),
            "state_age_seconds": ("Since the database last said what is deployed.", age_s),
            "calls_unwritten": ("Calls recorded and not yet in the database.", lambda: recorder.waiting),
            "engine_waiting": ("Requests at our own engine.", lambda: upstreams.waiting),
            "breakers_open": ("Upstreams left alone for a while.", breakers.open_count),
            "calls_written": ("Rows of served_calls written.", lambda: recorder.stats.written),
            "calls_spilled": ("Calls that waited on disk: the database was away.", lambda: recorder.stats.spilled),
            "calls_lost": ("Calls recorded nowhere.", lambda: recorder.stats.lost),
            "calls_rejected": (
                "Calls that the database refuses, kept in rejected.txt.",
                lambda: recorder.stats.rejected,
            ),
            "game_calls_logged": ("Rows of the game's llm_call_logs written.", lambda: recorder.stats.logged),
            "game_calls_refused": ("Calls that may not be logged for the game.", lambda: recorder.stats.refused),
        }
    )

    async def models(request: Request) -> Response:
        access.check(request.headers.raw)
        return JSONResponse({"object": "list", "data": _cards(follower.current())})

    async def model(request: Request) -> Response:
        access.check(request.headers.raw)
        name = request.path_params["name"]
        for card in _cards(follower.current()):
            if card["id"] == name:
                return JSONResponse(card)
        raise RequestError(404, f"model {name[:100]!r} is not served", param="model", code="model_not_found")

    async def healthz(_: Request) -> Response:
        d = follower.current().deployment
        return JSONResponse(
            {
                "status": "ok",
                "deployment": d.number,
                "stage": d.stage.value,
                "incumbent": d.incumbent_name,
                "candidate": d.candidate_name,
                "state_age_s": round(age_s(), 3),
                "deployment_error": follower.error,
                "calls_unwritten": recorder.waiting,
                "recording": asdict(recorder.stats),
                "engine_waiting": upstreams.waiting,
            }
        )

    async def show_metrics(_: Request) -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def refuse(request: Request) -> NoReturn:
        access.check(request.headers.raw)
        raise RequestError(
            404,
            f"{request.url.path} is not offered: agents chat; send POST /v1/chat/completions with messages",
            code="unsupported_endpoint",
        )

    async def refuse_request(request: Request, e: Exception) -> Response:
        if isinstance(e, RequestError):
            metrics.count_refusal(e.status)
        return await answer_error(request, e)

    app = FastAPI(title="Babylon gateway", lifespan=lifespan, openapi_url=None)
    app.add_exception_handler(RequestError, refuse_request)
    app.add_exception_handler(HTTPException, _answer_http_error)
    chat = ChatEndpoint(
        access=access,
        state=follower,
        answerer=answerer,
        metrics=metrics,
        test_agents=settings.deployment.test_agent_patterns,
    )
    app.router.routes += [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/healthz", healthz),
        Route("/metrics", show_metrics),
        Route("/v1/{path:path}", refuse, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
    ]
    return app


def _cards(state: "ServedState") -> list[Json]:
    lineage = state.deployment.lineage
    trained = {policy_name(lineage, s): p.trained_at for s, p in state.policies.items()}
    return [
        {
            "id": name,
            "object": "model",
            "created": int(trained[name].timestamp()) if name in trained else 0,
            "owned_by": "babylon-rl",
        }
        for name in names_of(state)
    ]


async def _answer_http_error(_: Request, e: Exception) -> Response:
    """An unknown path or method, in the shape of all other errors."""
    if not isinstance(e, HTTPException):
        raise e
    return respond_to_error(RequestError(e.status_code, f"{e.detail}; see /v1/models and /v1/chat/completions"))
