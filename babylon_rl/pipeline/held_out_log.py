"""What can be said of a checkpoint in a game that we cannot play: how it answers held-out windows of the log.

Held out are windows that may train and that no step up to the checkpoint has trained on; of many, the newest. Three
questions, each also of the base and paired by window: does it find the answers of the judge's best member likelier than
the others'; better answers likelier than worse ones; and what does it answer itself to the prompts of the best member?
None of it is money, and none says what the policy would earn.
"""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from babylon_rl.common.canonical import digest
from babylon_rl.common.progress import Progress, ignore_progress
from babylon_rl.errors import ConfigError, TransientError
from babylon_rl.pipeline.respondents import Respondent, ServedRespondent, load_base_and_checkpoint, open_client
from babylon_rl.pipeline.workspace import Workspace
from babylon_rl.policy.catalog import Snapshot
from babylon_rl.store.ledger_identity import read_recorded
from babylon_rl.store.log_evaluations import (
    FIGURES,
    Change,
    LogEvaluation,
    LogFigures,
    NotEvaluated,
    held_out_windows,
    read_log_evaluation,
    write_log_evaluation,
)
from babylon_rl.training.factory import locate_policy
from babylon_rl.training.trainer import ServedPolicy
from babylon_rl.types import Checkpoint, Turn, policy_name
from babylon_rl.windows import HourWindow

if TYPE_CHECKING:  # torch
    from babylon_rl.policy.likelihood import Likelihood

logger = logging.getLogger(__name__)

VERSION: Final = 1
"""Part of a suite's name: raise it where a figure is computed another way."""
MIN_WINDOWS: Final = 2  # an interval needs two
TURNS_PER_WINDOW: Final = 3  # held-out prompts that are answered, of a window's best member
_ACTION_KEYS: Final = ("action", "actionType", "action_type")
_NO_ACTIONS: Final = "no answer of the judge's best members names an action"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutWindow:
    """A judged window as it is asked about.

    Attributes:
        members: Turns of each member.
        scores: The judge's, beside `members`.
        best: The member with the highest score; of equals the first by trajectory id.
    """

    window_id: str
    members: tuple[tuple[Turn, ...], ...]
    scores: tuple[float, ...]
    best: int

    @property
    def asked(self) -> tuple[Turn, ...]:
        """The best member's turns whose prompts a policy is asked to answer."""
        return self.members[self.best][:TURNS_PER_WINDOW]


def evaluate_on_log(
    workspace: Workspace, checkpoint: Checkpoint, *, base_digest: str, progress: Progress = ignore_progress
) -> LogEvaluation | NotEvaluated:
    """Ask a checkpoint and its base about held-out windows, and keep what they say.

    What was said on the same windows, by the same judgments, is read back. Where nothing can be said that is kept too, with
    the reason, so that nobody asks for it again and again.

    Args:
        workspace: Its settings name the base, the temperature and most windows.
        checkpoint: Of the workspace's lineage.
        base_digest: Of the base; part of the suite's name.
        progress: Called after each answer.
    """
    engine, serving = workspace.store.engine, workspace.settings.serving
    held_out = held_out_windows(engine, checkpoint.lineage, checkpoint.step)
    chosen = held_out[-serving.evaluation_windows :]
    about = digest([VERSION, base_digest, [[w.window_id, w.judgment_key] for w in chosen]])[:12]
    suite = f"held-out-log-{len(chosen)}w-T{serving.serve_temperature:g}-{about}"
    if (known := read_log_evaluation(engine, checkpoint.lineage, checkpoint.step, suite)) is not None:
        return known
    result: LogEvaluation | NotEvaluated
    if len(chosen) < MIN_WINDOWS:
        result = NotEvaluated(
            reason=f"{len(chosen)} judged windows are held out of {checkpoint.name}, {MIN_WINDOWS} are needed; play or import more",
            windows=len(chosen),
            try_again=True,
        )
    else:
        windows = [_read_window(workspace, w.window_id, w.judgment_key) for w in chosen]
        try:
            result = asyncio.run(_evaluate(workspace, checkpoint, windows, suite, progress))
        except ConfigError as e:
            result = NotEvaluated(reason=str(e), windows=len(chosen))
        except TransientError as e:
            result = NotEvaluated(reason=str(e), windows=len(chosen), try_again=True)
    write_log_evaluation(engine, checkpoint.lineage, checkpoint.step, suite, result)
    logger.info("evaluated on the log policy=%s windows=%d %s", checkpoint.name, len(chosen), result.sentence())
    return result


def read_action(text: str) -> str | None:
    """The action that an answer names; None where it is no JSON object with one.

    A code fence around the JSON is taken off. Two answers act alike where this is equal.
    """
    body = text.strip()
    if body.startswith("```"):
        body = body.strip("`").removeprefix("json").strip()
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    if not isinstance(answer, dict):
        return None
    for key in _ACTION_KEYS:
        action = answer.get(key)
        if isinstance(action, str) and action.strip():
            return action.strip().upper()
        if action not in (None, ""):
            return json.dumps(action, sort_keys=True)
    return None


def rank_best_first(scores: Sequence[float], likelihoods: Sequence[float | None]) -> float | None:
    """Of the pairs of a best member and one with a lower score: the share whose best is likelier; a tie is half.

    Args:
        scores: The judge's.
        likelihoods: Per token, beside `scores`; None: unknown, and left out.

    Returns:
        None where no pair is known.
    """
    top = max(scores)
    best = [x for s, x in zip(scores, likelihoods, strict=True) if s == top and x is not None]
    others = [x for s, x in zip(scores, likelihoods, strict=True) if s < top and x is not None]
    pairs = [1.0 if b > o else 0.5 if b == o else 0.0 for b in best for o in others]
    return sum(pairs) / len(pairs) if pairs else None


def better_over_worse(scores: Sequence[float], likelihoods: Sequence[float | None]) -> float | None:
    """Mean likelihood of the members above the window's mean score, less that of those below it; None where one is empty."""
    middle = sum(scores) / len(scores)
    better = [x for s, x in zip(scores, likelihoods, strict=True) if s > middle and x is not None]
    worse = [x for s, x in zip(scores, likelihoods, strict=True) if s < middle and x is not None]
    return sum(better) / len(better) - sum(worse) / len(worse) if better and worse else None


async def _evaluate(
    workspace: Workspace, checkpoint: Checkpoint, windows: Sequence[HeldOutWindow], suite: str, progress: Progress
) -> LogEvaluation | NotEvaluated:
    settings = workspace.settings
    async with AsyncExitStack() as stack:
        base: Respondent
        policy: Respondent
        if checkpoint.trainer == "cpu":
            recorded = Snapshot(settings.checkpoints_dir, checkpoint.lineage, read_recorded(workspace.ledger.engine))
            servable = recorded.resolve(checkpoint.name)
            servable.check_files()
            if servable.directory is None:
                raise AssertionError(f"{checkpoint.name} is no base")
            base, policy = load_base_and_checkpoint(settings, checkpoint.name, servable.directory)
        else:
            served: ServedPolicy = locate_policy(
                settings.training, checkpoint, inference_url=settings.serving.inference_url
            )
            client = await stack.enter_async_context(open_client(settings, served))
            name = policy_name(checkpoint.lineage, 0)
            base = ServedRespondent(client, name, served.base_model, served)
            policy = ServedRespondent(client, checkpoint.name, served.model, served)
        figures = [
            await _ask(respondent, windows, settings.serving.serve_temperature, progress)
            for respondent in (policy, base)
        ]
    if not figures[0].answers:
        return NotEvaluated(
            reason=f"{checkpoint.name} took none of the held-out prompts: they are longer than its context, or its endpoint "
            "refuses them; choose a base with a longer context",
            windows=len(windows),
        )
    return _compare(suite, windows, *figures, no_likelihoods=policy.no_likelihoods)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ByWindow:
    """One policy's figures of each window, in the windows' order; None: not known."""

    name: str
    answers: int
    figures: Mapping[str, tuple[float | None, ...]]


async def _ask(
    respondent: Respondent, windows: Sequence[HeldOutWindow], temperature: float, progress: Progress
) -> _ByWindow:
    asked = [turn for w in windows for turn in w.asked]
    answers = iter(await respondent.answer(asked, temperature=temperature, progress=progress))
    answered = [[next(answers) for _ in w.asked] for w in windows]
    figures: dict[str, tuple[float | None, ...]] = {
        "invalid_rate": tuple(_mean(_invalid(w, a)) for w, a in zip(windows, answered, strict=True)),
        "same_action_rate": tuple(_mean(_same_action(w, a)) for w, a in zip(windows, answered, strict=True)),
    }
    if respondent.no_likelihoods is None:
        scored = iter(await respondent.score([turn for w in windows for m in w.members for turn in m]))
        likelihoods = [[_per_token([next(scored) for _ in m]) for m in w.members] for w in windows]
        pairs = list(zip(windows, likelihoods, strict=True))
        figures["ranks_best_first"] = tuple(rank_best_first(w.scores, x) for w, x in pairs)
        figures["better_over_worse_nats"] = tuple(better_over_worse(w.scores, x) for w, x in pairs)
    count = sum(text is not None for texts in answered for text in texts)
    return _ByWindow(name=respondent.name, answers=count, figures=figures)


def _invalid(window: HeldOutWindow, answers: Sequence[str | None]) -> list[float]:
    return [
        float(not text.strip() or (read_action(turn.response) is not None and read_action(text) is None))
        for turn, text in zip(window.asked, answers, strict=True)
        if text is not None
    ]


def _same_action(window: HeldOutWindow, answers: Sequence[str | None]) -> list[float]:
    return [
        float(read_action(text) == logged)
        for turn, text in zip(window.asked, answers, strict=True)
        if text is not None and (logged := read_action(turn.response)) is not None
    ]


def _per_token(likelihoods: "Sequence[Likelihood | None]") -> float | None:
    known = [x for x in likelihoods if x is not None]
    return sum(x.nats for x in known) / sum(x.tokens for x in known) if known else None


def _compare(
    suite: str, windows: Sequence[HeldOutWindow], policy: _ByWindow, base: _ByWindow, *, no_likelihoods: str | None
) -> LogEvaluation:
    from babylon_rl.common.statistics import paired_bootstrap

    of_policy: dict[str, float] = {}
    of_base: dict[str, float] = {}
    changes: dict[str, Change] = {}
    unknown: dict[str, str] = {}
    for name in FIGURES:
        values = zip(policy.figures.get(name, ()), base.figures.get(name, ()), strict=True)
        pairs = [(p, b) for p, b in values if p is not None and b is not None]
        if not pairs:
            unknown[name] = _explain_unknown(name, no_likelihoods)
            continue
        of_policy[name] = sum(p for p, _ in pairs) / len(pairs)
        of_base[name] = sum(b for _, b in pairs) / len(pairs)
        if len(pairs) >= MIN_WINDOWS:
            interval = paired_bootstrap([b for _, b in pairs], [p for p, _ in pairs])
            changes[name] = Change(mean=interval.mean, lo=interval.lo, hi=interval.hi, n=interval.n)
    return LogEvaluation(
        suite=suite,
        windows=tuple(w.window_id for w in windows),
        policy=LogFigures(name=policy.name, answers=policy.answers, **of_policy),
        base=LogFigures(name=base.name, answers=base.answers, **of_base),
        changes=changes,
        unknown=unknown,
    )


def _explain_unknown(name: str, no_likelihoods: str | None) -> str:
    if name in ("ranks_best_first", "better_over_worse_nats"):
        return no_likelihoods or "no window has answers with different scores that fit the policy's context"
    return _NO_ACTIONS if name == "same_action_rate" else "no prompt could be answered"


def _read_window(workspace: Workspace, window_id: str, judgment_key: str) -> HeldOutWindow:
    group = workspace.store.group(HourWindow.parse(window_id))
    judgment = workspace.store.find_judgment(judgment_key)
    if group is None or judgment is None or judgment.group_id != group.group_id:
        raise TransientError(f"window {window_id!r} was grouped or judged anew meanwhile; evaluate again")
    value = {s.trajectory_id: s.value for s in judgment.scores}
    members = [m for m in group.members if m.trajectory_id in value]
    scores = tuple(value[m.trajectory_id] for m in members)
    return HeldOutWindow(
        window_id=window_id, members=tuple(m.turns for m in members), scores=scores, best=scores.index(max(scores))
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
