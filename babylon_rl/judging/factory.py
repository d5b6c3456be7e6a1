"""Settings → a judge. The only place that knows which judges there are."""

from typing import Final
from urllib.parse import urlsplit

from babylon_rl.errors import ConfigError
from babylon_rl.judging.hindsight_judge import HindsightJudge
from babylon_rl.judging.judge import Judge
from babylon_rl.judging.random_judge import RandomJudge
from babylon_rl.judging.ruler.call_log import CallLog
from babylon_rl.judging.ruler.endpoint import Endpoint, LiteLlmEndpoint, OpenAIEndpoint
from babylon_rl.judging.ruler.judge import RulerJudge, trading_rubric
from babylon_rl.judging.ruler.prices import Price
from babylon_rl.settings import JudgeSettings

DEFAULT_MODEL: Final = "openai/gpt-4o-mini"
TIMEOUT_S: Final = 120.0


def open_judge(
    settings: JudgeSettings,
    *,
    call_log: CallLog | None = None,
    model: str | None = None,
) -> Judge:
    """Choose the judge that the settings ask for.

    RULER when `JUDGE_MODEL` or `OPENAI_API_KEY` is set; else, and for `JUDGE_MODEL=hindsight`, the hindsight judge,
    which asks no LLM. `JUDGE_MODEL=dice` is the random control, from which nothing can be learned. Opening connects to nothing.

    Args:
        settings: The judge's part of the process's settings.
        call_log: Log of the requests of a judge that costs money, with its budget; None: no log and no budget.
        model: Used instead of the model that the settings name.

    Raises:
        ConfigError: A judge is half configured: a model without a key, an address without a model or that is none, a
            budget without a price, or a rubric file that cannot be used.
    """
    key = settings.api_key.get_secret_value() if settings.api_key else None
    model = model or settings.model or (DEFAULT_MODEL if key else None)
    if model == "hindsight" or (model is None and settings.base_url is None):
        return HindsightJudge()
    if model == "dice":
        return RandomJudge()
    if model is None:
        raise ConfigError("JUDGE_BASE_URL is set but no JUDGE_MODEL; name the model that answers there, or unset it")
    endpoint: Endpoint
    if settings.base_url is not None or model.startswith("openai/") or "/" not in model:
        if settings.base_url is None and key is None:
            raise ConfigError(
                f"JUDGE_MODEL is {model!r} but there is neither OPENAI_API_KEY nor JUDGE_BASE_URL; set one of them, "
                "or JUDGE_MODEL=hindsight to judge without an LLM"
            )
        endpoint = OpenAIEndpoint(
            model.removeprefix("openai/"), api_key=key, base_url=settings.base_url, timeout_s=TIMEOUT_S
        )
    else:
        endpoint = LiteLlmEndpoint(model, timeout_s=TIMEOUT_S)
    judge = RulerJudge(
        endpoint,
        model=model,
        rubric=_rubric(settings),
        passes=settings.passes,
        max_concurrency=settings.concurrency,
        requests_per_minute=settings.requests_per_minute,
        context_tokens=settings.context_tokens,
        price=_price(settings),
        call_log=call_log,
        name=_name(settings),
    )
    if settings.budget_usd is not None and judge.price is None:
        raise ConfigError(
            f"JUDGE_BUDGET_USD is set but no table knows what {model!r} costs; set JUDGE_PRICE_USD_PER_MTOK, e.g. "
            "0.15/0.60 (0/0 for a model of your own), or unset the budget"
        )
    return judge


def _name(settings: JudgeSettings) -> str | None:
    """What tells the judge from other servers that answer under the same model id."""
    if settings.name is not None or settings.base_url is None:
        return settings.name
    try:
        url = urlsplit(settings.base_url)
        host, port = url.hostname, url.port
    except ValueError:
        host, port, url = None, None, urlsplit("")
    if not host or url.scheme not in ("http", "https"):
        raise ConfigError("JUDGE_BASE_URL is not an address; expected the form https://host:8000/v1")
    # Without user, password and query, which may be secret and change nothing about who answers.
    return f"{url.scheme}://{host}" + (f":{port}" if port else "") + url.path.rstrip("/")


def _price(settings: JudgeSettings) -> Price | None:
    if settings.price_usd_per_mtok is None:
        return None
    prompt, completion = (float(x) / 1e6 for x in settings.price_usd_per_mtok.split("/"))
    return Price(prompt, completion)


def _rubric(settings: JudgeSettings) -> str:
    if settings.rubric is None:
        return trading_rubric()
    try:
        text = settings.rubric.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as e:
        raise ConfigError(
            f"JUDGE_RUBRIC names {str(settings.rubric)!r}, which cannot be read ({type(e).__name__}); name a "
            "Markdown file, or unset it for the trading rubric"
        ) from None
    if not text.strip():
        raise ConfigError(f"JUDGE_RUBRIC names {str(settings.rubric)!r}, which is empty; write the rubric there")
    return text
