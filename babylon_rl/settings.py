"""Environment → `Settings`. Nothing else in the project reads `os.environ`.

Every default is the safe choice: loopback, our own embedded database, the CPU trainer, no paid call. Settings come in
parts; a factory takes the part it needs.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from babylon_rl.errors import ConfigError
from babylon_rl.windows import HourWindow


class _Part(BaseSettings):
    """Fields by the names of their environment variables."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)


class DatabaseSettings(_Part):
    """Where rows, results and Dagster's events are kept."""

    home: Path = Field(
        default=Path(".babylon"),
        validation_alias="BABYLON_HOME",
        description="Where the embedded database, checkpoints and Dagster's files live.",
    )
    url: SecretStr | None = Field(
        default=None,
        validation_alias="DATABASE_URL",
        description="The game's database. Unset: an embedded PostgreSQL under BABYLON_HOME.",
    )
    platform_url: SecretStr | None = Field(
        default=None,
        validation_alias="BABYLON_PLATFORM_URL",
        description="Where our own schema lives, when the game's database must stay untouched.",
    )
    dagster_url: SecretStr | None = Field(
        default=None,
        validation_alias="BABYLON_DAGSTER_URL",
        description="Database of Dagster's own storage. The launcher sets it for the embedded server.",
    )

    @field_validator("home")
    @classmethod
    def _absolute(cls, v: Path) -> Path:
        return v.expanduser().absolute()


class JudgeSettings(_Part):
    """Who judges, how often it is asked, and what that may cost."""

    model: str | None = Field(
        default=None,
        validation_alias="JUDGE_MODEL",
        description="LiteLLM model id for RULER, e.g. openai/gpt-4o-mini. Unset and no OPENAI_API_KEY: the hindsight judge.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        validation_alias="OPENAI_API_KEY",
        description="Key of the judge; with it and no JUDGE_MODEL, RULER judges with openai/gpt-4o-mini.",
    )
    base_url: str | None = Field(
        default=None, validation_alias="JUDGE_BASE_URL", description="OpenAI-compatible address of the judge."
    )
    rubric: Path | None = Field(
        default=None,
        validation_alias="JUDGE_RUBRIC",
        description="Markdown file to judge by. Unset: the trading rubric shipped with the package.",
    )
    passes: int = Field(
        default=1,
        ge=1,
        le=3,
        validation_alias="JUDGE_PASSES",
        description="Permuted passes over each group; 3 take a judge's position bias out, at three times the price.",
    )
    concurrency: int = Field(
        default=8, ge=1, validation_alias="JUDGE_CONCURRENCY", description="Requests to the judge at a time."
    )
    requests_per_minute: float | None = Field(
        default=None, gt=0, validation_alias="JUDGE_RPM", description="Requests that may start in a minute."
    )
    context_tokens: int | None = Field(
        default=None,
        gt=0,
        validation_alias="JUDGE_CONTEXT_TOKENS",
        description="What the judge reads at most; unset: by litellm's table, or what its server refuses.",
    )
    budget_usd: float | None = Field(
        default=None,
        ge=0,
        validation_alias="JUDGE_BUDGET_USD",
        description="US dollars that judging may cost in a UTC day; a request that could cross it is not sent.",
    )
    price_usd_per_mtok: str | None = Field(
        default=None,
        validation_alias="JUDGE_PRICE_USD_PER_MTOK",
        pattern=r"^\d+(\.\d+)?/\d+(\.\d+)?$",
        description="Prompt/completion price per million tokens, e.g. 0.15/0.60; unset: by litellm's table.",
    )


class TrainingSettings(_Part):
    """Which windows train, and which trainer trains on them."""

    trainer: Literal["cpu", "local", "serverless"] = Field(
        default="cpu",
        validation_alias="BABYLON_TRAINER",
        description="ART backend that trains.",
    )
    base_model: str | None = Field(
        default=None,
        validation_alias="BABYLON_BASE_MODEL",
        description="Base the adapters stand on. Unset: the small policy shipped with the package (cpu).",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        validation_alias="BABYLON_LEARNING_RATE",
        description="Unset: 3e-3 for the small CPU policy, 1e-5 elsewhere.",
    )
    min_agents: int = Field(
        default=5,
        ge=2,
        validation_alias="BABYLON_MIN_AGENTS",
        description="Distinct usable agents that make a window a group.",
    )
    min_windows: int = Field(
        default=3,
        ge=1,
        validation_alias="BABYLON_MIN_WINDOWS",
        description="Unused, judged windows that make one training; the sensor waits for them.",
    )
    dropout_target: int | None = Field(
        default=None,
        ge=1,
        validation_alias="BABYLON_DROPOUT_TARGET",
        description="Windows that are enough: beyond it whole windows are dropped before they are judged. Unset: none.",
    )
    dropout_cap: float = Field(
        default=0.3,
        ge=0,
        lt=1,
        validation_alias="BABYLON_DROPOUT_CAP",
        description="Largest share of windows that dropout may leave out.",
    )
    wandb_api_key: SecretStr | None = Field(
        default=None, validation_alias="WANDB_API_KEY", description="Key of W&B, for the trainer `serverless`."
    )
    wandb_base_url: str | None = Field(
        default=None,
        validation_alias="BABYLON_WANDB_TRAINING_URL",
        description="Address of W&B Serverless training, when it is not ART's own default.",
    )


class ServingSettings(_Part):
    """How a policy is served to agents, and evaluated."""

    inference_url: str | None = Field(
        default=None,
        validation_alias="BABYLON_INFERENCE_URL",
        description="OpenAI-compatible endpoint that serves the checkpoints. Unset: started on loopback when needed.",
    )
    explore_temperature: float = Field(
        default=1.0,
        ge=0,
        validation_alias="BABYLON_EXPLORE_TEMPERATURE",
        description="Temperature at which agents play the windows that train.",
    )
    serve_temperature: float = Field(
        default=0.5,
        ge=0,
        validation_alias="BABYLON_SERVE_TEMPERATURE",
        description="Temperature of served agents that ask for none, and of every evaluation.",
    )
    evaluation_windows: int = Field(
        default=100,
        ge=2,
        validation_alias="BABYLON_EVALUATION_WINDOWS",
        description="Held-out windows each new checkpoint plays beside its base.",
    )


class Settings(_Part):
    """All settings of one process.

    `Settings.load(BABYLON_SEED=7)` overrides one; a bad value becomes one sentence.
    """

    start: str = Field(
        default="2025-01-01T00:00",
        validation_alias="BABYLON_START",
        description="First window of the hourly partitions; set it near the first data.",
    )
    lineage: str = Field(
        default="babylon-mmo",
        validation_alias="BABYLON_LINEAGE",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Name of the training run; a window is consumed once per lineage.",
    )
    seed: int = Field(
        default=1,
        ge=0,
        lt=10**9,
        validation_alias="BABYLON_SEED",
        description="Seed of the market, the sampling and the training.",
    )
    database: DatabaseSettings
    judge: JudgeSettings
    training: TrainingSettings
    serving: ServingSettings

    @field_validator("start")
    @classmethod
    def _is_window(cls, v: str) -> str:
        return str(HourWindow.parse(v))

    @classmethod
    def load(cls, **overrides: object) -> Self:
        """Read the environment.

        Args:
            overrides: Environment variable → value to take instead.

        Raises:
            ConfigError: A variable has a value that does not fit; the message names it, never its secret.
        """
        values: dict[str, Any] = dict(overrides)
        try:
            parts: dict[str, Any] = {name: part(**values) for name, part in PARTS.items()}
            return cls(**values, **parts)
        except ValidationError as e:
            lines = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in e.errors(include_input=False))
            raise ConfigError(f"settings do not fit: {lines}; correct the environment variable and run again") from None

    def changed(self, **parts: dict[str, object]) -> Self:
        """A copy with some fields changed: `settings.changed(serving={"inference_url": url})`."""
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=fields) for name, fields in parts.items()}
        )

    @property
    def home(self) -> Path:
        return self.database.home

    @property
    def checkpoints_dir(self) -> Path:
        return self.home / "checkpoints"


PARTS: dict[str, type[_Part]] = {
    "database": DatabaseSettings,
    "judge": JudgeSettings,
    "training": TrainingSettings,
    "serving": ServingSettings,
}
