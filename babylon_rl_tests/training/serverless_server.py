"""W&B Serverless training for tests: a real HTTP server on loopback, with the calls that the client of ART 0.5.18 makes.

    model        POST   /v1/preview/models                        {id, entity, project, name, base_model, run_id}
    checkpoints  GET    /v1/preview/models/{id}/checkpoints       cursor pages of {id, step, metrics}
    delete       DELETE /v1/preview/models/{id}/checkpoints       {deleted_count, not_found_steps}
    job          POST   /v1/preview/training-jobs                 {id}
    events       GET    /v1/preview/training-jobs/{id}/events     cursor pages of {id, type, data}
    chat         POST   /v1/chat/completions                      W&B inference: a base, or a checkpoint by its artifact's name

It keeps every body it was sent. For RL nothing is uploaded beside these calls: groups travel in the job's body.
A `Fault` makes requests fail as they do in the field: by a status, a closed connection, or the death of the client.
"""

import json
import os
import re
import signal
import socket
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

KEY = "test-key-of-nobody"
ENTITY = "test-entity"
_ROUTES = {
    "model": r"POST /v1/preview/models",
    "checkpoints": r"GET /v1/preview/models/([^/]+)/checkpoints",
    "delete": r"DELETE /v1/preview/models/([^/]+)/checkpoints",
    "job": r"POST /v1/preview/training-jobs",
    "events": r"GET /v1/preview/training-jobs/([^/]+)/events",
    "chat": r"POST /v1/chat/completions",
}


@dataclass
class Fault:
    """What goes wrong with requests of one route.

    Attributes:
        status: The answer's; None: the connection is closed without an answer.
        is_done: Whether the server does what is asked before it fails.
        times: How many requests fail.
        skip: How many requests go well before.
        kills: A process that dies by SIGKILL at that moment, read when it comes.
    """

    route: str
    status: int | None = None
    is_done: bool = False
    times: int = 1
    skip: int = 0
    kills: "list[int] | None" = None


class ServerlessServer:
    """Serve while inside `with`.

    Attributes:
        jobs: Bodies of the training jobs, in order; each costs money.
        chats: Bodies of the chat completions, in order.
        says: What each model answers: checkpoints by their artifact's name, "base" for any base.
        paths: Every request, in order.
        reads_to_finish: How often events or checkpoints are read before a job ends.
        faults: What goes wrong; one that is used up stays and does nothing.
        fails_with: Message with which every job ends, if it fails.
        refuses_with: Status of every answer.
    """

    def __init__(self) -> None:
        self.models: dict[str, dict[str, Any]] = {}
        self.steps: dict[str, list[int]] = {}
        self.jobs: list[dict[str, Any]] = []
        self.chats: list[dict[str, Any]] = []
        self.says: dict[str, str] = {}
        self.paths: list[str] = []
        self.faults: list[Fault] = []
        self.reads_to_finish = 1
        self.fails_with: str | None = None
        self.refuses_with: int | None = None
        self._reads: list[int] = []
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(timeout=10)

    def handle(self, method: str, target: str, key: str | None, body: Any) -> tuple[int, Any] | None:
        """Status and body of an answer; None closes the connection instead."""
        with self._lock:
            url = urlsplit(target)
            self.paths.append(f"{method} {url.path}")
            if key != f"Bearer {KEY}":
                return 401, {"error": {"message": "who are you?"}}
            if self.refuses_with:
                return self.refuses_with, {"error": {"message": "not now"}}
            for route, pattern in _ROUTES.items():
                if match := re.fullmatch(pattern, f"{method} {url.path}"):
                    fault = self._take_fault(route)
                    query = {name: values[0] for name, values in parse_qs(url.query).items()}
                    answer = (
                        None
                        if fault and not fault.is_done
                        else getattr(self, f"_{route}")(*match.groups(), query, body)
                    )
                    if fault is None:
                        return (404, {"error": {"message": "no such model"}}) if answer is None else (200, answer)
                    if fault.kills:
                        os.kill(fault.kills[-1], signal.SIGKILL)
                    return None if fault.status is None else (fault.status, {"error": {"message": "a fault"}})
            return 404, {"error": {"message": "no such path"}}

    def _take_fault(self, route: str) -> Fault | None:
        for fault in self.faults:
            if fault.route == route and fault.skip > 0:
                fault.skip -= 1
            elif fault.route == route and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def _model(self, query: dict[str, str], body: Any) -> dict[str, Any]:
        assert body["return_existing"] is True
        found = self.models.get(body["name"])
        if found is None:
            model_id = f"model-{len(self.models) + 1}"
            found = {**body, "id": model_id, "entity": body["entity"] or ENTITY, "run_id": None}
            self.models[body["name"]], self.steps[model_id] = found, []
        return {k: found[k] for k in ("id", "entity", "project", "name", "base_model", "run_id")}

    def _checkpoints(self, model_id: str, query: dict[str, str], body: Any) -> dict[str, Any]:
        for number, job in enumerate(self.jobs):
            if job["model_id"] == model_id:
                self._read(number)
        steps = sorted(self.steps[model_id], reverse=query.get("order") == "desc")
        items = [{"id": f"c{s}", "step": s, "metrics": {"loss/train": 0.25}} for s in steps]
        return _page(items, query.get("after"), int(query.get("limit", 20)))

    def _delete(self, model_id: str, query: dict[str, str], body: Any) -> dict[str, Any]:
        gone = [s for s in body["steps"] if s in self.steps[model_id]]
        self.steps[model_id] = [s for s in self.steps[model_id] if s not in gone]
        return {"deleted_count": len(gone), "not_found_steps": [s for s in body["steps"] if s not in gone]}

    def _job(self, query: dict[str, str], body: Any) -> dict[str, str]:
        self.jobs.append(body)
        self._reads.append(0)
        return {"id": f"job-{len(self.jobs)}"}

    def _events(self, job_id: str, query: dict[str, str], body: Any) -> dict[str, Any]:
        """Two gradient steps and an end; two events a page, so that the client must ask for a second page."""
        number = int(job_id.removeprefix("job-")) - 1
        steps: list[tuple[str, dict[str, Any]]] = [
            ("gradient_step", {"policy_loss": 0.5 / i, "grad_norm": 0.1, "learning_rate": 1e-5}) for i in (1, 2)
        ]
        end = ("training_failed", {"error_message": self.fails_with}) if self.fails_with else ("training_ended", {})
        ended = [steps[1], end] if self._read(number) else []
        events = [("training_started", {"num_sequences": 2}), steps[0], *ended]
        listed = [{"id": f"e{i}", "type": kind, "data": data} for i, (kind, data) in enumerate(events)]
        return _page(listed, query.get("after"), int(query.get("limit", 2)))

    def _chat(self, query: dict[str, str], body: Any) -> dict[str, Any] | None:
        self.chats.append(body)
        known = {m["base_model"]: "base" for m in self.models.values()}
        for m in self.models.values():
            for step in self.steps[m["id"]]:
                name = f"wandb-artifact:///{m['entity']}/{m['project']}/{m['name']}:step{step}"
                known[name] = name
        if body["model"] not in known:
            return None
        text = self.says.get(known[body["model"]], self.says.get("base", '{"action": "HOLD"}'))
        message = {"role": "assistant", "content": text}
        return {
            "id": f"chat-{len(self.chats)}",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
        }

    def _read(self, number: int) -> bool:
        """Count a read of a job; whether it has ended. A job that ends well leaves a checkpoint, once."""
        self._reads[number] += 1
        if self._reads[number] == self.reads_to_finish and not self.fails_with:
            made = self.steps[self.jobs[number]["model_id"]]
            made.append(max(made, default=0) + 1)
        return self._reads[number] >= self.reads_to_finish


def _handler_of(server: ServerlessServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            answer = server.handle(
                self.command, self.path, self.headers.get("authorization"), json.loads(body) if body else None
            )
            if answer is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            status, content = answer
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _do  # noqa: N815  # http.server calls these names

        def log_message(self, *_: object) -> None:
            """Be silent."""

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # the client is gone, as a test wants it
                self.close_connection = True

    return Handler


def _page(items: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    start = 0 if after is None else [i["id"] for i in items].index(after) + 1
    return {"object": "list", "data": items[start : start + limit], "has_more": start + limit < len(items)}
