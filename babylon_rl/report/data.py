"""The numbers of one demo: written as `report.json`, and the source of every other form of the report.

Money is in `currency`, rates are in [0, 1], there are no instants. Everything is measured before it comes
here; the only arithmetic allowed on it is rounding for display (`formatting.py`).
"""

import math
from dataclasses import dataclass, fields, is_dataclass

import msgspec

from babylon_rl.common.canonical import to_json as canonical_json
from babylon_rl.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFigures:
    """One policy on the held-out windows.

    Attributes:
        mean_pnl: Mean P&L of a window.
        win_rate: Share of windows it ended above zero.
        invalid_rate: Share of its answers that were no legal action.
    """

    name: str
    mean_pnl: float
    win_rate: float
    invalid_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lift:
    """Final less base, paired by window.

    Attributes:
        ci95: 95 % bootstrap interval, low end first.
        share_of_oracle_gap: Share of the way from base to oracle; None where the oracle is not above the base.
    """

    mean: float
    ci95: tuple[float, float]
    share_of_oracle_gap: float | None

    @property
    def includes_zero(self) -> bool:
        """Whether the interval includes a difference of zero; one that ends at zero does."""
        return self.ci95[0] <= 0 <= self.ci95[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploring:
    """Base and final on the same held-out windows at the exploring temperature.

    This is the policy as it trained; at a lower serving temperature its likeliest answers weigh more.
    """

    temperature: float
    base_mean_pnl: float
    final_mean_pnl: float
    lift: Lift


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One checkpoint, evaluated on the held-out windows; step 0 is the base.

    Attributes:
        explored_mean_pnl: Mean P&L in the windows played to train the *next* step, at the exploring temperature.
        mean_pnl: Mean P&L of a held-out window, at the serving temperature.
        lo: Low end of the 95 % interval of `mean_pnl`.
        hi: High end of it.
        loss: Of the training that made this checkpoint; None for the base.
    """

    step: int
    explored_mean_pnl: float | None
    mean_pnl: float
    lo: float
    hi: float
    win_rate: float
    invalid_rate: float
    loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderRow:
    """One agent in one window. `score` is the judge's, comparable in this window only; None when not judged."""

    rank: int
    agent_id: str
    policy: str
    pnl_usd: float
    score: float | None
    explanation: str
    archetype: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderboard:
    """All agents of one window."""

    window_id: str
    rows: tuple[LeaderRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePoint:
    """What was known of a rollout after one window: candidate less incumbent, an agent and window.

    Attributes:
        mean: None until enough windows have been compared, as are its ends.
    """

    window_id: str
    stage: str
    mean: float | None
    lo: float | None
    hi: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveArm:
    """One arm of a rollout, over all its windows.

    Attributes:
        agent_windows: Hours of agents that count: an agent of one window is one.
        mean_pnl: Of such an hour; None where there is none.
        win_rate: Share of them that ended above zero.
        right_move_rate: Share of trades that the market then moved with.
        invalid_rate: Share of its decisions that were no legal action.
        volume_share: Of what both arms traded.
    """

    name: str
    arm: str
    agent_windows: int
    mean_pnl: float | None
    win_rate: float | None
    right_move_rate: float | None
    invalid_rate: float | None
    volume_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveMove:
    """One move of a rollout."""

    window_id: str | None
    kind: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InTheGame:
    """A rollout as live windows decided it.

    Attributes:
        decision: How it stands, in one sentence.
        calls: Answered by the gateway in these windows.
        level: Of the interval, whenever it is looked at.
    """

    decision: str
    calls: int
    level: float
    arms: tuple[LiveArm, ...] = ()
    points: tuple[LivePoint, ...] = ()
    moves: tuple[LiveMove, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """Everything in a report.

    Attributes:
        windows: Held-out windows base and final played, the same ones, never trained on.
        training_windows: Windows consumed by training, all iterations together.
        iterations: Trainings that happened.
        temperature: At which base and final were evaluated, and at which they are served.
        explore_temperature: At which agents played the windows that train.
        judge: `hindsight` (no LLM), or the model that scored.
        oracle_mean_pnl: What a player who knows the hidden market makes of the same windows.
        seconds: Wall time by phase, in the order in which the phases began.
        machine: Cores only, never a name.
        next_commands: A command and what it does.
        paired: Final less base for each held-out window, if known.
        exploring: The same comparison at the exploring temperature, if it was made.
        in_the_game: The last checkpoint's rollout, if there was one.
    """

    windows: int
    training_windows: int
    iterations: int
    seed: int
    temperature: float
    explore_temperature: float
    judge: str
    base: PolicyFigures
    final: PolicyFigures
    oracle_mean_pnl: float
    lift: Lift
    curve: tuple[CurvePoint, ...]
    leaderboard: Leaderboard
    seconds: dict[str, float]
    machine: str
    next_commands: tuple[tuple[str, str], ...]
    currency: str = "USD"
    paired: tuple[float, ...] = ()
    exploring: Exploring | None = None
    in_the_game: InTheGame | None = None


def to_json(report: DemoReport) -> bytes:
    """Write a report as canonical JSON (keys sorted), indented, with a newline at the end.

    Raises:
        DataError: A number is not finite: JSON would turn it into null, which means unknown.
    """
    _require_finite(report, "report")
    return msgspec.json.format(canonical_json(report), indent=2) + b"\n"


def _require_finite(value: object, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where} is {value}, expected a finite number, or None where None is allowed")
    if is_dataclass(value):
        for f in fields(value):
            _require_finite(getattr(value, f.name), f"{where}.{f.name}")
    elif isinstance(value, dict):
        for key, item in value.items():
            _require_finite(item, f"{where}.{key}")
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            _require_finite(item, f"{where}[{i}]")
