"""RULER's method (one LLM ranks a whole group by a rubric), by a call of our own.

ART's published call maps scores by position, takes NaN and 7.5, never asks again, and lets agents' text close its
fence. Here ids are matched to the letter, a bad reply is shown its fault and asked for again, a bounded number of
times, and what then is still bad fails this group alone.
"""

import asyncio
import logging
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from babylon_rl.errors import DataError
from babylon_rl.judging.endpoint import Endpoint, Message, Reply
from babylon_rl.judging.judge import judgment_key, require_outcomes, validated
from babylon_rl.judging.prices import Price, price_of
from babylon_rl.judging.prompt import PROMPT_VERSION, PROTOCOL, JudgePrompt, write_prompt
from babylon_rl.judging.reply import RESPONSE_FORMAT, ReplyFault, ReplyScore, read_reply
from babylon_rl.judging.retry import Patience
from babylon_rl.types import Hindsight, Judgment, Score, TrajectoryGroup

logger = logging.getLogger(__name__)

RE_ASKS: Final = 2
TRADING_RUBRIC: Final = Path(__file__).parent / "rubrics" / "trading.md"


class RulerJudge:
    """An LLM that scores a group at a time. Satisfies `Judge`.

    Attributes:
        price: What the model's tokens cost, or None when no table knows it: its judgments then say 0 US dollars.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        model: str,
        rubric: str,
        max_concurrency: int = 8,
        patience: Patience | None = None,
    ) -> None:
        self.model = model
        self.version = f"ruler-{PROMPT_VERSION}-{sha256((rubric + PROTOCOL).encode()).hexdigest()[:8]}"
        self.price: Price | None = price_of(model)
        self._endpoint = endpoint
        self._rubric = rubric
        self._patience = patience or Patience()
        self._max_concurrency = max_concurrency
        self._slots: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None
        if self.price is None:
            logger.warning("judge has no known price, its cost counts as 0 model=%s", model)

    def key(self, group: TrajectoryGroup, hindsight: Hindsight) -> str:
        return judgment_key(group, hindsight, model=self.model, version=self.version, rubric=self._rubric)

    async def judge(self, group: TrajectoryGroup, hindsight: Hindsight) -> Judgment:
        require_outcomes(group, hindsight)
        key = self.key(group, hindsight)
        prompt = write_prompt(group, hindsight, rubric=self._rubric, key=key)
        said, replies = await self._ask_until_clear(group, prompt, key)
        scores = (
            Score(trajectory_id=prompt.ids[label], value=s.score, explanation=s.reasons) for label, s in said.items()
        )
        return Judgment(
            key=key,
            group_id=group.group_id,
            window_id=group.window_id,
            judge_model=self.model,
            judge_version=self.version,
            scores=validated(group, scores),
            **self._spent(replies),
        )

    async def close(self) -> None:
        await self._endpoint.close()

    async def _ask_until_clear(
        self, group: TrajectoryGroup, prompt: JudgePrompt, key: str
    ) -> tuple[Mapping[str, ReplyScore], list[Reply]]:
        """Ask, and ask again with the fault named.

        Raises:
            DataError: No reply could be used; the facts say what the replies cost.
        """
        asked: list[Message] = [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": prompt.user},
        ]
        again: list[Message] = []
        replies: list[Reply] = []
        fault = ""
        for _ in range(1 + RE_ASKS):
            reply = await self._request(group, [*asked, *again], key)
            replies.append(reply)
            try:
                return read_reply(reply.text, prompt.ids), replies
            except ReplyFault as e:
                fault = str(e)
            if reply.finish_reason == "length":
                fault = "The reply was cut off at the length limit. Give shorter reasons."
            # Only the last reply goes back: the conversation must not grow with the judge's mistakes.
            again = [
                {"role": "assistant", "content": reply.text or "(nothing)"},
                {"role": "user", "content": f"{fault} Answer again, complete, for these ids: {', '.join(prompt.ids)}."},
            ]
            logger.info("judge reply was faulty group=%s ask=%d of=%d", group.group_id, len(replies), 1 + RE_ASKS)
        raise DataError(
            f"group {group.group_id!r}: judge {self.model!r} gave no usable reply in {1 + RE_ASKS} asks; the last "
            f"fault: {fault} Materialize `ruler_scores` for its hour again, or set another JUDGE_MODEL",
            facts={"group_id": group.group_id, "fault": fault, **self._spent(replies)},
        )

    async def _request(self, group: TrajectoryGroup, messages: list[Message], key: str) -> Reply:
        async def once() -> Reply:
            async with self._slot():  # held while the judge works, not while we wait to ask again
                return await self._endpoint.ask(messages, RESPONSE_FORMAT)

        return await self._patience.see_through(once, seed=key, what=group.group_id)

    def _slot(self) -> asyncio.Semaphore:
        """The semaphore of the running loop: one that is bound to a finished loop blocks for ever."""
        loop = asyncio.get_running_loop()
        if self._slots is None or self._slots[0] is not loop:
            self._slots = (loop, asyncio.Semaphore(self._max_concurrency))
        return self._slots[1]

    def _spent(self, replies: list[Reply]) -> dict[str, Any]:
        prompt = sum(r.prompt_tokens for r in replies)
        completion = sum(r.completion_tokens for r in replies)
        cost = self.price.of(prompt, completion) if self.price else 0.0
        return {"prompt_tokens": prompt, "completion_tokens": completion, "cost_usd": cost}


def trading_rubric() -> str:
    """The rubric that ships with us; its text is part of every judgment's key."""
    return TRADING_RUBRIC.read_text(encoding="utf-8")
