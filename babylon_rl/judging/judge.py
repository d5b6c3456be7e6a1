"""What every judge is, the key that a judgment is stored under, and the rules that its scores obey.

No judge lives here: `hindsight_judge.py`, `random_judge.py` and `ruler/` do. `factory.py` picks one, `score.py` asks it.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, Protocol, Self, runtime_checkable

from babylon_rl.common.canonical import digest
from babylon_rl.errors import DataError, TransientError
from babylon_rl.types import GroupMember, Hindsight, Judgment, MemberHindsight, Score, TrajectoryGroup

MAX_EXPLANATION_CHARS: Final = 4000
FEWEST_RANKED: Final = 2  # one member is compared with nobody


class BudgetSpentError(DataError):
    """The next request could cross the day's budget; it was not sent."""


class NoOutcomesError(DataError):
    """Nothing of the window's truth is known yet; its group can be judged once it is."""


class TooFewRankedError(DataError):
    """Too few members can be ranked, and only other rows change that: asking again would find the same."""


class UnavailableError(TransientError):
    """The judge gave no answer; nothing says that the group is at fault.

    Attributes:
        retry_after_s: Seconds that the judge asked us to wait; None: it named no time.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class JudgeDownError(UnavailableError):
    """The judge was not asked, because it has not answered other groups either."""


class Judge(Protocol):
    """Gives each member of a group one score in [0, 1], comparable only inside the group.

    A judge is asked inside `async with judge:`, which closes what it opened for the running loop; it may be entered
    again, in another loop too. `score_groups` and `audit` enter it.

    Attributes:
        model: Who judges: `hindsight`, or a LiteLLM model id.
        version: Names everything else that shapes a score (formula or prompt and rubric).
    """

    model: str
    version: str

    def key(self, group: TrajectoryGroup, hindsight: Hindsight) -> str:
        """Hash of everything a judgment depends on: with an equal key, judging again would pay twice for the same.

        Raises:
            DataError: The group holds text that cannot be encoded.
        """

    async def judge(self, group: TrajectoryGroup, hindsight: Hindsight) -> Judgment:
        """Score one group.

        Raises:
            DataError: This group cannot be judged; others may.
            NoOutcomesError: It cannot be judged yet.
            TooFewRankedError: It cannot be judged while its rows stay as they are.
            BudgetSpentError: It was not judged because the day's budget is spent.
            UnavailableError: The judge gave no answer to this group.
            JudgeDownError: It gives nobody an answer for now; asking about other groups would send nothing.
            ConfigError: The judge refuses us (key, model, address, quota); no group can be judged.
        """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


@runtime_checkable
class JudgeWithoutOutcomes(Protocol):
    """A judge that can also rank a group by P&L alone, where no market outcome is known."""

    async def judge_without_outcomes(self, group: TrajectoryGroup, hindsight: Hindsight) -> Judgment:
        """Score one group whose outcomes nobody waits for any longer; the judgment's details say so.

        Raises:
            NoOutcomesError: Not even the P&L of two members is known.
            BabylonRLError: As `Judge.judge`.
        """
        ...


def has_known_pnl(member: MemberHindsight) -> bool:
    """Whether a member's P&L inside the window is a number; NaN and infinity, which doubles can carry, are none."""
    return member.pnl_usd is not None and math.isfinite(member.pnl_usd)


class ConnectionlessJudge:
    """Base of judges that hold no connection: entering and leaving `async with` do nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close nothing."""


def pair_with_hindsight(group: TrajectoryGroup, hindsight: Hindsight) -> list[tuple[GroupMember, MemberHindsight]]:
    """Pair each member with its hindsight, by trajectory id; the order of either does not matter.

    Raises:
        DataError: The two do not name the same trajectories, or name one twice.
    """
    if not group.members:
        raise DataError(f"group {group.group_id!r} has no members; rematerialize `contextualized_groups` for its hour")
    members = sorted(group.members, key=lambda m: m.trajectory_id)
    known = sorted(hindsight.members, key=lambda m: m.trajectory_id)
    member_ids, known_ids = [m.trajectory_id for m in members], [h.trajectory_id for h in known]
    if member_ids != known_ids or len(set(member_ids)) != len(member_ids):
        odd = sorted(set(member_ids) ^ set(known_ids)) or [t for t, n in Counter(member_ids).items() if n > 1]
        raise DataError(
            f"group {group.group_id!r} and its hindsight do not name the same trajectories once each: {odd[:5]!r} "
            f"differ; rematerialize `contextualized_groups` for its hour",
            facts={"group_id": group.group_id, "trajectory_ids": odd[:20]},
        )
    return list(zip(members, known, strict=True))


def judgment_key(group: TrajectoryGroup, hindsight: Hindsight, *, model: str, version: str, rubric: str) -> str:
    """SHA-256 over messages, hindsight, rubric, judge model and version; member order does not matter.

    Only what can change a score is hashed: not the policy version or temperature of a turn.

    Raises:
        DataError: The two do not name the same trajectories, or hold text that cannot be encoded.
    """
    pairs = pair_with_hindsight(group, hindsight)
    outcomes = hindsight.outcomes
    ingredients: dict[str, Any] = {
        "model": model,
        "version": version,
        "rubric": rubric,
        "group_id": group.group_id,
        "window_id": group.window_id,
        "messages": [[m.trajectory_id, [[t.system, t.user, t.response] for t in m.turns]] for m, _ in pairs],
        "became": [h for _, h in pairs],
        "stocks": sorted(outcomes.stocks, key=lambda s: s.ticker),
        "predictions": sorted(outcomes.predictions, key=lambda p: p.market_id),
    }
    try:
        return digest(ingredients)
    except (UnicodeError, TypeError, ValueError) as e:
        failure = DataError(
            f"group {group.group_id!r} holds a value that canonical JSON cannot carry ({type(e).__name__}), such as "
            "half an emoji; the reader of rows should have set it aside: rematerialize `raw_trajectories`",
            facts={"group_id": group.group_id},
        )
    raise failure


def require_outcomes(group: TrajectoryGroup, hindsight: Hindsight) -> None:
    """Refuse a group without outcomes: without ground truth a judge scores style.

    Raises:
        NoOutcomesError: No market of the window has an outcome.
    """
    if not hindsight.outcomes.known:
        raise NoOutcomesError(
            f"group {group.group_id!r} has no outcomes, so no ground truth to be judged by; run "
            "`babylon-rl sync-outcomes` once the hour is over, then materialize `market_outcomes`",
            facts={"group_id": group.group_id, "window": group.window_id},
        )


def require_pnls(group: TrajectoryGroup, hindsight: Hindsight) -> None:
    """Refuse a group of which neither outcomes nor two members' P&L are known: a judge would score style.

    Raises:
        NoOutcomesError: Fewer than two members' P&L is known.
    """
    known = sum(map(has_known_pnl, hindsight.members))
    if known < FEWEST_RANKED:
        raise NoOutcomesError(
            f"group {group.group_id!r} has no outcomes, and the P&L of {known} of its {len(hindsight.members)} members is "
            f"known, so there is no ground truth to be judged by; expected outcomes, or the P&L of {FEWEST_RANKED}; run "
            "`babylon-rl sync-outcomes`, then materialize `market_outcomes`",
            facts={"group_id": group.group_id, "window": group.window_id},
        )


def validate_scores(
    group: TrajectoryGroup, scores: Iterable[Score], *, left_out: Collection[str] = ()
) -> tuple[Score, ...]:
    """Check that there is one finite score in [0, 1] for each ranked member and for nobody else.

    Args:
        group: The group that was judged.
        scores: In any order; matched by trajectory id, never by position.
        left_out: Members that are not ranked.

    Returns:
        The scores by trajectory id, explanations made fit for a text column.

    Raises:
        DataError: An id is missing, unknown or doubled, or a value is not a number in [0, 1].
    """
    given: Sequence[Score] = sorted(scores, key=lambda s: s.trajectory_id)
    wanted = {m.trajectory_id for m in group.members} - set(left_out)
    counts = Counter(s.trajectory_id for s in given)
    faults = [
        *(f"{t!r} has no score" for t in sorted(wanted - counts.keys())),
        *(f"{t!r} is not a ranked member" for t in sorted(counts.keys() - wanted)),
        *(f"{t!r} has {n} scores" for t, n in sorted(counts.items()) if n > 1),
        *(f"{s.trajectory_id!r} has {s.value!r}" for s in given if not in_unit_interval(s.value)),
    ]
    if faults:
        raise DataError(
            f"scores of group {group.group_id!r} do not fit: {'; '.join(faults[:5])}; expected one finite score in "
            "[0, 1] for each member; nothing of this group was kept",
            facts={"group_id": group.group_id, "faults": faults[:20]},
        )
    return tuple(
        Score(trajectory_id=s.trajectory_id, value=float(s.value), explanation=_clean_text(s.explanation))
        for s in given
    )


def in_unit_interval(value: object) -> bool:
    """Whether a value is a real number in [0, 1]; `True` and NaN are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= 1


def _clean_text(text: str) -> str:
    """Postgres takes neither NUL nor half an emoji; a judge can send both."""
    clean = text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8").strip()
    return clean if len(clean) <= MAX_EXPLANATION_CHARS else clean[: MAX_EXPLANATION_CHARS - 1] + "…"
