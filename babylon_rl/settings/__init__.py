"""Environment → `Settings`. Nothing else in the project reads `os.environ`.

Every default is the safe choice: loopback, our own embedded database, the CPU trainer, no paid call. Settings come in
parts; a factory takes the part it needs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo

from babylon_rl.errors import ConfigError
from babylon_rl.settings.live import DeploymentSettings, GatewaySettings, Part, ServingSettings
from babylon_rl.windows import HourWindow

ForeignTurns = Literal["own_only", "positive_only", "all"]
"""Which turns of models that are not ours train: none, those of trajectories above their group's mean, or all."""


class DatabaseSettings(Part):
    """Where rows, results and Dagster's events are kept."""

    home: Path = Field(
        default=Path(".babylon"),
        validation_alias="BABYLON_HOME",
        description="Folder of the embedded database, the checkpoints and Dagster's files: the whole state.",
    )
    url: SecretStr | None = Field(
        default=None,
        validation_alias="DATABASE_URL",
        description="The game's database. Unset: an embedded PostgreSQL under `BABYLON_HOME`.",
    )
    platform_url: SecretStr | None = Field(
        default=None,
        validation_alias="BABYLON_PLATFORM_URL",
        description="Database of our own schema, where the game's may only be read. Unset: beside the game's tables.",
    )
    dagster_url: SecretStr | None = Field(
        default=None,
        validation_alias="BABYLON_DAGSTER_URL",
        description="Database of Dagster's own storage. Unset: `dagster` on the embedded server.",
    )

    @field_validator("home")
    @classmethod
    def _make_absolute(cls, v: Path) -> Path:
        return v.expanduser().absolute()


class JudgeSettings(Part):
    """Who judges, how often it is asked, and what that may cost."""

    model: str | None = Field(
        default=None,
        validation_alias="JUDGE_MODEL",
        description="Any LiteLLM model id: RULER judges with it. `hindsight` computes scores without an LLM; `dice` is the control that must teach nothing. Unset: `openai/gpt-4o-mini` if there is a key, else `hindsight`.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        validation_alias="OPENAI_API_KEY",
        description="Key of the judge's endpoint. Unset: `hindsight` judges, no LLM.",
    )
    base_url: str | None = Field(
        default=None,
        validation_alias="JUDGE_BASE_URL",
        description="OpenAI-compatible address of the judge. Unset: the one of the model's provider.",
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        validation_alias="JUDGE_NAME",
        description="Tells servers under one model id apart: scores and audits of one name never count for another. Unset: the address in `JUDGE_BASE_URL`, if any.",
    )
    rubric: Path | None = Field(
        default=None,
        validation_alias="JUDGE_RUBRIC",
        description="Markdown file to judge by. Unset: the trading rubric of this package.",
    )
    passes: int = Field(
        default=1,
        ge=1,
        le=3,
        validation_alias="JUDGE_PASSES",
        description="Passes over each group, 1 to 3, each in another order; three remove position bias at three times the price.",
    )
    concurrency: int = Field(
        default=8, ge=1, validation_alias="JUDGE_CONCURRENCY", description="Most requests to the judge at one time."
    )
    requests_per_minute: float | None = Field(
        default=None,
        gt=0,
        validation_alias="JUDGE_RPM",
        description="Most requests to the judge in a minute. Unset: no limit.",
    )
    context_tokens: int | None = Field(
        default=None,
        gt=0,
        validation_alias="JUDGE_CONTEXT_TOKENS",
        description="Longest prompt the judge reads, in tokens. Unset: by litellm's table, or what the server refuses.",
    )
    budget_usd: float | None = Field(
        default=None,
        ge=0,
        validation_alias="JUDGE_BUDGET_USD",
        description="Most US dollars that judging may cost in a UTC day; a request that could cross it is not sent. Unset: no limit.",
    )
    price_usd_per_mtok: str | None = Field(
        default=None,
        validation_alias="JUDGE_PRICE_USD_PER_MTOK",
        pattern=r"^\d+(\.\d+)?/\d+(\.\d+)?$",
        description="Price per million tokens, prompt/completion, e.g. `0.15/0.60`. Unset: by litellm's table.",
    )

    # A day: whoever syncs outcomes does so hourly or daily, so what has not come by then comes only if somebody acts; the
    # judgment is made anew when it does.
    outcomes_patience: Literal["never"] | Annotated[float, Field(ge=0, le=10 * 366 * 24)] = Field(
        default=24.0,
        validation_alias="BABYLON_OUTCOMES_PATIENCE",
        description="Hours after a window has closed from which an LLM judges it by P&L alone if no market outcome is known, marked `outcomes: none`; it is judged anew when outcomes come. `never`: it waits for them. The judge `hindsight` always waits.",
    )


class TrainingSettings(Part):
    """Which windows train, and which trainer trains on them."""

    trainer: Literal["cpu", "local", "serverless"] = Field(
        default="cpu",
        validation_alias="BABYLON_TRAINER",
        description="`cpu`; `local`: your GPU; `serverless`: W&B, needs `WANDB_API_KEY`.",
    )
    base_model: str | None = Field(
        default=None,
        validation_alias="BABYLON_BASE_MODEL",
        description="Model that the adapters are trained on; for `local` and `serverless` a model name. Unset: the policy of this package.",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        validation_alias="BABYLON_LEARNING_RATE",
        description="Learning rate. Unset: 3e-3 for the small CPU policy, 1e-5 elsewhere.",
    )
    min_agents: int = Field(
        default=5,
        ge=2,
        validation_alias="BABYLON_MIN_AGENTS",
        description="Distinct usable agents that a window needs to become a group.",
    )
    min_windows: int = Field(
        default=3,
        ge=1,
        validation_alias="BABYLON_MIN_WINDOWS",
        description="Unused judged windows that one training needs; the sensor waits for them.",
    )
    foreign_turns: ForeignTurns = Field(
        default="positive_only",
        validation_alias="BABYLON_FOREIGN_TURNS",
        description="Which answers of models that are neither a checkpoint of the lineage nor its base (unknown ones too) train: `own_only`: none; `positive_only`: those of agents above their group's mean; `all`. All are judged and reported.",
    )
    min_own_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        validation_alias="BABYLON_MIN_OWN_SHARE",
        description="Share of a batch's turns that must be the lineage's or its base's; a batch below it is refused and its foreign windows are set aside. 0: a warm start from other models' play.",
    )
    dropout_target: int | None = Field(
        default=None,
        ge=1,
        validation_alias="BABYLON_DROPOUT_TARGET",
        description="Target number of windows; above it whole windows are dropped before they are judged. Unset: no window is dropped.",
    )
    dropout_cap: float = Field(
        default=0.3,
        ge=0,
        lt=1,
        validation_alias="BABYLON_DROPOUT_CAP",
        description="Maximum fraction of windows dropped above the target.",
    )
    wandb_api_key: SecretStr | None = Field(
        default=None,
        validation_alias="WANDB_API_KEY",
        description="Key of W&B, for the trainer `serverless` and for `BABYLON_WANDB_LOGGING`. Unset: nothing is sent to W&B.",
    )
    wandb_logging: Literal["off", "on"] = Field(
        default="off",
        validation_alias="BABYLON_WANDB_LOGGING",
        description="`on`: each checkpoint's metrics go to W&B once it is recorded, or to `wandb/` under `BABYLON_HOME` while W&B is out of reach. `off`: no metric leaves this machine, whatever key is set.",
    )
    wandb_base_url: str | None = Field(
        default=None,
        validation_alias="BABYLON_WANDB_TRAINING_URL",
        description="Address of W&B Serverless training. Unset: ART's own default.",
    )
    wandb_inference_url: str | None = Field(
        default=None,
        validation_alias="BABYLON_WANDB_INFERENCE_URL",
        description="Address of W&B inference, which evaluates serverless checkpoints. Unset: `BABYLON_WANDB_TRAINING_URL` where that is set, else `https://api.inference.wandb.ai/v1`.",
    )
    remote_patience_s: float = Field(
        default=1800,
        ge=0,
        validation_alias="BABYLON_REMOTE_PATIENCE_S",
        description="Seconds that a serverless training may be out of reach, or its job may take to show up after a lost answer, before the run ends.",
    )


class Settings(Part):
    """The process as a whole: which hours, which lineage, which seed.

    `Settings.load(BABYLON_SEED=7)` overrides one variable.
    """

    start: str = Field(
        default="2025-01-01T00:00",
        validation_alias="BABYLON_START",
        description="First hourly partition; set it near the first data.",
    )
    lineage: str = Field(
        default="babylon-mmo",
        validation_alias="BABYLON_LINEAGE",
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$",  # no leading dot: it names a folder
        description="Name of a series of checkpoints; a window trains once per lineage.",
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
    gateway: GatewaySettings
    deployment: DeploymentSettings

    @field_validator("start")
    @classmethod
    def _normalise_window(cls, v: str) -> str:
        return str(HourWindow.parse(v).hour)

    @classmethod
    def load(cls, **overrides: object) -> Self:
        """Read the environment.

        Args:
            overrides: Environment variable → value to take instead.

        Raises:
            ConfigError: A variable has an invalid value; the message names the variable and never shows a secret.
        """
        values: dict[str, Any] = dict(overrides)
        try:
            parts: dict[str, Any] = {name: part(**values) for name, part in PARTS.items()}
            return cls(**values, **parts)
        except ValidationError as e:
            lines = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in e.errors(include_input=False))
            raise ConfigError(f"invalid settings: {lines}; correct the environment variable and run again") from None

    def changed(self, **parts: dict[str, object]) -> Self:
        """A copy with some fields changed: `settings.changed(serving={"inference_url": url})`."""
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=fields) for name, fields in parts.items()}
        )

    def reveal(self) -> dict[str, object]:
        """Every environment variable → the value in force, secrets too: for a child process of ours, by a pipe."""
        parts: list[Part] = [self, *(getattr(self, name) for name in PARTS)]
        values = {
            str(field.validation_alias): getattr(part, name)
            for part in parts
            for name, field in type(part).model_fields.items()
            if field.validation_alias is not None
        }
        return {
            k: v.get_secret_value() if isinstance(v, SecretStr) else str(v) if isinstance(v, Path) else v
            for k, v in values.items()
        }

    @property
    def home(self) -> Path:
        return self.database.home

    @property
    def checkpoints_dir(self) -> Path:
        return self.home / "checkpoints"


PARTS: dict[str, type[Part]] = {
    "database": DatabaseSettings,
    "judge": JudgeSettings,
    "training": TrainingSettings,
    "serving": ServingSettings,
    "gateway": GatewaySettings,
    "deployment": DeploymentSettings,
}


UNSET: Final = " Unset: "
"""In a field's description, what follows says what happens where the variable is not set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One environment variable, as the README and `babylon-rl settings` show it.

    Attributes:
        name: Name in the environment.
        part: `run`, or the part of the settings it belongs to.
        description: What it decides.
        default: The value where it is not set, or a phrase where no fixed value stands for it.
        secret: Whether its value must not be shown.
        value: The value in force; a secret's only says whether there is one.
        is_set: Whether the value comes from the environment.
    """

    name: str
    part: str
    description: str
    default: str
    secret: bool
    value: str
    is_set: bool


def variables(settings: Settings) -> Iterator[Variable]:
    """Every environment variable that the project reads, part by part, with the value in force."""
    parts: dict[str, Part] = {"database": settings.database, "run": settings}
    parts |= {name: getattr(settings, name) for name in PARTS}
    for part, values in parts.items():
        for name, field in type(values).model_fields.items():
            if field.validation_alias is not None:
                yield _variable(part, field, getattr(values, name), is_set=name in values.model_fields_set)


def _variable(part: str, field: FieldInfo, value: object, *, is_set: bool) -> Variable:
    description, _, unset = (field.description or "").partition(UNSET)
    secret = SecretStr in (field.annotation, *get_args(field.annotation))
    return Variable(
        name=str(field.validation_alias),
        part=part,
        description=description,
        default=unset.rstrip(".") if field.default is None else f"`{field.default}`",
        secret=secret,
        value="" if value is None else "(set, hidden)" if secret else str(value),
        is_set=is_set,
    )
