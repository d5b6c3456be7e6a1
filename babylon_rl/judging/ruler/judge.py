"""RULER's method (one LLM ranks a whole group by a rubric), by a call of our own.

ART's published call maps scores by position, takes NaN and 7.5, never asks again, and lets agents' text close its
fence. Here ids are matched to the letter, a bad reply is shown its fault and asked for again, a bounded number of
times, and what then is still bad fails this group alone. Every request is in the journal before it goes out, and its
reply before it is read: a process killed at any moment pays again for what was in flight, and for nothing else.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from babylon_rl.errors import BabylonRLError, DataError
from babylon_rl.judging.judge import judgment_key, require_outcomes, validated
from babylon_rl.judging.ruler.call_log import Call, Ended, Journal, NoJournal
from babylon_rl.judging.ruler.endpoint import BusyError, Endpoint, Message, Reply, TooLongError
from babylon_rl.judging.ruler.order import MAX_PASSES, combined, consistency, orders
from babylon_rl.judging.ruler.prices import Price, limits_of, price_of
from babylon_rl.judging.ruler.prompt import PROMPT_VERSION, PROTOCOL, Forms, JudgePrompt, labels, write_forms
from babylon_rl.judging.ruler.reply import RESPONSE_FORMAT, ReplyFault, ReplyScore, read_reply
from babylon_rl.judging.ruler.retry import Pace, Patience
from babylon_rl.judging.ruler.sub_batches import in_heats
from babylon_rl.types import Hindsight, Json, Judgment, Score, TrajectoryGroup

logger = logging.getLogger(__name__)

RE_ASKS: Final = 2
ASKS: Final = 1 + RE_ASKS
TRADING_RUBRIC: Final = Path(__file__).parent / "rubrics" / "trading.md"
# What a reply may take: reasons for each member, and what a model that thinks first spends on thinking.
REPLY_TOKENS: Final = 4_000
REPLY_TOKENS_EACH: Final = 400


@dataclass(slots=True, kw_only=True)
class _Work:
    """One judgment under way: what it is for, and what it has cost so far."""

    group: TrajectoryGroup
    hindsight: Hindsight
    key: str
    spent: list[tuple[Reply, float]] = field(default_factory=list)
    details: Json = field(default_factory=dict)


class RulerJudge:
    """An LLM that scores a group at a time. Satisfies `Judge` and `Journaled`.

    Attributes:
        price: What the model's tokens cost, or None when no table knows it: its judgments then say 0 US dollars.
        passes: Permuted passes over each group.
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
        patience: Patience | None = None,
    ) -> None:
        if not 1 <= passes <= MAX_PASSES:
            raise ValueError(f"passes is {passes}, expected 1 to {MAX_PASSES}")
        self.model = model
        self.passes = passes
        self.version = f"ruler-{PROMPT_VERSION}-{sha256((rubric + PROTOCOL).encode()).hexdigest()[:8]}"
        if passes > 1:
            self.version += f"-x{passes}"
        self.price: Price | None = price or price_of(model)
        limits = limits_of(model)
        self._context = context_tokens or limits.prompt_tokens
        self._longest_reply = limits.completion_tokens
        self._endpoint = endpoint
        self._rubric = rubric
        self._patience = patience or Patience()
        self._pace = Pace(requests_per_minute)
        self._max_concurrency = max_concurrency
        self._slots: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None
        self._journal: Journal = NoJournal()
        self._writer = ThreadPoolExecutor(1, "judge-prompt")
        if self.price is None:
            logger.warning("judge has no known price, its cost counts as 0 model=%s", model)

    def keep_in(self, journal: Journal) -> None:
        """Write every request down in `journal` from now on, and use the replies it holds."""
        self._journal = journal

    def key(self, group: TrajectoryGroup, hindsight: Hindsight) -> str:
        return judgment_key(group, hindsight, model=self.model, version=self.version, rubric=self._rubric)

    def order(self, group: TrajectoryGroup, hindsight: Hindsight) -> list[list[str]]:
        """Trajectory ids in the order in which each pass shows them."""
        return self._order(group, self.key(group, hindsight))

    def _order(self, group: TrajectoryGroup, key: str) -> list[list[str]]:
        return orders(list(labels(group, f"{key}|p0")), self.passes)

    async def judge(self, group: TrajectoryGroup, hindsight: Hindsight) -> Judgment:
        require_outcomes(group, hindsight)
        work = _Work(group=group, hindsight=hindsight, key=self.key(group, hindsight))
        shown = self._order(group, work.key)
        said = [await self._judged(work, f"p{n}", members) for n, members in enumerate(shown)]
        passes = [{t: s.value for t, s in one.items()} for one in said]
        values = combined(passes, shown)
        agreement = consistency(passes)
        return Judgment(
            key=work.key,
            group_id=group.group_id,
            window_id=group.window_id,
            judge_model=self.model,
            judge_version=self.version,
            scores=validated(group, (_told(t, value, [one[t] for one in said]) for t, value in values.items())),
            **self._spent(work),
            details={
                **work.details,
                "passes": self.passes,
                "requests": len(work.spent),
                **({} if agreement is None else {"position_consistency": round(agreement, 4)}),
            },
        )

    async def close(self) -> None:
        await self._endpoint.close()

    async def _judged(self, work: _Work, slot: str, members: Sequence[str]) -> dict[str, Score]:
        """One pass over `members` in their order: in the form that fits, or in heats when none does.

        Raises:
            TooLongError: Not even two members fit the judge's context.
            DataError: No reply could be used.
        """
        chosen = set(members)
        group = replace(work.group, members=tuple(m for m in work.group.members if m.trajectory_id in chosen))
        hindsight = replace(
            work.hindsight, members=tuple(m for m in work.hindsight.members if m.trajectory_id in chosen)
        )
        # In one thread beside the loop: prompts of other groups go out while this one is written, and no more than one
        # writer takes the interpreter from the loop.
        write = partial(write_forms, group, hindsight, rubric=self._rubric, key=f"{work.key}|{slot}", order=members)
        forms = await asyncio.get_running_loop().run_in_executor(self._writer, write)
        if slot == "p0":
            work.details |= _sizes(forms)
        too_long: TooLongError | None = None
        for name, prompt, tokens in forms.by_preference():
            if self._context is not None and tokens > self._context:
                too_long = TooLongError(
                    f"the prompt of group {group.group_id!r} takes {tokens} tokens, judge {self.model!r} takes "
                    f"{self._context}"
                )
                continue
            try:
                said = await self._ask_until_clear(work, prompt, tokens, slot)
            except TooLongError as e:
                too_long = e
                continue
            if slot == "p0":
                work.details["form"] = name
            return {
                prompt.ids[label]: Score(trajectory_id=prompt.ids[label], value=s.score, explanation=s.reasons)
                for label, s in said.items()
            }
        if len(members) <= 2:
            raise TooLongError(
                f"group {work.group.group_id!r}: two of its trajectories are longer than judge {self.model!r} takes "
                f"({too_long}); set a JUDGE_MODEL with a longer context",
                facts={"group_id": work.group.group_id, **self._spent(work)},
            )
        if slot == "p0":
            work.details["form"] = "heats"
        logger.info("judging in heats group=%s slot=%s members=%d", work.group.group_id, slot, len(members))
        reasons: dict[str, Score] = {}

        async def run(heat: Sequence[str], name: str) -> dict[str, float]:
            said = await self._judged(work, f"{slot}/{name}", heat)
            reasons.update({t: s for t, s in said.items() if t not in reasons})
            return {t: s.value for t, s in said.items()}

        scores = await in_heats(members, run)
        return {t: replace(reasons[t], value=v) for t, v in scores.items()}

    async def _ask_until_clear(self, work: _Work, prompt: JudgePrompt, tokens: int, slot: str) -> dict[str, ReplyScore]:
        """Ask, and ask again with the fault named. Replies that a killed process left in the journal come first.

        Raises:
            DataError: No reply could be used; the facts say what the replies cost.
        """
        asked: list[Message] = [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": prompt.user},
        ]
        again: list[Message] = []
        fault = ""
        kept = self._journal.replies(work.key, slot)
        work.spent += [(r, self._cost(r)) for r in kept]
        if kept:
            try:
                return read_reply(kept[-1].text, prompt.ids)
            except ReplyFault:
                kept = kept[len(kept) // ASKS * ASKS :]  # asks of an attempt that was cut short; a full one is over
        for n in range(1, 1 + ASKS):
            reply = kept.pop(0) if kept else await self._request(work, [*asked, *again], tokens, slot)
            try:
                return read_reply(reply.text, prompt.ids)
            except ReplyFault as e:
                fault = str(e)
            if reply.finish_reason == "length":
                fault = "The reply was cut off at the length limit. Give shorter reasons."
            # Only the last reply goes back: the conversation must not grow with the judge's mistakes.
            again = [
                {"role": "assistant", "content": reply.text or "(nothing)"},
                {"role": "user", "content": f"{fault} Answer again, complete, for these ids: {', '.join(prompt.ids)}."},
            ]
            logger.info("judge reply was faulty group=%s ask=%d of=%d", work.group.group_id, n, ASKS)
        raise DataError(
            f"group {work.group.group_id!r}: judge {self.model!r} gave no usable reply in {ASKS} asks; the last "
            f"fault: {fault} Materialize `ruler_scores` for its hour again, or set another JUDGE_MODEL",
            facts={"group_id": work.group.group_id, "fault": fault, **self._spent(work)},
        )

    async def _request(self, work: _Work, messages: list[Message], tokens: int, slot: str) -> Reply:
        cap = REPLY_TOKENS + REPLY_TOKENS_EACH * len(work.group.members)
        cap = min(cap, self._longest_reply) if self._longest_reply else cap
        if len(messages) > 2:  # a re-ask: what was said goes along
            tokens += cap + 200
        call = Call(
            judgment_key=work.key,
            slot=slot,
            window_id=work.group.window_id,
            group_id=work.group.group_id,
            judge_model=self.model,
            judge_version=self.version,
            prompt_tokens=tokens,
            reserved_usd=self.price.of(tokens, cap) if self.price else 0.0,
        )

        async def once() -> Reply:
            async with self._slot():  # held while the judge works, not while we wait to ask again
                await self._pace.turn()
                call_id = await asyncio.to_thread(self._journal.begin, call)  # a commit waits for the disk
                try:
                    reply = await self._endpoint.ask(messages, RESPONSE_FORMAT, max_completion_tokens=cap)
                except BabylonRLError as e:
                    lost = isinstance(e, BusyError) and e.maybe_paid
                    await asyncio.to_thread(self._journal.end, call_id, Ended.LOST if lost else Ended.REFUSED)
                    raise
                # A server that does not count what it did is taken to have done all that was reserved.
                cost = self._cost(reply) if reply.prompt_tokens else call.reserved_usd
                await asyncio.to_thread(self._journal.end, call_id, Ended.REPLIED, reply, cost)
                work.spent.append((reply, cost))
                return reply

        return await self._patience.see_through(once, seed=work.key, what=work.group.group_id)

    def _slot(self) -> asyncio.Semaphore:
        """The semaphore of the running loop: one that is bound to a finished loop blocks for ever."""
        loop = asyncio.get_running_loop()
        if self._slots is None or self._slots[0] is not loop:
            self._slots = (loop, asyncio.Semaphore(self._max_concurrency))
        return self._slots[1]

    def _cost(self, reply: Reply) -> float:
        return self.price.of(reply.prompt_tokens, reply.completion_tokens) if self.price else 0.0

    def _spent(self, work: _Work) -> dict[str, Any]:
        return {
            "prompt_tokens": sum(r.prompt_tokens for r, _ in work.spent),
            "completion_tokens": sum(r.completion_tokens for r, _ in work.spent),
            "cost_usd": sum(cost for _, cost in work.spent),
        }


def trading_rubric() -> str:
    """The rubric that ships with us; its text is part of every judgment's key."""
    return TRADING_RUBRIC.read_text(encoding="utf-8")


def _told(trajectory_id: str, value: float, said: Sequence[Score]) -> Score:
    """A score with the reasons of the pass that came nearest to it."""
    nearest = min(said, key=lambda s: abs(s.value - value))
    return Score(trajectory_id=trajectory_id, value=value, explanation=nearest.explanation)


def _sizes(forms: Forms) -> Json:
    return {"plain_tokens": forms.plain_tokens, "compact_tokens": forms.compact_tokens}
