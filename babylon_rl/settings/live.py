"""The parts of the settings that a live game needs: serving, the gateway, and rollouts. Read through `settings.Settings`."""

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Part(BaseSettings):
    """One part of the settings; each field is read from the environment variable that is its alias."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)


class ServingSettings(Part):
    """How a policy is served to agents, and evaluated."""

    inference_url: str | None = Field(
        default=None,
        validation_alias="BABYLON_INFERENCE_URL",
        description="OpenAI-compatible endpoint that serves the checkpoints. Unset: one is started on loopback.",
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
        description="Temperature of every evaluation, and of served agents that ask for none (why 0.5: docs/adr/0007).",
    )
    evaluation_windows: int = Field(
        default=100,
        ge=2,
        validation_alias="BABYLON_EVALUATION_WINDOWS",
        description="Held-out windows that each new checkpoint plays beside its base; of another game than ours, most held-out windows of the log that it is asked about.",
    )


class GatewaySettings(Part):
    """The one address that agents call."""

    key: SecretStr | None = Field(
        default=None,
        validation_alias="BABYLON_GATEWAY_KEY",
        description="Key that agents send as `Authorization: Bearer …`. Unset: none is asked for, and only loopback is listened on.",
    )
    url: str | None = Field(
        default=None,
        validation_alias="BABYLON_GATEWAY_URL",
        description="Address at which a running gateway is reached, for agents that this package plays. Unset: one is started on loopback.",
    )
    base_url: str | None = Field(
        default=None,
        validation_alias="BABYLON_UPSTREAM_BASE_URL",
        description="OpenAI-compatible address that answers as the base, where the base is not ours to serve. Unset: the address of the trained checkpoints.",
    )
    base_model: str | None = Field(
        default=None,
        validation_alias="BABYLON_UPSTREAM_BASE_MODEL",
        description="Model to ask for there. Unset: the name of the base that the lineage is trained on.",
    )
    base_key: SecretStr | None = Field(
        default=None,
        validation_alias="BABYLON_UPSTREAM_KEY",
        description="Key of that address. Unset: none is sent.",
    )
    timeout_s: float = Field(
        default=60,
        gt=0,
        validation_alias="BABYLON_UPSTREAM_TIMEOUT_S",
        description="Seconds without a byte after which an upstream counts as failed, and the incumbent answers instead.",
    )
    max_answer_tokens: int = Field(
        default=4096,
        ge=1,
        validation_alias="BABYLON_GATEWAY_MAX_TOKENS",
        description="Longest answer in tokens, streamed or not; upstreams are told it also where a caller names no limit.",
    )
    keep_text: Literal["off", "on"] = Field(
        default="off",
        validation_alias="BABYLON_GATEWAY_KEEP_TEXT",
        description="`on`: prompts and answers are kept in `served_calls` too. Calls that name a trajectory are logged with their text in any case.",
    )


class DeploymentSettings(Part):
    """When a checkpoint moves on to more agents, and when it is taken back."""

    mode: Literal["auto", "manual"] = Field(
        default="auto",
        validation_alias="BABYLON_DEPLOY",
        description="`auto`: the newest checkpoint that passes its evaluation is tried on live agents, and promoted or rolled back by what they earn. `manual`: only `babylon-rl deploy` begins a rollout.",
    )
    test_agents: str = Field(
        default="test-*",
        validation_alias="BABYLON_TEST_AGENTS",
        description="Ids of test agents, comma-separated shell patterns: half of them meet a canary, of others a tenth.",
    )
    alpha: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        validation_alias="BABYLON_ROLLOUT_ALPHA",
        description="Chance that a rollout of an equally good checkpoint is ever decided, either way, however often it is looked at.",
    )
    shadow_windows: int = Field(
        default=0,
        ge=0,
        validation_alias="BABYLON_SHADOW_WINDOWS",
        description="Windows in which a candidate is asked beside the incumbent before it answers anybody; 0: none.",
    )
    canary_windows: int = Field(
        default=6,
        ge=1,
        validation_alias="BABYLON_CANARY_WINDOWS",
        description="Fewest windows of the stage of a tenth.",
    )
    rollout_windows: int = Field(
        default=336,
        ge=2,
        validation_alias="BABYLON_ROLLOUT_WINDOWS",
        description="Windows after which an undecided rollout ends; the incumbent stays.",
    )
    max_drawdown_usd: float | None = Field(
        default=None,
        gt=0,
        validation_alias="BABYLON_MAX_DRAWDOWN_USD",
        description="How far the candidate's mean running P&L may fall behind the incumbent's, in US dollars an agent, before it is rolled back whatever the interval says. Unset: by the spread of what agents earn (docs/deployment.md).",
    )

    @property
    def test_agent_patterns(self) -> tuple[str, ...]:
        return tuple(p.strip() for p in self.test_agents.split(",") if p.strip())
