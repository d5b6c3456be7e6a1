"""Who may ask: one key, compared in constant time; without a key, only this machine is listened to."""

import hmac
import ipaddress
from collections.abc import Iterable
from typing import TYPE_CHECKING

from babylon_rl.errors import ConfigError
from babylon_rl.policy.wire import RequestError

if TYPE_CHECKING:
    from pydantic import SecretStr


class Access:
    """Checks the key of each request under `/v1`."""

    def __init__(self, key: "SecretStr | None") -> None:
        self._key = None if key is None else key.get_secret_value().encode()

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Refuse a request without the key.

        Raises:
            RequestError: 401: there is no key, or another one.
        """
        if self._key is None:
            return
        given = next((value for name, value in headers if name.lower() == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        if not hmac.compare_digest(key.strip(), self._key) or scheme.lower() != b"bearer":
            raise RequestError(
                401,
                "the key is missing or wrong; send the gateway's key as Authorization: Bearer …",
                code="invalid_api_key",
            )


def check_address(host: str, key: "SecretStr | None") -> None:
    """Refuse to listen where others reach us without a key.

    Raises:
        ConfigError: `host` is not loopback, and no key is set.
    """
    if key is not None and key.get_secret_value():
        return
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if not is_loopback or key is not None:
        raise ConfigError(
            f"the gateway would answer anybody who reaches {host!r}: set BABYLON_GATEWAY_KEY, or listen on 127.0.0.1"
            if key is None
            else "BABYLON_GATEWAY_KEY is set and empty; give it a value, or unset it to listen on loopback without a key"
        )
