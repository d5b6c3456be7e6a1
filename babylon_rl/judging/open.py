"""Settings → a judge. The only place that knows which judges there are."""

from typing import Final

from babylon_rl.errors import ConfigError
from babylon_rl.judging.dice import DiceJudge
from babylon_rl.judging.endpoint import Endpoint, LiteLlmEndpoint, OpenAIEndpoint
from babylon_rl.judging.hindsight import HindsightJudge
from babylon_rl.judging.judge import Judge
from babylon_rl.judging.retry import Patience
from babylon_rl.judging.ruler import RulerJudge, trading_rubric
from babylon_rl.settings import Settings

DEFAULT_MODEL: Final = "openai/gpt-4o-mini"
TIMEOUT_S: Final = 120.0


def open_judge(settings: Settings, *, timeout_s: float = TIMEOUT_S, patience: Patience | None = None) -> Judge:
    """Choose the judge that the settings ask for.

    RULER when `JUDGE_MODEL` or `OPENAI_API_KEY` is set; else, and for `JUDGE_MODEL=hindsight`, the hindsight judge,
    which asks no LLM. `JUDGE_MODEL=dice` is the control that must teach nothing. Opening connects to nothing.

    Args:
        settings: The process's settings.
        timeout_s: Seconds allowed for one request.
        patience: How busy servers are borne with.

    Raises:
        ConfigError: A judge is half configured: a model without a key, or an address without a model.
    """
    key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else None
    model = settings.judge_model or (DEFAULT_MODEL if key else None)
    if model == "hindsight" or (model is None and settings.judge_base_url is None):
        return HindsightJudge()
    if model == "dice":
        return DiceJudge()
    if model is None:
        raise ConfigError("JUDGE_BASE_URL is set but no JUDGE_MODEL; name the model that answers there, or unset it")
    endpoint: Endpoint
    if settings.judge_base_url is not None or model.startswith("openai/") or "/" not in model:
        if settings.judge_base_url is None and key is None:
            raise ConfigError(
                f"JUDGE_MODEL is {model!r} but there is neither OPENAI_API_KEY nor JUDGE_BASE_URL; set one of them, "
                "or JUDGE_MODEL=hindsight to judge without an LLM"
            )
        endpoint = OpenAIEndpoint(
            model.removeprefix("openai/"), api_key=key, base_url=settings.judge_base_url, timeout_s=timeout_s
        )
    else:
        endpoint = LiteLlmEndpoint(model, timeout_s=timeout_s)
    return RulerJudge(endpoint, model=model, rubric=trading_rubric(), patience=patience)
