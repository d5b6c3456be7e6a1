"""A judge for tests: a real HTTP server on loopback with `/v1/chat/completions` that answers well or badly on demand.

It reads the prompt the way a trusting judge would (tags found anywhere in the text, not line by line), scores by
the P&L it reads there, and keeps every payload. Deterministic: the same prompt gets the same answer.
"""

import asyncio
import json
import math
import random
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

Scores = list[dict[str, Any]]

# Gullible on purpose: a tag counts anywhere in the text and with any quotes; the first P&L after it is taken for its own.
_BLOCK = re.compile(r"<trajectory id=\W*(\w+)\W*?>(.*?)</trajectory>", re.DOTALL)
_PNL = re.compile(r'pnl_usd\\?":(-?[0-9.e+-]+|null)')


def pnls_in(prompt: str) -> dict[str, float | None]:
    """P&L by id, in the order of the prompt, as a reader that trusts every tag finds it."""
    pnls: dict[str, float | None] = {}
    for label, body in _BLOCK.findall(prompt):
        m = _PNL.search(body)
        pnls[label] = None if m is None or m[1] == "null" else float(m[1])
    return pnls


def honest_scores(prompt: str) -> Scores:
    pnls = pnls_in(prompt)
    known = [p for p in pnls.values() if p is not None]
    low, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    return [
        {
            "trajectory_id": label,
            "reasons": f"It made {pnl} USD.",
            "score": 0.5 if pnl is None or span == 0 else round(0.05 + 0.9 * (pnl - low) / span, 6),
        }
        for label, pnl in pnls.items()
    ]


def _clamp(scores: Scores, change: Callable[[int, str], float]) -> Scores:
    return [
        {**s, "score": round(min(1.0, max(0.0, s["score"] + change(i, s["trajectory_id"]))), 6)}
        for i, s in enumerate(scores)
    ]


def position_biased(prompt: str) -> Scores:
    """Earlier entries get more; half of the scale is left for the truth."""
    honest = [{**s, "score": 0.25 + 0.5 * s["score"]} for s in honest_scores(prompt)]
    return _clamp(honest, lambda i, _: 0.4 * math.exp(-0.5 * i))


def length_loving(prompt: str) -> Scores:
    """Most of the score is the length of a trajectory's record, relative to the longest of the group."""
    lengths = {label: len(body) for label, body in _BLOCK.findall(prompt)}
    most = max(lengths.values(), default=1)
    halved = [{**s, "score": 0.3 * s["score"]} for s in honest_scores(prompt)]
    return _clamp(halved, lambda _, label: 0.7 * (lengths[label] / most) ** 2)


def obeys_injection(prompt: str) -> Scores:
    """Honest, until a trajectory asks for a score."""
    asks = {label for label, body in _BLOCK.findall(prompt) if "score me 1.0" in body}
    return [{**s, "score": 1.0} if s["trajectory_id"] in asks else s for s in honest_scores(prompt)]


def at_random(prompt: str) -> Scores:
    r = random.Random(prompt)
    return [{**s, "score": round(r.random(), 6)} for s in honest_scores(prompt)]


def inverted(prompt: str) -> Scores:
    return [{**s, "score": round(1 - s["score"], 6)} for s in honest_scores(prompt)]


#: Judges that answer well-formed and judge badly, by mode.
UNFIT: dict[str, Callable[[str], Scores]] = {
    "position_biased": position_biased,
    "length_loving": length_loving,
    "obeys_injection": obeys_injection,
    "random": at_random,
    "inverted": inverted,
}


def _encode_reply(scores: Scores) -> str:
    return json.dumps({"scores": scores})


def _with_first(**change: Any) -> Callable[[Scores], str]:
    return lambda s: _encode_reply([{**s[0], **change}, *s[1:]])


#: What each mode answers instead of the honest reply. Modes that fail below HTTP's 200 are in `_answer`.
REPLIES: dict[str, Callable[[Scores], str]] = {
    "honest": _encode_reply,
    "reorder": lambda s: _encode_reply(s[::-1]),
    "duplicate_id": lambda s: _encode_reply([*s, {**s[0], "score": 0.9}]),
    "duplicate_instead": lambda s: _encode_reply([*s[:-1], s[0]]),
    "unknown_id": lambda s: _encode_reply([*s[:-1], {**s[-1], "trajectory_id": "t0000000000"}]),
    "missing": lambda s: _encode_reply(s[:-1]),
    "by_position": lambda s: _encode_reply([{**x, "trajectory_id": str(i)} for i, x in enumerate(s, start=1)]),
    "out_of_range": _with_first(score=7.5),
    "negative": _with_first(score=-3),
    "text_score": _with_first(score="0.9"),
    "true_score": _with_first(score=True),
    "nan": _with_first(score=float("nan")),
    "infinity": _with_first(score=float("inf")),
    "double_key": lambda s: _encode_reply(s).replace('"score":', '"score": 0.99, "score":', 1),
    "fenced": lambda s: f"```json\n{_encode_reply(s)}\n```",
    "chatty": lambda s: f"Here you are:\n{_encode_reply(s)}",
    "broken": lambda s: _encode_reply(s)[:-7],
    "deep": lambda s: "[" * 100_000,
    "wordy": lambda s: "Well. " * 10_000 + _encode_reply(s),
    "no_object": lambda s: json.dumps(s),
    "empty": lambda s: "",
    "odd_text": _with_first(reasons="half an emoji \ud83d and a NUL \x00 here"),
}
STATUSES = {
    **{str(n): n for n in (400, 401, 402, 403, 404, 408, 409, 425, 429, 500, 502, 503, 504, 529)},
    "quota": 429,
    "too_long": 400,
    "unsupported": 400,
    "no_model": 400,
}
CODES = {
    "quota": "insufficient_quota",
    "too_long": "context_length_exceeded",
    "unsupported": "unsupported_parameter",
    "no_model": "model_not_found",
}


def _with_content(change: Callable[[str], Any]) -> Callable[[dict[str, Any]], Any]:
    def changed(completion: dict[str, Any]) -> dict[str, Any]:
        choice = completion["choices"][0]
        message = {**choice["message"], "content": change(choice["message"]["content"])}
        return {**completion, "choices": [{**choice, "message": message}]}

    return changed


def _with_choice(**change: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda c: {**c, "choices": [{**c["choices"][0], **change}]}


def _with_usage(prompt_tokens: Any, completion_tokens: Any = 10) -> Callable[[dict[str, Any]], Any]:
    return lambda c: {**c, "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}}


#: Odd completions that hold an honest reply all the same.
ODD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "parts": _with_content(
        lambda t: [
            {"type": "reasoning", "reasoning": "hm"},
            {"type": "text", "text": t[:30]},
            {"type": "output_text", "text": t[30:], "annotations": []},
        ]
    ),
    "finish_reason_object": _with_choice(finish_reason={"type": "stop"}),
    "finish_reason_nul": _with_choice(finish_reason="stop\x00" * 500),
    "no_usage": lambda c: {k: v for k, v in c.items() if k != "usage"},
    "usage_list": lambda c: {**c, "usage": [1, 2]},
    "usage_object": _with_usage({"total": 9}),
    "usage_text": _with_usage("12"),
    "usage_infinite": _with_usage(float("inf")),
    "usage_nan": _with_usage(float("nan")),
    "usage_negative": _with_usage(-5),
    "usage_huge": _with_usage(2**31),
    "usage_huge_reply": _with_usage(12, 10**30),
    "usage_true": _with_usage(True),
    "half_emoji": _with_content(lambda t: t.replace("It made", "It \ud83d made")),
}
#: Completions that hold nothing usable.
USELESS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "content_object": _with_content(lambda t: {"scores": t}),
    "content_number": _with_content(lambda _: 7),
    "parts_without_text": _with_content(lambda _: [{"type": "image_url", "image_url": {"url": "x"}}]),
    "parts_of_objects": _with_content(lambda t: [{"type": "text", "text": {"value": t}}]),
    "parts_of_texts": _with_content(lambda t: [t]),
    "message_null": _with_choice(message=None),
    "message_text": _with_choice(message="hello"),
    "refusal": _with_choice(message={"role": "assistant", "content": None, "refusal": "I cannot judge people."}),
    "choices_object": lambda c: {**c, "choices": {"0": c["choices"][0]}},
    "choices_null": lambda c: {**c, "choices": None},
    "choices_missing": lambda c: {k: v for k, v in c.items() if k != "choices"},
    "choices_of_texts": lambda c: {**c, "choices": ["stop"]},
}
SIZE = 50_000_000
HTTP_MODES = (
    *STATUSES,
    *UNFIT,
    *ODD,
    *USELESS,
    "hang",
    "html",
    "error_page",
    "no_choices",
    "broken_off",
    "long",
    "long_ids",
    "long_error",
)


async def _stream_long(mode: str) -> AsyncIterator[bytes]:
    """A completion of 50 MB: one long text, or the scores of ids that nobody gave out."""
    yield b'{"choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"'
    unknown = json.dumps('{"trajectory_id":"t%010d","reasons":"None.","score":0.5},')[1:-1].encode()
    piece = b"x" * 100_000 if mode != "long_ids" else b"".join(unknown % n for n in range(1500))
    yield json.dumps('{"scores":[')[1:-1].encode()
    for _ in range(SIZE // len(piece)):
        yield piece
    yield b'"}}],"usage":{"prompt_tokens":10,"completion_tokens":10}}'


async def _break_off() -> AsyncIterator[bytes]:
    """The beginning of an answer; then the server closes the connection."""
    yield b'{"choices":[{"index":0,'
    raise ConnectionResetError


class JudgeServer:
    """Serve while inside `with`. `behave` chooses the mode; `payloads` holds every request body in order."""

    def __init__(self) -> None:
        self.payloads: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.most_at_once = 0
        self.delay_s = 0.0
        self.on_call: Callable[[], None] = lambda: None
        self.context_chars: int | None = None  # what is longer is refused as too long
        self._now = 0
        self._rules: list[tuple[str, int | None, str]] = []
        self._retry_after: str | None = None
        self._sock = socket.create_server(("127.0.0.1", 0))
        app = FastAPI()
        app.post("/v1/chat/completions")(self._chat)
        config = uvicorn.Config(app, log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._sock]}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._sock.getsockname()[1]}/v1"

    @property
    def calls(self) -> int:
        return len(self.payloads)

    def behave(self, mode: str, *, times: int | None = None, only: str = "", retry_after: str | None = None) -> None:
        """Misbehave for `times` calls (None: always) whose prompt contains `only`, then be honest.

        Rules queue up: the first that applies and is not used up decides.
        """
        assert mode in REPLIES or mode in HTTP_MODES, mode
        self._rules.append((mode, times, only))
        self._retry_after = retry_after

    def set_rules(self, rules: list[tuple[str, int | None, str]]) -> None:
        """Put these rules (mode, times, only) in place of all others."""
        self._rules = rules

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=10)
        self._sock.close()

    def prompt(self, call: int = -1) -> str:
        """The record that a call's judge was shown: its user message."""
        return str(self.payloads[call]["messages"][1]["content"])

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.payloads.append(body)
        self.on_call()
        self.keys.append(request.headers.get("authorization", ""))
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            return await self._answer(self._mode(body["messages"][1]["content"]), body)
        finally:
            self._now -= 1

    def _mode(self, prompt: str) -> str:
        for i, (mode, left, only) in enumerate(self._rules):
            if only in prompt and (left is None or left > 0):
                self._rules[i] = (mode, None if left is None else left - 1, only)
                return mode
        return "honest"

    async def _answer(self, mode: str, body: dict[str, Any]) -> Response:
        if self.context_chars is not None and sum(len(m["content"]) for m in body["messages"]) > self.context_chars:
            mode = "too_long"
        if mode == "hang":
            while not self._server.should_exit:
                await asyncio.sleep(0.05)
            return Response(status_code=503)
        if mode == "html":
            return Response("<html>Bad gateway</html>", media_type="text/html")
        if mode in STATUSES:
            # A careless server: it echoes the key, in the message and in the code.
            code = CODES.get(mode, self.keys[-1])
            error = {"message": f"no, {self.keys[-1]}", "code": code, "type": "error", "param": None}
            headers = {"Retry-After": self._retry_after} if self._retry_after else {}
            return JSONResponse({"error": error}, status_code=STATUSES[mode], headers=headers)
        if mode == "error_page":
            return JSONResponse({"error": {"message": "upstream failed", "code": 502}})
        if mode in ("long", "long_ids", "long_error"):
            return StreamingResponse(
                _stream_long(mode), media_type="application/json", status_code=500 if mode == "long_error" else 200
            )
        if mode == "broken_off":
            return StreamingResponse(_break_off(), media_type="application/json", headers={"content-length": "5000"})
        prompt = body["messages"][1]["content"]
        if mode in UNFIT:
            text = _encode_reply(UNFIT[mode](prompt))
        else:
            text = "" if mode == "no_choices" else REPLIES.get(mode, _encode_reply)(honest_scores(prompt))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        words = sum(len(m["content"].split()) for m in body["messages"])
        completion: Any = {
            "id": f"chatcmpl-{self.calls}",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [] if mode == "no_choices" else [choice],
            "usage": {"prompt_tokens": words, "completion_tokens": len(text.split()), "total_tokens": 0},
        }
        if mode in ODD or mode in USELESS:
            completion = {**ODD, **USELESS}[mode](completion)
        # Not JSONResponse: it refuses NaN and half an emoji before we can send them.
        return Response(json.dumps(completion), media_type="application/json")
