"""The data types, in the order in which the pipeline makes them.

    SourceRow (`ingest/rows.py`) ─► Trajectory ─► TrajectoryGroup + Hindsight ─► Score ─► Checkpoint ─► Evaluation

What an agent was shown and what it answered (`Turn`) is in `TrajectoryGroup`: this is what trains. What was known
only afterwards (`Hindsight`) is a separate object that only a judge's prompt is built from: no type here holds both.
`None` means unknown; it is never `0.0`. Instants are aware and UTC; their names end in `_at`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

import msgspec

Json = dict[str, Any]
# Metadata of a dataclass field that canonical JSON leaves out where it has its default: stored bytes and ids from before
# the field stay what they were (`common/canonical.py`).
OMIT_DEFAULT: Final[Mapping[str, bool]] = {"omit_default": True}


class _DocumentedWord(StrEnum):
    """Strings that are stored as they are; the docstring of each says what it means."""

    meaning: str

    def __new__(cls, word: str, meaning: str = "") -> Self:  # `RowStatus("read")` finds a member by its word alone
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = member.__doc__ = meaning
        return member


class RowStatus(_DocumentedWord):
    """How far a source row came. `REASONS` says which reasons each has."""

    READ = "read", "it can be used, and `contextualized_groups` has not decided about it yet"
    GROUPED = "grouped", "it is part of its agent's trajectory `<window_id>/<agent_id>`, a member of `group_id`"
    INELIGIBLE = "ineligible", "it can be used, but no group holds it"
    DROPPED_OUT = "dropped_out", "it was grouped, and then its window was left out of judging and training"
    EXCLUDED = "excluded", "it is sound, but not meant for training"
    QUARANTINED = "quarantined", "it cannot be used"

    @property
    def is_set_aside(self) -> bool:
        """Whether reading decided it: the row is in no trajectory, and grouping never looks at it."""
        return self in (RowStatus.EXCLUDED, RowStatus.QUARANTINED)


class RowReason(_DocumentedWord):
    """Why a source row has its status."""

    HAS_TURN = "has_turn", "it holds at least one call that decided, each a turn of its trajectory"
    NO_TURN = "no_turn", "it holds no call that decided anything, so its trajectory has no turn of it"
    TOO_FEW_AGENTS = "too_few_agents", "too few distinct agents had anything to train on in that hour"
    NO_TURNS = "no_turns", "it holds no call that decided anything, so it counts for no group"
    DROPOUT = "dropout", "its whole window was left out at random, before anything was judged"
    BENCHMARK = "benchmark", "its scenario is a benchmark's"
    EVALUATION = "evaluation", "it was recorded as an evaluation"
    NOT_TRAINING_DATA = "not_training_data", "it is marked as no training data"
    MANY_CHARACTERS = (
        "many_characters",
        "it holds decisions of several characters under prompts that none of them was shown",
    )
    NO_STEPS = "no_steps", "it holds no steps, as a crashed tick leaves behind"
    NO_LLM_CALLS = "no_llm_calls", "no answered LLM call is logged for it, and none is invented"
    BAD_JSON = "bad_json", "its stepsJson is no JSON, perhaps cut off"
    BAD_SHAPE = "bad_shape", "its stepsJson is JSON of another shape than steps"
    BAD_TIME = "bad_time", "it starts at no instant of a calendar (infinity, BC, after 9999)"
    FUTURE_WINDOW = (
        "future_window",
        "its hour is more than one hour ahead of the clock; it is read when that hour has come",
    )
    LONE_SURROGATE = "lone_surrogate", "a text that would train holds half an emoji, which UTF-8 cannot carry"


REASONS: Final[Mapping[RowStatus, tuple[RowReason, ...]]] = {
    RowStatus.READ: (RowReason.HAS_TURN, RowReason.NO_TURN),
    RowStatus.GROUPED: (RowReason.HAS_TURN, RowReason.NO_TURN),
    RowStatus.INELIGIBLE: (RowReason.TOO_FEW_AGENTS, RowReason.NO_TURNS),
    RowStatus.DROPPED_OUT: (RowReason.DROPOUT,),
    RowStatus.EXCLUDED: (
        RowReason.BENCHMARK,
        RowReason.EVALUATION,
        RowReason.NOT_TRAINING_DATA,
        RowReason.MANY_CHARACTERS,
    ),
    RowStatus.QUARANTINED: (
        RowReason.NO_STEPS,
        RowReason.NO_LLM_CALLS,
        RowReason.BAD_JSON,
        RowReason.BAD_SHAPE,
        RowReason.BAD_TIME,
        RowReason.FUTURE_WINDOW,
        RowReason.LONE_SURROGATE,
    ),
}


class RetryKind(_DocumentedWord):
    """Why a window could not be prepared now. None of them is final: each is tried again, at a time that is stored."""

    WAITING_FOR_OUTCOMES = (
        "waiting_for_outcomes",
        "no market of the window has an outcome yet, so no ground truth to judge by",
    )
    JUDGE_FAILED = "judge_failed", "the judge answered, and gave this group nothing usable"
    JUDGE_DOWN = "judge_down", "the judge is out of reach or refuses us, whatever the group"
    OVER_BUDGET = "over_budget", "the next request could have crossed the day's judging budget"
    ERROR = "error", "preparing the window raised an exception"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOutcome:
    """What became of one source row. Every row read has exactly one.

    Attributes:
        window_id: Its hour, whatever its scenario.
    """

    source_id: str
    trajectory_id: str
    agent_id: str
    window_id: str
    status: RowStatus
    reason: RowReason
    group_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOutcomeCounts:
    """How many rows of one window have each outcome: (status, reason) → rows."""

    window_id: str
    rows: Mapping[tuple[RowStatus, RowReason], int]

    @property
    def total(self) -> int:
        return sum(self.rows.values())


class Turn(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One decision: exactly what the agent was shown and what it answered. The unit that trains.

    Each logged call was made from its own system and user prompt, so it trains as its own sequence.

    Attributes:
        policy_version: The checkpoint that answered (`babylon-mmo@3`), or None when the log does not say.
        is_cut: Set, and true, where the log says that the answer was cut at its length limit.
        max_tokens: Set to that limit only where the log does not say, and the answer is long enough to have met it.
    """

    system: str
    user: str
    response: str
    policy_version: str | None = None
    temperature: float | None = None
    # What is unset is not written, so that all other turns keep their bytes, and their groups their ids.
    is_cut: bool | msgspec.UnsetType = msgspec.UNSET
    max_tokens: int | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """All of one agent's rows of one window, stitched in time order.

    Attributes:
        trajectory_id: `<window>/<agent>`: stable however the rows arrived.
        window_id: The hour, and the scenario where its rows name one.
        row_ids: Source ids of the rows stitched, in time order.
        turns: What trains, in time order. Empty when no call decided anything; then the trajectory is not kept.
        decisions: The game's action objects beside the turns. Hindsight: judge only.
        start_balance_usd: Balance when the agent entered the window, if known.
        pnl_usd: Money made inside the window (lifetime P&L differenced), if known.
        game_knowledge: `metadataJson.gameKnowledge` of its rows, and what else of their metadata is hindsight. Judge only.
        archetype: The kind of player that the game says the agent is; in the newest row that says so.
    """

    trajectory_id: str
    agent_id: str
    window_id: str
    row_ids: tuple[str, ...]
    turns: tuple[Turn, ...]
    decisions: tuple[Json, ...]
    start_balance_usd: float | None
    pnl_usd: float | None
    game_knowledge: Json
    archetype: str | None = field(default=None, metadata=OMIT_DEFAULT)


@dataclass(frozen=True, slots=True, kw_only=True)
class StockOutcome:
    """What a perp's price really did inside the window.

    Attributes:
        change_pct: From start to end; None when it started at 0.
        high_price: Highest of the start price and the prices inside the hour; unknown where only `market_outcomes` tells.
        volatility_pct: Realized: the root of the summed squared returns from price to price, in percent.
        starts_inside: Whether `start_price` is the first price inside the hour, because none before it is known.
        other_names: What else rows and prompts call this market, without `$`: its organisation's id and name.
    """

    ticker: str
    start_price: float | None
    end_price: float | None
    change_pct: float | None
    sentiment: str | None = None
    news: tuple[str, ...] = ()
    high_price: float | None = field(default=None, metadata=OMIT_DEFAULT)
    low_price: float | None = field(default=None, metadata=OMIT_DEFAULT)
    volatility_pct: float | None = field(default=None, metadata=OMIT_DEFAULT)
    starts_inside: bool = field(default=False, metadata=OMIT_DEFAULT)
    other_names: tuple[str, ...] = field(default=(), metadata=OMIT_DEFAULT)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionOutcome:
    """How a YES/NO market stood at the end of the window.

    Attributes:
        outcome: `YES` or `NO` where it resolved before the window's end, else None.
        final_probability: Of YES, the last price inside the window.
        start_probability: The last price before the window, if known.
        resolves_later_to: `YES` or `NO`: the answer that the game had fixed for the question when it asked it, for a market
            that was still open at the window's end.
    """

    market_id: str
    question: str
    outcome: str | None
    final_probability: float | None = None
    start_probability: float | None = field(default=None, metadata=OMIT_DEFAULT)
    resolves_later_to: str | None = field(default=None, metadata=OMIT_DEFAULT)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowOutcomes:
    """The truth about one closed window, each market once, in a fixed order."""

    window_id: str
    stocks: tuple[StockOutcome, ...] = ()
    predictions: tuple[PredictionOutcome, ...] = ()

    @property
    def known(self) -> bool:
        return bool(self.stocks or self.predictions)

    @property
    def overall_trend(self) -> str | None:
        """`BULLISH`, `BEARISH` or `NEUTRAL`: the sign of the stocks' mean change; None when no change is known."""
        changes = self._changes_pct()
        if not changes:
            return None
        mean = sum(changes) / len(changes)
        return "BULLISH" if mean > 0 else "BEARISH" if mean < 0 else "NEUTRAL"

    @property
    def volatility_pct(self) -> float | None:
        """How much the stocks moved, whichever way: the root of their mean squared change, in percent."""
        changes = self._changes_pct()
        return math.sqrt(sum(c * c for c in changes) / len(changes)) if changes else None

    def _changes_pct(self) -> list[float]:
        return [s.change_pct for s in self.stocks if s.change_pct is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMember:
    """One agent's trajectory as it may be trained on: nothing in it was known only afterwards.

    Attributes:
        archetype: The kind of player it is. It trains nothing, so neither group id nor judgment depends on it.
    """

    trajectory_id: str
    agent_id: str
    turns: tuple[Turn, ...]
    archetype: str | None = field(default=None, metadata=OMIT_DEFAULT)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryGroup:
    """Trajectories of distinct agents that faced the same window; members sorted by trajectory id.

    Attributes:
        window_id: The hour, and the scenario where its rows name one.
    """

    group_id: str
    window_id: str
    members: tuple[GroupMember, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberHindsight:
    """What became of one member. Judge only."""

    trajectory_id: str
    start_balance_usd: float | None
    pnl_usd: float | None
    decisions: tuple[Json, ...]
    game_knowledge: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindsight:
    """What no agent of the group could know. Only a judge's prompt is built from it."""

    group_id: str
    window_id: str
    outcomes: WindowOutcomes
    members: tuple[MemberHindsight, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A judge's number in [0, 1] for one trajectory; comparable only inside its group."""

    trajectory_id: str
    value: float
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgment:
    """One group judged once.

    Attributes:
        key: Hash of all that went in (messages, hindsight, rubric, judge, prompt version).
        prompt_tokens: As the server reported them, over all requests that this judgment took.
        details: Small values for metadata: the prompt's form, its tokens in both forms, passes, position consistency,
            requests; `left_out`; `outcomes` is `none` where it was made without market outcomes.
    """

    key: str
    group_id: str
    window_id: str
    judge_model: str
    judge_version: str
    scores: tuple[Score, ...]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    details: Json = field(default_factory=dict)

    @property
    def left_out(self) -> Mapping[str, str]:
        """Members that the judge could not rank: trajectory id → why, for the middle of a sentence."""
        left_out: dict[str, str] = self.details.get("left_out", {})
        return left_out

    @property
    def outcomes(self) -> str:
        """`known`, or `none`: it was judged by P&L alone, because no market outcome came."""
        return str(self.details.get("outcomes", "known"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A trained policy's immutable weights: a LoRA adapter beside its base.

    Attributes:
        lineage: Name of the training run it belongs to; each window is used once per lineage.
        step: 1, 2, 3, …; step 0 is the base policy and has no row.
        path: Directory of the adapter, or the backend's own name for it when the weights are remote.
        windows: Exactly the windows it was trained on, in time order.
        judgment_keys: The judgments used, in the same order.
    """

    lineage: str
    step: int
    window_id: str
    trainer: str
    path: str
    windows: tuple[str, ...]
    judgment_keys: tuple[str, ...]
    metrics: Mapping[str, float]

    @property
    def name(self) -> str:
        return policy_name(self.lineage, self.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The result of one check on one window; `facts` are small, for metadata."""

    passed: bool
    facts: Json


def policy_name(lineage: str, step: int) -> str:
    """The one name of a checkpoint everywhere: served model, logged policy version, metadata."""
    return f"{lineage}@{step}"
