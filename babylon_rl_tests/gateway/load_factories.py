"""A gateway under load: real processes, real checkpoints, clients that keep what they were answered, and who was deployed when."""

import asyncio
import itertools
import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil
import sqlalchemy as sa
from gateway_factories import LINEAGE
from recording_factories import move, record_checkpoint

from babylon_rl.base_policy.corpus import draw_markets
from babylon_rl.database.connection import connect, platform_url
from babylon_rl.database.embedded import ensure_server, stop_server
from babylon_rl.database.migrate import upgrade
from babylon_rl.deployment.stages import Deployment, MoveKind
from babylon_rl.gateway.process import running_gateway
from babylon_rl.policy.checkpoints import METADATA_FILE, checkpoint_dir
from babylon_rl.policy.model import load_policy
from babylon_rl.policy.shipped import shipped_base
from babylon_rl.settings import Settings
from babylon_rl.simulator.observation import SYSTEM_PROMPT, observe
from babylon_rl.simulator.portfolio import Portfolio
from babylon_rl_tests.factories import WINDOW

ANSWER_TOKENS = 12
STALE_S = 2.0
"""A move is followed within this time."""


def write_checkpoints(settings: Settings, engine: sa.Engine, steps: Sequence[int]) -> None:
    """Random adapters on the shipped base, recorded: each answers otherwise than the others."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    first = checkpoint_dir(settings.checkpoints_dir, LINEAGE, steps[0])
    recipe = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(load_policy(shipped_base()).model, recipe).save_pretrained(str(first))
    weights = load_file(first / "adapter_model.safetensors")
    for step in steps:
        directory = checkpoint_dir(settings.checkpoints_dir, LINEAGE, step)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "adapter_config.json").write_bytes((first / "adapter_config.json").read_bytes())
        save_file({k: v * (1 + step / 100) for k, v in weights.items()}, directory / "adapter_model.safetensors")
        (directory / METADATA_FILE).write_text("{}")
        record_checkpoint(engine, step, directory)


@dataclass(slots=True)
class Site:
    """A folder with a database server of its own, which may be restarted, and a gateway of it, which may be killed."""

    home: Path
    settings: Settings
    engine: sa.Engine
    url: str = ""
    pid: int = 0
    _running: ExitStack = field(default_factory=ExitStack)

    def start_gateway(self) -> None:
        before = {p.pid for p in psutil.Process().children()}
        self.url = self._running.enter_context(running_gateway(self.settings))
        (self.pid,) = {
            p.pid
            for p in psutil.Process().children()
            if p.pid not in before and "babylon_rl.gateway.server" in p.cmdline()
        }

    def kill_gateway(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._running.close()

    def stop_gateway(self) -> None:
        self._running.close()

    def restart_database(self, away_s: float = 0.5) -> None:
        stop_server(self.home)
        time.sleep(away_s)
        ensure_server(self.home)

    def read_health(self) -> dict[str, Any]:
        health: dict[str, Any] = httpx.get(self.url.removesuffix("/v1") + "/healthz", trust_env=False).json()
        return health

    def wait_until_written(self, timeout_s: float = 20) -> None:
        end = time.monotonic() + timeout_s
        while self.read_health()["calls_unwritten"]:
            assert time.monotonic() < end
            time.sleep(0.05)

    def rows(self) -> dict[str, tuple[str, str, int]]:
        """Call id → policy, arm and status of every row of `served_calls`."""
        query = "SELECT call_id, lineage || '@' || step, arm, status FROM babylon_rl.served_calls"
        with self.engine.connect() as conn:
            found = conn.exec_driver_sql(query).all()
        assert len(found) == len({r[0] for r in found})
        return {call_id: (policy, arm, status) for call_id, policy, arm, status in found}


@contextmanager
def opened_site(steps: Sequence[int]) -> Iterator[Site]:
    """A site with recorded checkpoints and no gateway yet."""
    # Not below pytest's own directory: it is not readable for the system user that PostgreSQL runs as under root.
    with tempfile.TemporaryDirectory(prefix="babylon-test-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        settings = Settings.load(
            BABYLON_HOME=folder,
            DATABASE_URL=ensure_server(home),  # named, so that a gateway cannot start it by itself
            BABYLON_PLATFORM_URL=None,
            BABYLON_LINEAGE=LINEAGE,
        )
        try:
            upgrade(settings.database)
            engine = connect(platform_url(settings.database))
            write_checkpoints(settings, engine, steps)
            site = Site(home, settings, engine)
            try:
                yield site
            finally:
                site.stop_gateway()
                engine.dispose()
        finally:
            stop_server(home)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An answer that a client has whole; times are `time.monotonic`."""

    call_id: str
    policy: str
    arm: str
    asked_at: float
    ended_at: float
    streamed: bool


@dataclass(slots=True)
class Clients:
    """Agents that ask as fast as they are answered."""

    url: str
    count: int
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    answers: list[Answered] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def as_rows(self) -> dict[str, tuple[str, str, int]]:
        """What `Site.rows` gives where each answer is a row."""
        return {a.call_id: (a.policy, a.arm, 200) for a in self.answers}

    async def play_for(self, seconds: float) -> None:
        """Ask for some time, and be answered to the end."""
        playing = asyncio.create_task(self.play())
        await asyncio.sleep(seconds)
        self.stop.set()
        await playing

    async def play(self) -> None:
        """Ask until `stop`; every fourth call is streamed, every sixteenth names the base."""
        texts = [observe(m, Portfolio(), 0).text for m in draw_markets("load", 1, 16)]
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:
            await asyncio.gather(*(self._play_one(session, f"agent-{i}", texts) for i in range(self.count)))

    async def _play_one(self, session: aiohttp.ClientSession, agent: str, texts: Sequence[str]) -> None:
        for n in itertools.count(hash(agent) % 16):
            if self.stop.is_set():
                return
            model = f"{LINEAGE}@0" if n % 16 == 0 else LINEAGE
            try:
                self.answers.append(
                    await ask(session, self.url, model, texts[n % len(texts)], agent, stream=n % 4 == 1)
                )
            except (AssertionError, aiohttp.ClientError, TimeoutError, ValueError) as e:
                self.failures.append(f"{type(e).__name__}: {e}"[:300])
                await asyncio.sleep(0.05)


async def ask(
    session: aiohttp.ClientSession, url: str, model: str, user: str, agent: str, *, stream: bool = False
) -> Answered:
    """Ask once, and read the answer to its end.

    Raises:
        AssertionError: It is no whole answer.
    """
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": user}]
    body = {"model": model, "messages": messages, "max_tokens": ANSWER_TOKENS, "stream": stream}
    headers = {"x-babylon-agent": agent, "x-babylon-window": str(WINDOW)}
    asked_at = time.monotonic()
    async with session.post(f"{url}/chat/completions", json=body, headers=headers) as response:
        text = await response.text()
        assert response.status == 200, f"{response.status} {text[:200]}"
        if stream:
            events = [e.removeprefix("data: ") for e in text.split("\n\n") if e]
            assert events[-1] == "[DONE]", text[-200:]
            bodies = [json.loads(e) for e in events[:-1]]
        else:
            bodies = [json.loads(text)]
        assert {(b["id"], b["model"]) for b in bodies} == {
            (response.headers["x-babylon-call"], response.headers["x-babylon-policy"])
        }
        return Answered(
            call_id=bodies[0]["id"],
            policy=bodies[0]["model"],
            arm=response.headers["x-babylon-arm"],
            asked_at=asked_at,
            ended_at=time.monotonic(),
            streamed=stream,
        )


@dataclass(slots=True)
class History:
    """Who was deployed when: (before the move, after it, what it made), times as `time.monotonic`."""

    moves: list[tuple[float, float, Deployment]] = field(
        default_factory=lambda: [(0.0, 0.0, Deployment(lineage=LINEAGE))]
    )

    def move(self, engine: sa.Engine, kind: MoveKind, step: int) -> None:
        before = time.monotonic()
        made = move(engine, kind, step)
        self.moves.append((before, time.monotonic(), made))

    def may_answer(self, a: Answered) -> bool:
        """Whether the policy was deployed at some time of the call, or within `STALE_S` before it."""
        return a.policy in self._deployed(a.asked_at - STALE_S, a.ended_at, pinned=a.arm == "pinned")

    def lag_s(self, a: Answered) -> float:
        """Seconds from the move that took the policy away to the call that it answered all the same; 0 where none did."""
        if a.arm == "pinned" or a.policy in self._deployed(a.asked_at, a.ended_at, pinned=False):
            return 0.0
        pairs = itertools.pairwise(self.moves)
        gone = [after for (_, _, d), (_, after, new) in pairs if a.policy in _names(d) - _names(new)]
        return max((a.asked_at - at for at in gone if at <= a.asked_at), default=0.0)

    def _deployed(self, begin: float, end: float, *, pinned: bool) -> set[str]:
        names = {f"{LINEAGE}@0"} if pinned else set()
        for i, (before, _, d) in enumerate(self.moves):
            until = self.moves[i + 1][1] if i + 1 < len(self.moves) else float("inf")
            if before <= end and until >= begin:
                names |= _names(d)
        return names


def _names(d: Deployment) -> set[str]:
    return {d.incumbent_name} | ({d.candidate_name} if d.candidate_name is not None else set())


def describe(clients: Clients, history: History, rows: dict[str, tuple[str, str, int]]) -> dict[str, Any]:
    """What a run under load has shown."""
    took = sorted(a.ended_at - a.asked_at for a in clients.answers)
    answers = clients.as_rows
    return {
        "answers": len(answers),
        "streamed": sum(a.streamed for a in clients.answers),
        "failed_requests": len(clients.failures),
        "failures": sorted(Counter(clients.failures).items())[:5],
        "by_policy": dict(sorted(Counter(a.policy for a in clients.answers).items())),
        "by_arm": dict(sorted(Counter(a.arm for a in clients.answers).items())),
        "moves": len(history.moves) - 1,
        "from_no_deployed_policy": sum(not history.may_answer(a) for a in clients.answers),
        "longest_lag_behind_a_move_ms": round(1000 * max(map(history.lag_s, clients.answers), default=0.0), 1),
        "rows": len(rows),
        "answers_without_their_row": sum(rows.get(k) != v for k, v in answers.items()),
        "rows_without_their_answer": len(rows.keys() - answers.keys()),
        "latency_ms": {f"p{p}": round(1000 * took[len(took) * p // 100], 1) for p in (50, 95, 99)} if took else {},
    }


async def run_under_load(site: Site, clients: Clients, history: History, *, seconds: float, restart_at: float) -> None:
    """Clients ask for `seconds`, ten moves are spread over them, and the database restarts once in between.

    Args:
        site: With its gateway started.
        clients: Of that gateway.
        history: Gets the moves.
        seconds: Of the whole.
        restart_at: Part of the time after which the database restarts.
    """
    playing = asyncio.create_task(clients.play())
    begun = time.monotonic()
    restarted = False
    for i, (kind, step) in enumerate(TEN_MOVES):
        due = begun + seconds * (i + 1) / (len(TEN_MOVES) + 1)
        if not restarted and i / len(TEN_MOVES) >= restart_at:
            restarted = True
            await asyncio.to_thread(site.restart_database)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.to_thread(history.move, site.engine, kind, step)
    await asyncio.sleep(max(0.0, begun + seconds - time.monotonic()))
    clients.stop.set()
    with suppress(asyncio.CancelledError):
        await playing


TEN_MOVES = (
    (MoveKind.CANARY, 1),
    (MoveKind.PROMOTED, 1),
    (MoveKind.CANARY, 2),
    (MoveKind.ROLLED_BACK, 2),
    (MoveKind.CANARY, 3),
    (MoveKind.PROMOTED, 3),
    (MoveKind.CANARY, 4),
    (MoveKind.PROMOTED, 4),
    (MoveKind.CANARY, 5),
    (MoveKind.PROMOTED, 5),
)
STEPS = (1, 2, 3, 4, 5)
