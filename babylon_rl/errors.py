"""Every error we raise on purpose, sorted by who acts on it.

    BabylonRLError
    ├── ConfigError      the operator: a setting, a missing key, a wrong URL
    ├── DataError        whoever owns the data: a record that breaks a rule
    └── TransientError   nobody: wait and try again

A message says which record, what was found, what was expected, and what to do next.
It never contains a secret.
"""

from collections.abc import Mapping


class BabylonRLError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        facts: Small JSON-like values (ids, counts) that a run page can show beside the message.
    """

    def __init__(self, message: str, *, facts: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.facts: dict[str, object] = dict(facts or {})


class ConfigError(BabylonRLError):
    """The operator must change a setting; trying again changes nothing."""


class DataError(BabylonRLError):
    """A record breaks a rule of ours; it must be fixed or set aside."""


class TransientError(BabylonRLError):
    """Something outside failed in a way that may pass: a timeout, a 429, a lost connection."""
