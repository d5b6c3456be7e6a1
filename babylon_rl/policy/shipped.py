"""Where the shipped base policy is, and whether a directory holds a base. Imports nothing heavy."""

from pathlib import Path

from babylon_rl.errors import ConfigError


def shipped_base() -> Path:
    """Directory of the base policy that comes with the package."""
    return Path(__file__).parent / "base"


def require_base(base: Path) -> None:
    """Raise a ConfigError unless `base` holds a model; called before anything heavy is imported."""
    if not (base / "config.json").is_file():
        raise ConfigError(
            f"base policy {str(base)!r} has no config.json; make one with `babylon-rl make-base-policy`, "
            "or unset BABYLON_BASE_MODEL to use the shipped one"
        )
