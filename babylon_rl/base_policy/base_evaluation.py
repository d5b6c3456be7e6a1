"""Whether a policy reads its prompts, and how it plays: measured on held-out windows, in process, without a server.

RL on a policy that cannot read its prompt only adds noise, so a base has to pass here before it is kept.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from babylon_rl.base_policy.corpus import draw_markets
from babylon_rl.policy.prompting import PromptRenderer
from babylon_rl.simulator.market import Market, stable_seed
from babylon_rl.simulator.observation import SYSTEM_PROMPT, Observation, observe
from babylon_rl.simulator.portfolio import START_BALANCE_USD, Portfolio, parse_order
from babylon_rl.simulator.strategies import reading

if TYPE_CHECKING:
    from babylon_rl.policy.model import LoadedPolicy

MIN_ACCURACY: Final = 0.95
ANSWER_TOKENS: Final = 64
SEED_PURPOSE: Final = "exam"  # part of every seed: another text would draw other markets and other answers


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseEvaluation:
    """What a policy did on held-out windows.

    Attributes:
        answers: Answers measured, over all temperatures.
        reading_accuracy: Share of answers whose `read` field agrees with the prompt.
        ticker_accuracy: Share of perp orders on the ticker that `why` names; None without any perp order.
        invalid_rate: Share of answers that are not a legal order.
        mean_pnl_usd: By temperature, the mean over windows of one agent's P&L.
    """

    answers: int
    reading_accuracy: float
    ticker_accuracy: float | None
    invalid_rate: float
    mean_pnl_usd: dict[float, float]

    @property
    def passed(self) -> bool:
        return self.reading_accuracy >= MIN_ACCURACY and (self.ticker_accuracy or 0.0) >= MIN_ACCURACY


def evaluate_base(
    policy: "LoadedPolicy", *, seed: int, windows: int = 200, temperatures: Sequence[float] = (0.0, 1.0)
) -> BaseEvaluation:
    """Let one agent per temperature play `windows` markets that cloning never saw.

    Args:
        policy: Any policy that answers in the game's format.
        seed: Of the markets and of the sampling.
        windows: Three answers each, for each temperature.
        temperatures: 0 is greedy.
    """
    markets = list(draw_markets(SEED_PURPOSE, seed, windows))
    answers: list[tuple[Observation, str]] = []
    invalid = 0
    pnl: dict[float, float] = {}
    for temperature in temperatures:
        portfolios = [Portfolio() for _ in markets]
        answers += _play(policy, markets, portfolios, temperature, seed)
        invalid += sum(p.invalid for p in portfolios)
        values = [p.value_usd(m, m.decisions) for p, m in zip(portfolios, markets, strict=True)]
        pnl[temperature] = sum(values) / len(values) - START_BALANCE_USD
    followed = [f for _, text in answers if (f := follows_its_reason(text)) is not None]
    return BaseEvaluation(
        answers=len(answers),
        reading_accuracy=sum(reads_right(o, text) for o, text in answers) / len(answers),
        ticker_accuracy=sum(followed) / len(followed) if followed else None,
        invalid_rate=invalid / len(answers),
        mean_pnl_usd=pnl,
    )


def _play(
    policy: "LoadedPolicy", markets: Sequence[Market], portfolios: Sequence[Portfolio], temperature: float, seed: int
) -> list[tuple[Observation, str]]:
    """Play all windows, one decision of each at a time; trades in `portfolios`, returns each observation and its answer."""
    from babylon_rl.policy.sampling import SampleRequest, sample

    renderer = PromptRenderer(policy.tokenizer)
    answers: list[tuple[Observation, str]] = []
    for tick in range(markets[0].decisions):
        observations = [observe(m, p, tick) for m, p in zip(markets, portfolios, strict=True)]
        requests = [
            SampleRequest(
                prompt_ids=renderer.ids(SYSTEM_PROMPT, o.text),
                temperature=temperature,
                seed=stable_seed(SEED_PURPOSE, seed, temperature, tick, i),
                max_tokens=ANSWER_TOKENS,
            )
            for i, o in enumerate(observations)
        ]
        texts = [policy.tokenizer.decode(s.token_ids, skip_special_tokens=True) for s in sample(policy, requests)]
        for m, p, text in zip(markets, portfolios, texts, strict=True):
            order, _ = parse_order(text, m.tickers)
            if order is None:
                p.invalid += 1
            else:
                p.execute(m, tick, order)
        answers += zip(observations, texts, strict=True)
    return answers


def reads_right(observation: Observation, text: str) -> bool:
    """Whether the answer's `read` is the honest reading of its prompt."""
    answer = _parse_object(text)
    return answer is not None and answer.get("read") == reading(observation)


def follows_its_reason(text: str) -> bool | None:
    """Whether a perp order is on the ticker that its `why` names; None for answers that trade no perp."""
    answer = _parse_object(text)
    if answer is None or answer.get("action") not in ("BUY", "SELL"):
        return None
    return str(answer.get("why")).split(" ")[0] == answer.get("ticker")


def _parse_object(text: str) -> dict[str, object] | None:
    try:
        answer = json.loads(text)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None
