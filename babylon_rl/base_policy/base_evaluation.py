"""How a policy plays and whether it reads: measured on held-out windows, in process, without a server.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseEvaluation:
    """What a policy did on held-out windows.

    Attributes:
        answers: Answers measured, over all temperatures.
        reading_accuracy: Share of answers whose `read` says what the prompt says.
        ticker_accuracy: Share of perp orders on the ticker that `why` names; None without any perp order.
        invalid_rate: Share of answers that are no legal order.
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
        policy: Any policy that speaks the game's form.
        seed: Of the markets and of the sampling.
        windows: Three answers each, for each temperature.
        temperatures: 0 is greedy.
    """
    drawn = list(draw_markets("exam", seed, windows))
    answers: list[tuple[Observation, str]] = []
    invalid = 0
    pnl: dict[float, float] = {}
    for temperature in temperatures:
        portfolios = [Portfolio() for _ in drawn]
        answers += _play(policy, drawn, portfolios, temperature, seed)
        invalid += sum(p.invalid for p in portfolios)
        worth = [p.value_usd(m, m.decisions) for p, m in zip(portfolios, drawn, strict=True)]
        pnl[temperature] = sum(worth) / len(worth) - START_BALANCE_USD
    followed = [f for _, text in answers if (f := follows_its_reason(text)) is not None]
    return BaseEvaluation(
        answers=len(answers),
        reading_accuracy=sum(reads_right(o, text) for o, text in answers) / len(answers),
        ticker_accuracy=sum(followed) / len(followed) if followed else None,
        invalid_rate=invalid / len(answers),
        mean_pnl_usd=pnl,
    )


def _play(
    policy: "LoadedPolicy", drawn: Sequence[Market], portfolios: Sequence[Portfolio], temperature: float, seed: int
) -> list[tuple[Observation, str]]:
    """All windows in step; returns each observation with its answer and leaves the portfolios at the end."""
    from babylon_rl.policy.sampling import SampleRequest, sample

    renderer = PromptRenderer(policy.tokenizer)
    said: list[tuple[Observation, str]] = []
    for tick in range(drawn[0].decisions):
        seen = [observe(m, p, tick) for m, p in zip(drawn, portfolios, strict=True)]
        requests = [
            SampleRequest(
                prompt_ids=renderer.ids(SYSTEM_PROMPT, o.text),
                temperature=temperature,
                seed=stable_seed("exam", seed, temperature, tick, i),
                max_tokens=ANSWER_TOKENS,
            )
            for i, o in enumerate(seen)
        ]
        texts = [policy.tokenizer.decode(s.token_ids, skip_special_tokens=True) for s in sample(policy, requests)]
        for m, p, text in zip(drawn, portfolios, texts, strict=True):
            order, _ = parse_order(text, m.tickers)
            if order is None:
                p.invalid += 1
            else:
                p.execute(m, tick, order)
        said += zip(seen, texts, strict=True)
    return said


def reads_right(observation: Observation, text: str) -> bool:
    """Whether the answer's `read` is the honest reading of its prompt."""
    said = _parse_object(text)
    return said is not None and said.get("read") == reading(observation)


def follows_its_reason(text: str) -> bool | None:
    """Whether a perp order is on the ticker that its `why` names; None for answers that trade no perp."""
    said = _parse_object(text)
    if said is None or said.get("action") not in ("BUY", "SELL"):
        return None
    return str(said.get("why")).split(" ")[0] == said.get("ticker")


def _parse_object(text: str) -> dict[str, object] | None:
    try:
        said = json.loads(text)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None
