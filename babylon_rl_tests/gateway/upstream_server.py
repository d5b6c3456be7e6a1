"""A real server that speaks OpenAI's protocol over a socket, and fails as it is told, by model."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOOL_CALL = {"id": "call_7", "type": "function", "function": {"name": "buy", "arguments": '{"ticker":"$AI"}'}}
HALF = "\ud83d"
USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}


@dataclass
class Upstream:
    """What the server is asked, and what it does: model → behaviour; by default it answers.

    Behaviours: `500`, `429`, `401`, `404`, `400`, `once` (503 the first time), `hang` (no byte), `break` (a stream that
    stops in its middle), `not-json`, `long` (a stream without end), `error-200` and `no-choices` (JSON that is no answer,
    whether or not a stream was asked for), `half` (a text with half an emoji, as a server cuts it that counts in UTF-16), `echo` (400 that repeats the key it was sent).
    """

    url: str = ""
    behaviour: dict[str, str] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        self.behaviour.clear()
        self.requests.clear()
        self.headers.clear()
        self.left.clear()

    def asked(self, model: str) -> int:
        return sum(r["model"] == model for r in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: Upstream

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.upstream.requests.append(body)
        self.upstream.headers.append({k.lower(): v for k, v in self.headers.items()})
        behaviour = self.upstream.behaviour.get(body["model"], "")
        if behaviour == "once":
            self.upstream.behaviour[body["model"]] = ""
            behaviour = "503"
        if behaviour == "hang":
            self.upstream.stop.wait(30)
            self.close_connection = True
        elif behaviour.isdigit():
            message = f"{body['model']} at {self.upstream.url} with key sk-secret is wrong"
            self._send(int(behaviour), {"error": {"message": message, "type": "x", "param": "n", "code": "bad"}})
        elif behaviour == "error-200":
            self._send(200, {"error": {"message": "the engine is dead", "code": 500}})
        elif behaviour == "no-choices":
            self._send(200, self._envelope(body, "chat.completion", []))
        elif behaviour == "echo":
            told = f"not for {self.headers['authorization']}"
            self._send(400, {"error": {"message": told, "type": told, "param": told, "code": told}})
        elif behaviour == "not-json":
            self._send(200, None)
        elif body.get("stream"):
            self._stream(body, behaviour)
        else:
            message: dict[str, Any] = {
                "role": "assistant",
                "content": f"I am {body['model']}{HALF * (behaviour == 'half')}",
            }
            if body.get("tools"):
                message = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}
            choice = {"index": 0, "message": message, "finish_reason": "stop", "x_choice": 1}
            self._send(200, self._envelope(body, "chat.completion", [choice]) | {"usage": USAGE})

    def _envelope(self, body: dict[str, Any], kind: str, choices: list[Any]) -> dict[str, Any]:
        known = {"id": "cmpl-1", "object": kind, "created": 5, "model": body["model"], "choices": choices}
        return known | {"system_fingerprint": "fp", "x_unknown": {"a": [1, 2.5]}}

    def _send(self, status: int, body: Any) -> None:
        data = b"<html>" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, body: dict[str, Any], behaviour: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, {"content": "I am "}]
        if body.get("tools"):
            deltas = [{"role": "assistant", "tool_calls": [{"index": 0, **TOOL_CALL}]}]
        try:
            self._chunk(b": a comment\r\n\r\n")
            for delta in deltas:
                self._event(self._envelope(body, "chat.completion.chunk", [_choice(delta)]))
            if behaviour == "break":
                self.close_connection = True
                return
            if behaviour == "half":
                self._event(self._envelope(body, "chat.completion.chunk", [_choice({"content": HALF})]))
            while behaviour == "long" and not self.upstream.stop.is_set():
                self._event(self._envelope(body, "chat.completion.chunk", [_choice({"content": "x"})]))
                time.sleep(0.002)
            self._event(self._envelope(body, "chat.completion.chunk", [_choice({"content": body["model"]})]))
            self._event(self._envelope(body, "chat.completion.chunk", [_choice({}, "stop")]))
            if (body.get("stream_options") or {}).get("include_usage"):
                self._event(self._envelope(body, "chat.completion.chunk", []) | {"usage": USAGE})
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
        except OSError:
            self.close_connection = True
            self.upstream.left.append(body["model"])

    def _event(self, chunk: dict[str, Any]) -> None:
        data = f"data: {json.dumps(chunk)}\n\n".encode()
        half = len(data) // 2
        self._chunk(data[:half])
        self._chunk(data[half:])

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # many callers at once


def _choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": reason}


@contextmanager
def running_upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    handler = type("Handler", (_Handler,), {"upstream": upstream})
    server = _Server(("127.0.0.1", 0), handler)
    upstream.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield upstream
    finally:
        upstream.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
