"""The words that are stored with rows and windows, each with its meaning: what became of a row, and why a window waits."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Self


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
