"""`TrajectoryRecorder`: the Python twin of the game's TypeScript recorder.

What belongs here: collecting what an agent was shown, answered and did, and writing it as the game writes it,
in the snake_case tables. Nothing here reads them. Rows are read back by `ingest/reader.py`.
"""

import json
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from babylon_rl.database import game_tables
from babylon_rl.database.bulk_copy import insert_new
from babylon_rl.database.ownership import refuse_foreign_game
from babylon_rl.errors import DataError
from babylon_rl.ingest.snowflakes import SnowflakeIds
from babylon_rl.ingest.steps import make_storable
from babylon_rl.types import Json
from babylon_rl.windows import HourWindow

logger = logging.getLogger(__name__)

_TRADE_WORDS: Final = ("BUY", "SELL", "TRADE", "OPEN_", "CLOSE_", "LONG", "SHORT")
# Not the rewards: the game rewrites them afterwards.
_SAME_TRAJECTORY: Final = ("agent_id", "start_time", "window_id", "steps_json")
_SAME_CALL: Final = ("trajectory_id", "response")


@dataclass(slots=True)
class _OpenStep:
    number: int
    at: datetime
    environment: Json
    provider_accesses: list[Json] = field(default_factory=list)
    llm_calls: list[Json] = field(default_factory=list)


@dataclass(slots=True)
class _OpenTrajectory:
    trajectory_id: str
    agent_id: str
    window_id: str
    scenario_id: str
    episode_id: str | None
    metadata: Json
    started_at: datetime
    steps: list[Json] = field(default_factory=list)
    step: _OpenStep | None = None
    logs: list[Json] = field(default_factory=list)


class TrajectoryRecorder:
    """Record trajectories: start → (start step → log accesses and calls → complete step)* → end.

    A trajectory and its calls are written in one transaction when it ends, or, inside `batch()`, with
    all others when the batch ends. Misuse raises `DataError` and records nothing.

    Example:
        t = recorder.start_trajectory(agent_id="agent-1")
        recorder.start_step(t, {"agentBalance": 10_000.0, "agentPnL": 0.0, "openPositions": 0})
        recorder.log_llm_call(t, model="babylon-mmo", model_version="babylon-mmo@3", system_prompt="…",
                              user_prompt="…", response="…", temperature=0.0)
        recorder.complete_step(t, action_type="BUY", parameters={"ticker": "TRUMP"}, success=True)
        recorder.end_trajectory(t, final_balance=10_050.0, final_pnl=50.0)
    """

    def __init__(
        self,
        engine: sa.Engine,
        *,
        clock: Callable[[], datetime],
        new_id: Callable[[], str] | None = None,
        into_foreign_game: bool = False,
    ) -> None:
        """Write through `engine`.

        Args:
            engine: Of the database with the game's snake_case tables.
            clock: Aware time of the game, real or simulated.
            new_id: Makes the ids; default `SnowflakeIds(clock)`, which replays the same ids for the
                same clock. Recorders that run side by side need ids of their own.
            into_foreign_game: Write although our migrations did not create the tables; else that raises `ConfigError`.
        """
        self._engine = engine
        self._into_foreign_game = into_foreign_game
        self._clock = clock
        self._new_id = new_id or SnowflakeIds(clock)
        self._open: dict[str, _OpenTrajectory] = {}
        self._batch: list[tuple[Json, list[Json]]] | None = None

    def start_trajectory(
        self,
        *,
        agent_id: str,
        scenario_id: str | None = None,
        episode_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Open a trajectory in the window of the clock; the scenario is that window unless one is given.

        Returns:
            Its trajectory id.
        """
        now = self._now()
        window_id = str(HourWindow.containing(now))
        trajectory_id = self._new_id()
        if trajectory_id in self._open:
            raise DataError(f"trajectory id {trajectory_id!r} was made twice; expected `new_id` to make unique ids")
        self._open[trajectory_id] = _OpenTrajectory(
            trajectory_id, agent_id, window_id, scenario_id or window_id, episode_id, dict(metadata or {}), now
        )
        return trajectory_id

    def start_step(self, trajectory_id: str, environment: Mapping[str, Any]) -> None:
        """Open the next step with what the agent sees: `agentBalance`, `agentPnL`, `openPositions`, …."""
        t = self._find_open_trajectory(trajectory_id)
        if t.step is not None:
            raise DataError(
                f"trajectory {trajectory_id!r} has step {t.step.number} still open; complete it before the next starts"
            )
        t.step = _OpenStep(len(t.steps), self._now(), dict(environment))

    def log_provider_access(self, trajectory_id: str, *, provider: str, data: Any, purpose: str) -> None:
        """Log what a data provider gave the agent in the open step."""
        step = self._find_open_step(trajectory_id)
        step.provider_accesses.append({"providerName": provider, "data": data, "purpose": purpose})

    def log_llm_call(
        self,
        trajectory_id: str,
        *,
        model: str,
        model_version: str | None,
        system_prompt: str,
        user_prompt: str,
        response: str,
        purpose: str = "action",
        temperature: float | None = None,
        max_tokens: int | None = None,
        finish_reason: str | None = None,
        latency_ms: float | None = None,
        action_type: str | None = None,
        reasoning: str | None = None,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Log one call of a model in the open step.

        Args:
            trajectory_id: An open trajectory.
            model: The model as it was asked for.
            model_version: The policy that answered, `babylon-mmo@3`; kept in the step and in the log's metadata.
            system_prompt: Exactly as sent.
            user_prompt: Exactly as sent.
            response: Exactly as received.
            purpose: `action` for the call that decides; others never train.
            temperature: As sent, if known.
            max_tokens: As sent, if known.
            finish_reason: As received (`stop`, `length`), if known; from it training knows that an answer was cut.
            latency_ms: Wall time, if known.
            action_type: What the response decided, if known.
            reasoning: The model's separate reasoning, if it gave one.
            prompt_tokens: As billed, if known.
            completion_tokens: As billed, if known.
            metadata: More for the log row.
        """
        t, step = self._find_open_trajectory(trajectory_id), self._find_open_step(trajectory_id)
        system_prompt, user_prompt, response = map(make_storable, (system_prompt, user_prompt, response))
        reasoning = None if reasoning is None else make_storable(reasoning)
        step.llm_calls.append(
            {
                "model": model,
                "modelVersion": model_version,
                "systemPrompt": system_prompt,
                "userPrompt": user_prompt,
                "response": response,
                "reasoning": reasoning,
                "temperature": temperature,
                "maxTokens": max_tokens,
                "latencyMs": latency_ms,
                "purpose": purpose,
                "actionType": action_type,
                **({} if finish_reason is None else {"finishReason": finish_reason}),
            }
        )
        step_id = f"{trajectory_id}-{step.number}"
        known = prompt_tokens is not None and completion_tokens is not None
        t.logs.append(
            {
                "id": self._new_id(),
                "trajectory_id": trajectory_id,
                "step_id": step_id,
                "call_id": f"{step_id}-{len(step.llm_calls) - 1}",
                "timestamp": _to_column(self._now()),
                "latency_ms": None if latency_ms is None else round(latency_ms),
                "model": model,
                "purpose": purpose,
                "action_type": action_type,
                "system_prompt": system_prompt,
                "user_prompt": user_prompt,
                "response": response,
                "reasoning": reasoning,
                "temperature": temperature,
                "max_tokens": max_tokens,
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": (prompt_tokens or 0) + (completion_tokens or 0) if known else None,
                "metadata": _to_json({**(metadata or {}), "modelVersion": model_version}),
            }
        )

    def complete_step(
        self,
        trajectory_id: str,
        *,
        action_type: str,
        parameters: Any,
        success: bool,
        result: Any = None,
        error: str | None = None,
        reward: float | None = 0.0,
        correctness: Any = None,
    ) -> None:
        """Close the open step with what the agent did and what came of it.

        `result`, `error` and `correctness` are hindsight: they are in the action only when given.
        """
        t, step = self._find_open_trajectory(trajectory_id), self._find_open_step(trajectory_id)
        action: Json = {"actionType": action_type, "parameters": parameters, "success": success}
        later = {"result": result, "error": error, "correctness": correctness}
        action |= {k: v for k, v in later.items() if v is not None}
        t.steps.append(
            {
                "stepNumber": step.number,
                "timestamp": int(step.at.timestamp() * 1000),
                "environmentState": step.environment,
                "providerAccesses": step.provider_accesses,
                "llmCalls": step.llm_calls,
                "action": action,
                "reward": reward,
            }
        )
        t.step = None

    def end_trajectory(
        self,
        trajectory_id: str,
        *,
        final_balance: float | None = None,
        final_pnl: float | None = None,
        final_status: str = "completed",
        is_training_data: bool = True,
        is_evaluation: bool = False,
    ) -> None:
        """Close the trajectory and write it with its calls in one transaction (or leave it to the batch).

        Raises:
            DataError: A step is open, or the id is already in the table. Nothing was written.
        """
        t = self._find_open_trajectory(trajectory_id)
        if t.step is not None:
            raise DataError(
                f"trajectory {trajectory_id!r} has step {t.step.number} still open; complete it before the trajectory ends"
            )
        now = self._now()
        row = {
            "id": self._new_id(),
            "trajectory_id": t.trajectory_id,
            "agent_id": t.agent_id,
            "start_time": _to_column(t.started_at),
            "end_time": _to_column(now),
            "duration_ms": round((now - t.started_at).total_seconds() * 1000),
            "window_id": t.window_id,
            "window_hours": 1,
            "episode_id": t.episode_id,
            "scenario_id": t.scenario_id,
            "steps_json": _to_json(t.steps),
            "reward_components_json": "{}",
            "metrics_json": _to_json({"episodeLength": len(t.steps), "finalStatus": final_status}),
            "metadata_json": _to_json(t.metadata),
            "total_reward": float(sum(s["reward"] or 0.0 for s in t.steps)),
            "episode_length": len(t.steps),
            "final_status": final_status,
            "final_balance": final_balance,
            "final_pnl": final_pnl,
            "trades_executed": _count_actions(t.steps, _TRADE_WORDS),
            "posts_created": _count_actions(t.steps, ("POST",)),
            "is_training_data": is_training_data,
            "is_evaluation": is_evaluation,
        }
        if self._batch is None:
            try:
                with self._engine.begin() as conn:
                    refuse_foreign_game(conn, "the recorder", into_foreign_game=self._into_foreign_game)
                    conn.execute(sa.insert(game_tables.trajectories), [row])
                    if t.logs:
                        conn.execute(sa.insert(game_tables.llm_call_logs), t.logs)
            except sa.exc.IntegrityError as e:
                raise DataError(
                    f"trajectory {trajectory_id!r} was not written: {str(e.orig).splitlines()[0]}; expected ids that no "
                    "row has yet; give recorders that share a clock different `new_id`s",
                    facts={"trajectory_id": trajectory_id},
                ) from None
        else:
            self._batch.append((row, t.logs))
        del self._open[trajectory_id]

    @contextmanager
    def batch(self) -> Generator[None]:
        """Write all trajectories that end inside in one transaction, when the block ends without an error.

        A batch that is played again writes nothing twice: existing rows stay as they are. A batch within a batch joins
        it; one that ends by an exception writes nothing.

        Raises:
            DataError: An id is in the tables already, for another trajectory. Nothing was written.
        """
        if self._batch is not None:
            yield
            return
        self._batch = []
        try:
            yield
            rows, logs = [row for row, _ in self._batch], [log for _, ls in self._batch for log in ls]
        finally:
            self._batch = None
        with self._engine.begin() as conn:
            refuse_foreign_game(conn, "the recorder", into_foreign_game=self._into_foreign_game)
            written = insert_new(conn, game_tables.trajectories, rows, key="trajectory_id", must_agree=_SAME_TRAJECTORY)
            calls = insert_new(conn, game_tables.llm_call_logs, logs, key="call_id", must_agree=_SAME_CALL)
        logger.info("recorded trajectories=%d calls=%d already_there=%d", written, calls, len(rows) - written)

    def _now(self) -> datetime:
        now = self._clock()
        if now.tzinfo is None:
            raise DataError(f"the recorder's clock gave {now!r}, without a time zone; expected an aware instant")
        now = now.astimezone(UTC)
        # The column keeps milliseconds and rounds: 10:59:59.9996 would be stored as the next hour.
        return now.replace(microsecond=now.microsecond // 1000 * 1000)

    def _find_open_trajectory(self, trajectory_id: str) -> _OpenTrajectory:
        try:
            return self._open[trajectory_id]
        except KeyError:
            raise DataError(
                f"trajectory {trajectory_id!r} is not open; expected an id from start_trajectory that has not ended"
            ) from None

    def _find_open_step(self, trajectory_id: str) -> _OpenStep:
        step = self._find_open_trajectory(trajectory_id).step
        if step is None:
            raise DataError(f"trajectory {trajectory_id!r} has no open step; call start_step first")
        return step


def _to_column(at: datetime) -> datetime:
    """As the game's `timestamp` columns keep it: UTC, without a zone."""
    return at.replace(tzinfo=None)


def _to_json(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))  # escapes a lone surrogate, as JavaScript does


def _count_actions(steps: Sequence[Json], words: tuple[str, ...]) -> int:
    """Successful actions whose type has one of `words`."""
    actions = (s["action"] for s in steps)
    return sum(bool(a["success"]) and any(w in str(a["actionType"]).upper() for w in words) for a in actions)
