"""W&B Serverless training for tests: a real HTTP server on loopback, with the calls that the client of ART 0.5.18 makes.

    POST   /v1/preview/models                        {id, entity, project, name, base_model, run_id}
    GET    /v1/preview/models/{id}/checkpoints       cursor pages of {id, step, metrics}
    DELETE /v1/preview/models/{id}/checkpoints       {deleted_count, not_found_steps}
    POST   /v1/preview/training-jobs                 {id}
    GET    /v1/preview/training-jobs/{id}/events     cursor pages of {id, type, data}

It keeps every body it was sent. For RL nothing is uploaded beside these calls: groups travel in the job's body.
"""

import socket
import threading
from typing import Any, Self

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

KEY = "test-key-of-nobody"
ENTITY = "test-entity"


class ServerlessServer:
    """Serve while inside `with`. `jobs` holds the bodies of training jobs, `paths` every request, in order."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, Any]] = {}
        self.steps: dict[str, list[int]] = {}
        self.jobs: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.fails_with: str | None = None
        self.refuses_with: int | None = None
        self._sock = socket.create_server(("127.0.0.1", 0))
        app = FastAPI()
        app.middleware("http")(self._gate)
        app.post("/v1/preview/models")(self._model)
        app.get("/v1/preview/models/{model_id}/checkpoints")(self._checkpoints)
        app.delete("/v1/preview/models/{model_id}/checkpoints")(self._delete)
        app.post("/v1/preview/training-jobs")(self._job)
        app.get("/v1/preview/training-jobs/{job_id}/events")(self._events)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._sock]}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._sock.getsockname()[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=10)
        self._sock.close()

    async def _gate(self, request: Request, call_next: Any) -> Response:
        self.paths.append(f"{request.method} {request.url.path}")
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": {"message": "who are you?"}}, status_code=401)
        if self.refuses_with:
            return JSONResponse({"error": {"message": "not now"}}, status_code=self.refuses_with)
        return await call_next(request)

    async def _model(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        assert body["return_existing"] is True
        found = self.models.get(body["name"])
        if found is None:
            model_id = f"model-{len(self.models) + 1}"
            found = {**body, "id": model_id, "entity": body["entity"] or ENTITY, "run_id": None}
            self.models[body["name"]], self.steps[model_id] = found, []
        return {k: found[k] for k in ("id", "entity", "project", "name", "base_model", "run_id")}

    async def _checkpoints(
        self, model_id: str, limit: int = 20, order: str = "asc", after: str | None = None
    ) -> dict[str, Any]:
        steps = sorted(self.steps[model_id], reverse=order == "desc")
        return _page([{"id": f"c{s}", "step": s, "metrics": {}} for s in steps], after, limit)

    async def _delete(self, model_id: str, request: Request) -> dict[str, Any]:
        steps = (await request.json())["steps"]
        gone = [s for s in steps if s in self.steps[model_id]]
        self.steps[model_id] = [s for s in self.steps[model_id] if s not in gone]
        return {"deleted_count": len(gone), "not_found_steps": [s for s in steps if s not in gone]}

    async def _job(self, request: Request) -> dict[str, str]:
        self.jobs.append(await request.json())
        return {"id": f"job-{len(self.jobs)}"}

    async def _events(self, job_id: str, after: str | None = None, limit: int = 2) -> dict[str, Any]:
        """Two gradient steps and an end; two events a page, so that the client must ask for a second page."""
        job = self.jobs[int(job_id.removeprefix("job-")) - 1]
        steps: list[tuple[str, dict[str, Any]]] = [
            ("gradient_step", {"policy_loss": 0.5 / i, "grad_norm": 0.1, "learning_rate": 1e-5}) for i in (1, 2)
        ]
        end = ("training_failed", {"error_message": self.fails_with}) if self.fails_with else ("training_ended", {})
        events = [("training_started", {"num_sequences": 2}), *steps, end]
        listed = [{"id": f"e{i}", "type": kind, "data": data} for i, (kind, data) in enumerate(events)]
        page = _page(listed, after, limit)
        if page["data"] and page["data"][-1]["type"] == "training_ended":
            made = self.steps[job["model_id"]]
            made.append(max(made, default=0) + 1)
        return page


def _page(items: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    start = 0 if after is None else [i["id"] for i in items].index(after) + 1
    return {"object": "list", "data": items[start : start + limit], "has_more": start + limit < len(items)}
