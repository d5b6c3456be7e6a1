"""RULER's method (one LLM ranks a whole group by a rubric), by our own call.

ART's published call maps scores by position, accepts NaN and 7.5, never asks again, and lets agents' text close its
fence. Here ids are matched exactly; a judge whose reply is invalid is told why and asked again, a bounded number of
times; if no reply is valid, only this group fails. Every request is logged before it is sent, and its reply before it
is parsed: a process killed at any moment pays again only for the requests in flight.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from babylon_rl.errors import BabylonRLError, DataError
from babylon_rl.judging.judge import judgment_key, require_outcomes, require_pnls, validate_scores
from babylon_rl.judging.ruler.call_log import Call, CallLog, CallStatus, NullCallLog
from babylon_rl.judging.ruler.circuit_breaker import CircuitBreaker
from babylon_rl.judging.ruler.completion import KEPT_OF_TOO_LONG, Reply
from babylon_rl.judging.ruler.endpoint import BusyError, Endpoint, Message, TooLongError
from babylon_rl.judging.ruler.order import MAX_PASSES, combine_passes, orders, pass_agreement
from babylon_rl.judging.ruler.prices import Price, limits_of, price_of
from babylon_rl.judging.ruler.prompt import (
    NO_OUTCOMES,
    PROMPT_VERSION,
    PROTOCOL,
    JudgePrompt,
    labels,
    write_forms,
)
from babylon_rl.judging.ruler.reply import RESPONSE_FORMAT, ReplyFault, ReplyScore, read_reply
from babylon_rl.judging.ruler.retry import RateLimiter, RetryPolicy
from babylon_rl.judging.ruler.sub_batches import (
    ShownBatch,
    balance_places,
    balanced_key,
    combine_sub_batches,
    score_in_sub_batches,
)
from babylon_rl.types import Hindsight, Json, Judgment, Score, TrajectoryGroup

logger = logging.getLogger(__name__)

ASKS: Final = 3  # the first, and two more that name the fault of the reply before
TRADING_RUBRIC: Final = Path(__file__).parent / "rubrics" / "trading.md"
# Token limit of a reply: reasons for each member, and room for a model that reasons before it answers.
REPLY_TOKENS: Final = 4_000
REPLY_TOKENS_EACH: Final = 400


@dataclass(slots=True, kw_only=True)
class _PendingJudgment:
    """One judgment under way: what it is for, and what it has cost so far."""

    group: TrajectoryGroup
    hindsight: Hindsight
    key: str
    spent: list[tuple[Reply, float]] = field(default_factory=list)
    shown: list[ShownBatch] = field(default_factory=list)  # one for each valid reply
    details: Json = field(default_factory=dict)


class _Opened(NamedTuple):
    """What a judge holds while it is in use; the circuit breaker belongs to the running loop."""

    breaker: CircuitBreaker
    writer: ThreadPoolExecutor


class RulerJudge:
    """An LLM that scores a group at a time. Satisfies `Judge`: ask it inside `async with`.

    Attributes:
        price: Of the model's tokens; None: unknown, and its judgments are stored with a cost of 0 US dollars.
        passes: Permuted passes over each group.
        version: Of prompt and rubric; `-x3` with three passes; `@<digest>` of the name that tells it from other servers
            under the same model id, where it has one. So neither judgments nor audits of one count for another.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        model: str,
        rubric: str,
        passes: int = 1,
        max_concurrency: int = 8,
        requests_per_minute: float | None = None,
        context_tokens: int | None = None,
        price: Price | None = None,
        retry_policy: RetryPolicy | None = None,
        call_log: CallLog | None = None,
        name: str | None = None,
    ) -> None:
        if not 1 <= passes <= MAX_PASSES:
            raise ValueError(f"passes is {passes}, expected 1 to {MAX_PASSES}")
        self.model = model
        self.passes = passes
        self.version = f"ruler-{PROMPT_VERSION}-{sha256((rubric + PROTOCOL).encode()).hexdigest()[:8]}"
        if passes > 1:
            self.version += f"-x{passes}"
        if name is not None:
            self.version += f"@{sha256(name.encode()).hexdigest()[:8]}"
        self.price: Price | None = price or price_of(model)
        limits = limits_of(model)
        self._context = context_tokens or limits.prompt_tokens
        self._longest_reply = limits.completion_tokens
        self._endpoint = endpoint
        self._rubric = rubric
        self._retry_policy = retry_policy or RetryPolicy()
        self._rate_limiter = RateLimiter(requests_per_minute)
        self._max_concurrency = max_concurrency
        self._call_log = call_log or NullCallLog()
        self._opened: _Opened | None = None
        if self.price is None:
            logger.warning("judge has no known price, its cost counts as 0 model=%s", model)

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise RuntimeError(f"judge {self.model!r} is in use already; enter another one")
        breaker = CircuitBreaker(
            self._retry_policy,
            judge=self.model,
            max_in_flight=self._max_concurrency,
            rate_limiter=self._rate_limiter,
        )
        self._opened = _Opened(breaker, ThreadPoolExecutor(1, "judge-prompt"))
        return self

    async def __aexit__(self, *_: object) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.writer.shutdown(cancel_futures=True)
        await self._endpoint.close()

    def key(self, group: TrajectoryGroup, hindsight: Hindsight) -> str:
        # What the prompt says only where no outcome is known is no part of the version, so it is part of such keys.
        rubric = self._rubric if hindsight.outcomes.known else self._rubric + NO_OUTCOMES
        return judgment_key(group, hindsight, model=self.model, version=self.version, rubric=rubric)

    def order(self, group: TrajectoryGroup, hindsight: Hindsight) -> list[list[str]]:
        """Trajectory ids in the order in which each pass shows them."""
        return self._order(group, self.key(group, hindsight))

    def _order(self, group: TrajectoryGroup, key: str) -> list[list[str]]:
        return orders(list(labels(group, f"{key}|p0")), self.passes)

    async def judge(self, group: TrajectoryGroup, hindsight: Hindsight) -> Judgment:
        require_outcomes(group, hindsight)
        return await self._judge(group, hindsight)

    async def judge_without_outcomes(self, group: TrajectoryGroup, hindsight: Hindsight) -> Judgment:
        if hindsight.outcomes.known:
            return await self._judge(group, hindsight)
        require_pnls(group, hindsight)
        judgment = await self._judge(group, hindsight)
        return replace(judgment, details={**judgment.details, "outcomes": "none"})

    async def _judge(self, group: TrajectoryGroup, hindsight: Hindsight) -> Judgment:
        pending = _PendingJudgment(group=group, hindsight=hindsight, key=self.key(group, hindsight))
        shown = self._order(group, pending.key)
        scored = [await self._score_members(pending, f"p{n}", members) for n, members in enumerate(shown)]
        passes = [{t: s.value for t, s in one.items()} for one in scored]
        # One pass alone says nothing about places, so its sub-batches are neither balanced nor stored as such.
        balanced = self.passes > 1 and len(pending.shown) > self.passes
        values = combine_sub_batches(pending.shown, passes) if balanced else combine_passes(passes, shown)
        agreement = pass_agreement(passes)
        return Judgment(
            key=balanced_key(pending.key) if balanced else pending.key,
            group_id=group.group_id,
            window_id=group.window_id,
            judge_model=self.model,
            judge_version=self.version,
            scores=validate_scores(
                group, (_explain(t, value, [one[t] for one in scored]) for t, value in values.items())
            ),
            **self._usage(pending),
            details={
                **pending.details,
                "passes": self.passes,
                "requests": len(pending.spent),
                **({} if agreement is None else {"position_consistency": round(agreement, 4)}),
            },
        )

    async def _score_members(self, pending: _PendingJudgment, slot: str, members: Sequence[str]) -> dict[str, Score]:
        """One pass over `members` in their order: in the form that fits, or in sub-batches when none does.

        Raises:
            TooLongError: Not even two members fit the judge's context.
            DataError: No reply could be used.
        """
        chosen = set(members)
        group = replace(pending.group, members=tuple(m for m in pending.group.members if m.trajectory_id in chosen))
        hindsight = replace(
            pending.hindsight, members=tuple(m for m in pending.hindsight.members if m.trajectory_id in chosen)
        )
        # In one thread beside the loop: prompts of other groups go out while this one is written, and no more than one
        # writer takes the interpreter from the loop.
        write = partial(write_forms, group, hindsight, rubric=self._rubric, key=f"{pending.key}|{slot}", order=members)
        forms = await asyncio.get_running_loop().run_in_executor(self._in_use().writer, write)
        if slot == "p0":
            pending.details |= {"plain_tokens": forms.plain_tokens, "compact_tokens": forms.compact_tokens}
        too_long: TooLongError | None = None
        for name, prompt, tokens in forms.by_preference():
            if self._context is not None and tokens > self._context:
                too_long = TooLongError(
                    f"the prompt of group {group.group_id!r} takes {tokens} tokens, judge {self.model!r} takes "
                    f"{self._context}"
                )
                continue
            try:
                reply_scores = await self._ask_until_valid(pending, prompt, tokens, slot)
            except TooLongError as e:
                too_long = e
                continue
            if slot == "p0":
                pending.details["form"] = name
            scored = {
                prompt.ids[label]: Score(trajectory_id=prompt.ids[label], value=s.score, explanation=s.reasons)
                for label, s in reply_scores.items()
            }
            pending.shown.append(ShownBatch(tuple(members), {t: s.value for t, s in scored.items()}))
            return scored
        if len(members) <= 2:
            raise TooLongError(
                f"group {pending.group.group_id!r}: two of its trajectories are longer than judge {self.model!r} takes "
                f"({too_long}); set a JUDGE_MODEL with a longer context",
                facts={"group_id": pending.group.group_id, **self._usage(pending)},
            )
        if slot == "p0":
            pending.details["form"] = "heats"  # the stored name of sub-batches, also of earlier judgments
        logger.info("judging in sub-batches group=%s slot=%s members=%d", pending.group.group_id, slot, len(members))
        reasons: dict[str, Score] = {}

        async def run(batch: Sequence[str], name: str) -> dict[str, float]:
            batch_slot = f"{slot}/{name}"
            if self.passes > 1:  # under other names than before they were balanced: other prompts, other replies
                batch_slot = f"{slot}/b{name[1:]}"
                batch = balance_places(batch, pending.shown, key=f"{pending.key}|{batch_slot}")
            scored = await self._score_members(pending, batch_slot, batch)
            reasons.update({t: s for t, s in scored.items() if t not in reasons})
            return {t: s.value for t, s in scored.items()}

        scores = await score_in_sub_batches(members, run)
        return {t: replace(reasons[t], value=v) for t, v in scores.items()}

    async def _ask_until_valid(
        self, pending: _PendingJudgment, prompt: JudgePrompt, tokens: int, slot: str
    ) -> dict[str, ReplyScore]:
        """Ask, and ask again with the fault named. Replies that a killed process left in the log come first.

        Raises:
            DataError: No reply could be used; the facts say what the replies cost.
        """
        question: list[Message] = [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": prompt.user},
        ]
        correction: list[Message] = []
        fault = ""
        logged = self._call_log.replies(pending.key, slot)
        pending.spent += [(r, self._cost(r)) for r in logged]
        if logged:
            try:
                return read_reply(logged[-1].text, prompt.ids)
            except ReplyFault:
                # A complete attempt is not continued; one that was interrupted is.
                logged = logged[len(logged) // ASKS * ASKS :]
        for n in range(1, 1 + ASKS):
            reply = logged.pop(0) if logged else await self._request(pending, [*question, *correction], tokens, slot)
            try:
                if reply.fault is not None:
                    raise ReplyFault(reply.fault)
                return read_reply(reply.text, prompt.ids)
            except ReplyFault as e:
                fault = str(e)
            if reply.finish_reason == "length":
                fault = "The reply was cut off at the length limit. Give shorter reasons."
            # Only the last reply goes back, and of a long one its beginning: the conversation must not grow with the
            # judge's mistakes.
            correction = [
                {"role": "assistant", "content": reply.text[:KEPT_OF_TOO_LONG] or "(nothing)"},
                {"role": "user", "content": f"{fault} Answer again, complete, for these ids: {', '.join(prompt.ids)}."},
            ]
            logger.info("judge reply was faulty group=%s ask=%d of=%d", pending.group.group_id, n, ASKS)
        raise DataError(
            f"group {pending.group.group_id!r}: judge {self.model!r} gave no usable reply in {ASKS} asks; the last "
            f"fault: {fault} It is asked again later; should that not help, set another JUDGE_MODEL",
            facts={"group_id": pending.group.group_id, "fault": fault, **self._usage(pending)},
        )

    async def _request(self, pending: _PendingJudgment, messages: list[Message], tokens: int, slot: str) -> Reply:
        cap = REPLY_TOKENS + REPLY_TOKENS_EACH * len(pending.group.members)
        cap = min(cap, self._longest_reply) if self._longest_reply else cap
        if len(messages) > 2:  # the faulty reply and its correction are sent along
            tokens += cap + 200
        call = Call(
            judgment_key=pending.key,
            slot=slot,
            window_id=pending.group.window_id,
            group_id=pending.group.group_id,
            judge_model=self.model,
            judge_version=self.version,
            prompt_tokens=tokens,
            reserved_usd=self.price.of(tokens, cap) if self.price else 0.0,
        )

        async def once() -> Reply:
            call_id = await asyncio.to_thread(self._call_log.begin, call)  # a commit waits for the disk
            try:
                reply = await self._endpoint.ask(messages, RESPONSE_FORMAT, max_completion_tokens=cap)
            except Exception as e:
                # What we cannot explain may have been paid for.
                owed = e.maybe_paid if isinstance(e, BusyError) else not isinstance(e, BabylonRLError)
                await asyncio.to_thread(self._call_log.end, call_id, CallStatus.LOST if owed else CallStatus.REFUSED)
                raise
            # A reply without a token count is booked with all that was reserved for it.
            cost = self._cost(reply) if reply.prompt_tokens else call.reserved_usd
            await asyncio.to_thread(self._call_log.end, call_id, CallStatus.REPLIED, reply, cost)
            pending.spent.append((reply, cost))
            return reply

        return await self._in_use().breaker.run(once, group_id=pending.group.group_id, seed=pending.key)

    def _in_use(self) -> _Opened:
        if self._opened is None:
            raise RuntimeError(f"judge {self.model!r} was asked outside `async with judge:`")
        return self._opened

    def _cost(self, reply: Reply) -> float:
        return self.price.of(reply.prompt_tokens, reply.completion_tokens) if self.price else 0.0

    def _usage(self, pending: _PendingJudgment) -> dict[str, Any]:
        return {
            "prompt_tokens": sum(r.prompt_tokens for r, _ in pending.spent),
            "completion_tokens": sum(r.completion_tokens for r, _ in pending.spent),
            "cost_usd": sum(cost for _, cost in pending.spent),
        }


def trading_rubric() -> str:
    """The rubric that ships with us; its text is part of every judgment's key."""
    return TRADING_RUBRIC.read_text(encoding="utf-8")


def _explain(trajectory_id: str, value: float, scores: Sequence[Score]) -> Score:
    """A score with the reasons of the pass whose score is nearest to it."""
    nearest = min(scores, key=lambda s: abs(s.value - value))
    return Score(trajectory_id=trajectory_id, value=value, explanation=nearest.explanation)
