"""An OpenAI-compatible server of planted policies for simulated windows: what they earn is known beforehand.

`habits` plays as the base policy was cloned; `habits+p` takes the oracle's action with probability p in place of its own, decision by
decision. The server finds the market's moment by the prompt's own lines, so the gateway and the agents know nothing of it. The answer is
drawn from the request's seed: the same request is answered alike by whoever is asked.
"""

import asyncio
import json
import random
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from babylon_rl.simulator.market import Market, make_market
from babylon_rl.simulator.observation import Observation, observe
from babylon_rl.simulator.portfolio import Portfolio
from babylon_rl.simulator.strategies import habits, oracle
from babylon_rl.windows import HourWindow

HABITS = "habits"


class PlantedPolicies:
    """Answers for the markets of one world.

    Attributes:
        shares: Model name → probability of the oracle's action.
    """

    def __init__(self, shares: dict[str, float]) -> None:
        self.shares = shares
        self._moments: dict[str, tuple[Market, int, Observation]] = {}

    def know(self, windows: Iterable[HourWindow], seed: int) -> None:
        """Draw the markets of these windows."""
        for w in windows:
            market = make_market(w, seed)
            for tick in range(market.decisions):
                seen = observe(market, Portfolio(), tick)
                self._moments[_moment_of(seen.text)] = (market, tick, seen)

    def answer(self, model: str, prompt: str, seed: int) -> str | None:
        """None: the model or the moment is unknown."""
        share, known = self.shares.get(model), self._moments.get(_moment_of(prompt))
        if share is None or known is None:
            return None
        market, tick, seen = known
        drawn = random.Random(seed)
        knows = drawn.random() < share
        own = habits(seen, drawn)
        return oracle(market, tick) if knows else own


def _moment_of(prompt: str) -> str:
    """The part of a prompt that every agent of a decision is shown alike."""
    return prompt.partition("\nStep ")[0]


@contextmanager
def serving(policies: PlantedPolicies) -> Iterator[str]:
    """Serve on a free loopback port; yields the address, ending in `/v1`."""
    app = FastAPI(openapi_url=None)

    async def complete(request: Request) -> Response:
        body: dict[str, Any] = json.loads(await request.body())
        text = policies.answer(body["model"], body["messages"][-1]["content"], int(body.get("seed") or 0))
        if text is None:
            return JSONResponse({"error": {"message": "unknown model or moment", "code": "model_not_found"}}, 404)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return JSONResponse(
            {
                "id": "planted",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [choice],
                "usage": usage,
            }
        )

    app.add_api_route("/v1/chat/completions", complete, methods=["POST"])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
